"""What the R1 recipes share: problems, the RL stage, and what is measured of answers that show their work.

Form is judged apart from accuracy: an answer may be right and unreadable, or neat and wrong. Of every answer the first
line is graded, which is the fair way to read a base model; form takes the whole answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from posttrain.algorithms import group
from posttrain.data.expressions import NotAnExpression, value_of
from posttrain.data.rows import Data
from posttrain.data.tasks import tasks
from posttrain.evals.measure import Answers, collect, count, first_line
from posttrain.evals.stats import wilson
from posttrain.models.load import load
from posttrain.objectives.presets import PRESETS
from posttrain.recipes.gather import Setting, Stage, interval, sample
from posttrain.records import Task, Trajectory
from posttrain.rewards.resolve import rewards_for
from posttrain.rewards.worked import in_form
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule

PROBLEMS = ("sums", "chains", "countdown")
OTHERS = ("facts", "words", "copy")
MAX_TOKENS = 96
"""A countdown tries several ways before it has one."""
TRIES = 8
TERM = re.compile(r"(?:(?<=\d)[+-])?\d+")
"""A signed term of a problem."""

COLUMNS = [
    {"key": "form", "label": "Form", "meaning": "problems answered in one finished line that shows its work"},
    {"key": "sound", "label": "Sound", "meaning": "answers in form all of whose equations are true"},
    {"key": "greedy", "label": "Solved", "meaning": "problems solved by the likeliest answer"},
    {"key": "pass_1", "label": "Pass@1", "meaning": "problems solved by one sampled answer"},
    {"key": "pass_8", "label": "Pass@8", "meaning": "problems with a right one among eight sampled answers"},
    {"key": "other", "label": "Other tasks", "meaning": "facts, words and copying solved, which show no work"},
    {"key": "length", "label": "Length", "meaning": "mean tokens of a sampled answer to a problem", "share": False,
     "digits": 1},
    {"key": "seconds", "label": "Seconds", "meaning": "time it took to train the stage", "share": False},
]  # fmt: skip
RL_CURVES = ("reward_part_worked.accuracy", "reward_part_worked.form", "length_mean", "entropy", "zero_variance_share")


def rl(model: str | Path, names: Sequence[str], steps: int, at: Setting, **more: Any) -> group.Config:
    """GRPO as R1 uses it (arXiv 2501.12948): 16 answers per prompt, a KL of 0.001 in the loss, rewards from rules."""
    grpo = PRESETS["grpo"]
    return group.Config(
        model=str(model), data=Data(path=f"builtin:{'+'.join(names)}", limit=6000, eval_rows=0), reward="worked",
        objective=replace(grpo, kl=replace(grpo.kl, beta=0.001)), prompts=8, group_size=16, steps=steps,
        sampling=SamplingParams(max_tokens=MAX_TOKENS), eval_every=0,
        optim=Optim(lr=5e-4, schedule=Schedule(warmup=5)), run=at.run, **more,
    )  # fmt: skip


@dataclass(frozen=True)
class Reasoned:
    """What a stage said."""

    problems: Answers
    others: Answers


def turns(names: Sequence[str], n: int, seed: int) -> list[Task]:
    """n held-out tasks in all, the kinds by turns."""
    drawn = [tasks(name, -(-n // len(names)), seed, "test") for name in names]
    return [task for turn in zip(*drawn, strict=True) for task in turn][:n]


def ask_all(stages: Sequence[Stage], problems: int, others: int, at: Setting) -> dict[str, Reasoned]:
    """What every stage answers to the same held-out tasks, with the same draws."""
    said = {}
    for s in stages:
        at.say(f"asking {s.title}: {problems} held-out problems, {others} other tasks")
        loaded = load(s.folder, template=s.template)
        sampler = TorchSampler(loaded.model)

        def answers(asked: list[Task], k: int, sampler=sampler, loaded=loaded) -> Answers:
            rewards = rewards_for("verify", asked)
            return collect(sampler, asked, loaded, rewards, k=k, max_tokens=MAX_TOKENS, seed=at.seed)

        said[s.name] = Reasoned(
            answers(turns(PROBLEMS, problems, at.seed), TRIES), answers(turns(OTHERS, others, at.seed), 1)
        )
    return said


def row(s: Stage, said: Mapping[str, Reasoned]) -> dict[str, Any]:
    """A line of the table."""
    rewards = rewards_for("verify", [g.task for g in said[s.name].problems.greedy])
    found = count(first_line(said[s.name].problems, rewards))
    other = count(first_line(said[s.name].others, rewards))
    greedy = [g.members[0] for g in said[s.name].problems.greedy]
    formed = [t for t in greedy if in_form(t)]
    true = sum(map(sound, formed))
    return {
        "name": s.name,
        "title": s.title,
        "folder": str(s.folder),
        "note": s.note,
        "seconds": s.seconds,
        "form": interval(wilson(len(formed), len(greedy)), len(greedy)),
        "sound": interval(wilson(true, len(formed)), len(formed)) if formed else None,
        "greedy": interval(found.greedy, found.tasks),
        "pass_1": interval(found.pass_1, found.tasks),
        "pass_8": interval(found.pass_k, found.tasks),
        "other": interval(other.greedy, other.tasks),
        "length": found.length,
    }


_EQUATION = re.compile(r"([0-9][0-9+\-*]*)=([0-9]+)")


def sound(t: Trajectory) -> bool:
    """Whether all equations of an answer are true; one that cannot be read is not."""
    try:
        return all(value_of(left) == Fraction(right) for left, right in _EQUATION.findall(t.completion))
    except NotAnExpression:
        return False


def samples(said: Mapping[str, Reasoned], each: int = 6) -> list[dict[str, Any]]:
    """The first few tasks of each kind with every stage's greedy answer."""
    return [
        sample("task", {name: getattr(r, kind).greedy[i].members[0] for name, r in said.items()}, verdict)
        for kind, n in (("problems", each), ("others", each // 2))
        for i in range(n)
    ]


def verdict(t: Trajectory) -> dict[str, Any]:
    """The verifier's word on an answer's first line."""
    line = replace(t, messages=(*t.messages[:-1], replace(t.messages[-1], content=t.completion.partition("\n")[0])))
    good = rewards_for("verify", [t.task])["verify"][0](t.task, line).value == 1.0
    form = "" if t.task.meta["task"] in OTHERS or in_form(t) else ", not in form"
    return {"verdict": ("right" if good else f"wrong: it is {t.task.answer}") + form, "good": good}
