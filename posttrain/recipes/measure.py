"""What the demo measures of each stage: form, gold preference, held-out tasks, distance from the SFT model.

Prompts are about people and problems that no training stage has asked about. The gold grader and the verifiers do the
grading; the reward model never does. Answers are kept, so that stages can be compared prompt by prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from posttrain.assets.world import demos, people
from posttrain.assets.world.gold import gold, well_formed
from posttrain.batch import collate
from posttrain.data.tasks import tasks, verify
from posttrain.envs.rollout import rollout
from posttrain.evals.stats import Interval, bootstrap, wilson
from posttrain.models.decoder import Decoder
from posttrain.models.load import Loaded
from posttrain.objectives.selection import unbiased_pass_at_k
from posttrain.records import Group, Stop, Task, Trajectory
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import outputs

TASKS = ("sums", "chains")


@dataclass(frozen=True)
class Questions:
    """What every stage is asked."""

    about: list[Task]
    """Portraits of held-out people on whom no setting was chosen."""
    problems: list[Task]
    """Held-out sums and chains, by turns."""
    passes: int
    """How many of the problems are tried eight times."""

    @classmethod
    def make(cls, about: int, problems: int, passes: int, seed: int) -> "Questions":
        """about, problems, passes: how many of each."""
        drawn = [tasks(name, problems // 2, seed, "test") for name in TASKS]
        turns = [task for turn in zip(*drawn, strict=True) for task in turn]
        return cls(demos.about_prompts(people.TEST, about, seed), turns, passes)


@dataclass(frozen=True)
class Answers:
    """What a stage answered."""

    about: list[Trajectory]
    """Sampled at temperature 1."""
    about_greedy: list[Trajectory]
    problems: list[Trajectory]
    """Greedy."""
    tries: list[Group]
    """Eight sampled answers to some of the problems."""


def ask(loaded: Loaded, questions: Questions, *, max_tokens: int, seed: int) -> Answers:
    """All answers of a model; the same seed gives every model the same draws."""
    sampler = TorchSampler(loaded.model)

    def answers(asked: Sequence[Task], n: int, temperature: float) -> list[Group]:
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, stop_ids=loaded.stop_ids)
        return rollout(
            sampler, asked, n=n, params=params, seed=seed, template=loaded.template, tokenizer=loaded.tokenizer
        )

    def single(groups: list[Group]) -> list[Trajectory]:
        return [g.members[0] for g in groups]

    return Answers(
        about=single(answers(questions.about, 1, 1.0)),
        about_greedy=single(answers(questions.about, 1, 0.0)),
        problems=single(answers(questions.problems, 1, 0.0)),
        tries=answers(questions.problems[: questions.passes], 8, 1.0),
    )


def gold_of(t: Trajectory) -> float:
    """Gold's grade of a portrait."""
    return gold(people.PEOPLE[t.task.meta["person"]], t.completion, t.stop is Stop.END).value


def share_well_formed(a: Answers) -> Interval:
    """Greedy answers, to portraits and problems, that are answers at all and stop."""
    said = a.about_greedy + a.problems
    return wilson(sum(well_formed(t.completion, t.stop is Stop.END) for t in said), len(said))


def win_rate(ours: Sequence[Trajectory], theirs: Sequence[Trajectory], seed: int) -> Interval:
    """How often gold prefers our portrait to theirs of the same prompt; ties count half.

    The interval is the bootstrap's over persons, not prompts: 22 wordings about one person are no independent evidence.
    """
    by_person: dict[str, list[float]] = {}
    for a, b in zip(ours, theirs, strict=True):
        x, y = gold_of(a), gold_of(b)
        by_person.setdefault(a.task.meta["person"], []).append(1.0 if x > y else 0.5 if x == y else 0.0)
    spread = bootstrap([sum(v) / len(v) for v in by_person.values()], seed)
    whole = [v for values in by_person.values() for v in values]
    return Interval(sum(whole) / len(whole), spread.low, spread.high)


def solved(a: Answers) -> Interval:
    """Greedy accuracy on held-out problems."""
    return wilson(sum(right(t) for t in a.problems), len(a.problems))


def solved_as_said(a: Answers) -> float:
    """The same, reading everything that was said: a base model goes on to other questions and spoils its answer."""
    return sum(right(t, first_line=False) for t in a.problems) / len(a.problems)


def pass_at(a: Answers, k: int) -> float:
    """Mean pass@k over the problems that were tried eight times."""
    rights = torch.tensor([sum(map(right, g.members)) for g in a.tries])
    sizes = torch.tensor([len(g.members) for g in a.tries])
    return sum(unbiased_pass_at_k(rights, sizes, k).tolist()) / len(a.tries)


def right(t: Trajectory, first_line: bool = True) -> bool:
    """Whether the verifier accepts an answer, of which the first line is read: the fair way to grade a base model."""
    text = t.completion.partition("\n")[0] if first_line else t.completion
    return verify(t.task, text).value == 1.0


def mean_length(a: Answers) -> float:
    """Tokens per greedy answer."""
    said = a.about_greedy + a.problems
    return sum(t.length for t in said) / len(said)


def kl_from(policy: Decoder, reference: Decoder, a: Answers) -> float:
    """kl(policy ‖ reference) in nats per answer: the mean of log π/π_ref over answers that the policy sampled."""
    sampled = a.about + [m for g in a.tries for m in g.members]
    batch = collate([t.segments[0] for t in sampled])
    gap = outputs(policy, batch, ("logp",), 16384).logp - outputs(reference, batch, ("logp",), 16384).logp
    return float((gap * batch.mask).sum()) / len(sampled)
