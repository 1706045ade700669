"""Learning to summarize from human feedback: Stiennon et al. 2020 (arXiv 2009.01325), at laptop size.

What the paper did: a GPT-3 of 1.3 or 6.7 billion parameters fine-tuned on Reddit posts with their summaries (TL;DR), a
reward model from 64,832 comparisons by paid labelers, and PPO against it with a fixed KL charge of 0.05 per nat, with a
value network of its own that begins as the reward model. Human judges preferred the result to the references.

What we do: the same four steps on passages of the generated world. References leave facts out and sometimes err; a
rater who likes length and misses errors compares the SFT model's summaries; PPO's critic begins as the reward model;
an exact grader, which no step has seen, takes the judges' place. Best-of-8 under the same reward model stands beside.

What we left out: several rounds of data collection, validation of labelers, transfer to news articles, and the sweep
of the KL charge past the peak (`posttrain lab studies reward_hacking` shows that).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from posttrain import rng
from posttrain.algorithms import ppo, reward_model, sft
from posttrain.algorithms.reward_model import score_segments
from posttrain.assets.world import summaries
from posttrain.assets.world.gold import well_formed
from posttrain.data.rows import Data
from posttrain.evals.stats import bootstrap, paired, wilson
from posttrain.models.load import load
from posttrain.objectives.presets import PRESETS
from posttrain.recipes import comparisons
from posttrain.recipes.gather import MAX_TOKENS, Setting, Stage, conclude, curves, interval, sample
from posttrain.recipes.stages import stage
from posttrain.records import Message, Stop, Task, Trajectory
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule


@dataclass(frozen=True)
class Size:
    """How much of everything. The story is written once."""

    demonstrations: int
    epochs: float
    pair_prompts: int
    ppo_steps: int
    asked: int


SIZES = {
    "laptop": Size(demonstrations=3000, epochs=2.0, pair_prompts=800, ppo_steps=60, asked=200),
    "tiny": Size(demonstrations=640, epochs=4.0, pair_prompts=64, ppo_steps=2, asked=16),
}
"""laptop: about five minutes on two cores. tiny: to see that everything runs; its figures mean nothing."""

COLUMNS = [
    {"key": "gold", "label": "Gold", "meaning": "the exact grader's mean score; 3 is the best possible",
     "share": False, "digits": 2},
    {"key": "over_reference", "label": "Over references", "draw": True,
     "meaning": "how often gold prefers it to the reference of the same passage, ties half"},
    {"key": "well_formed", "label": "Well formed", "meaning": "finished, on one line, in known sentences"},
    {"key": "facts", "label": "Facts", "meaning": "facts of the passage per summary", "share": False, "digits": 2},
    {"key": "proxy", "label": "Reward", "meaning": "the reward model's mean score", "share": False, "digits": 2},
    {"key": "length", "label": "Length", "meaning": "mean tokens per summary", "share": False, "digits": 1},
    {"key": "seconds", "label": "Seconds", "meaning": "time it took to train the stage", "share": False},
]  # fmt: skip
STORY = [
    {"to": "sft", "start": "references", "key": "gold", "digits": 2, "words": "copying references took gold"},
    {"to": "ppo", "start": "sft", "key": "gold", "digits": 2, "words": "the reward model took it"},
    {"to": "ppo", "key": "over_reference", "words": "its summaries beat the references in {} of the passages"},
]
CURVES = {
    "1-sft": ("nll",),
    "2-reward-model": ("accuracy",),
    "3-ppo": ("reward_mean", "kl_ref_k1", "length_mean", "explained_variance"),
}


def run(size: Size, at: Setting) -> dict[str, Any]:
    """Train or resume every stage, grade held-out summaries, write the report, and return what it shows."""
    torch.set_num_threads(at.threads)
    linear = Schedule(kind="linear", warmup=5)
    at.say("1/3  supervised fine-tuning on references")
    cfg = sft.Config(
        template="posttrain", data=Data(path="builtin:summaries", limit=size.demonstrations, eval_rows=100),
        epochs=size.epochs, optim=Optim(lr=1e-3, schedule=linear), run=at.run,
    )  # fmt: skip
    first = stage(at.out / "1-sft", sft, cfg)

    at.say("2/3  a reward model from the rater's comparisons of its summaries")
    compared = at.write("comparisons.jsonl", lambda: compare(load(first.model), size.pair_prompts, at.seed))
    cfg = reward_model.Config(
        model=str(first.model), data=comparisons.data(compared), batch_size=16,
        optim=Optim(lr=5e-4, schedule=linear), run=at.run,
    )  # fmt: skip
    judge = stage(at.out / "2-reward-model", reward_model, cfg)

    at.say("3/3  PPO against the reward model, with a KL charge per token")
    cfg = ppo.Config(
        model=str(first.model), critic=str(judge.model), reward=f"model:{judge.model}",
        data=Data(path="builtin:summaries", limit=4000), objective=with_leash(0.05), prompts=64,
        steps=size.ppo_steps, sampling=SamplingParams(max_tokens=MAX_TOKENS), eval_every=0,
        optim=Optim(lr=2e-4, schedule=linear), critic_optim=Optim(lr=5e-4), run=at.run,
    )  # fmt: skip
    last = stage(at.out / "3-ppo", ppo, cfg)
    trained = [Stage("sft", "SFT", first.model), Stage("ppo", "PPO", last.model)]
    return conclude(at, "learning_to_summarize", "Learning to summarize", found(trained, judge.model, size, at))


def with_leash(beta: float):
    """PPO's objective with this much KL charge per nat."""
    return replace(PRESETS["ppo"], kl=replace(PRESETS["ppo"].kl, beta=beta))


def compare(loaded, prompts: int, seed: int) -> list[dict[str, Any]]:
    """Eight summaries of each passage, two by two."""
    asked = summaries.tasks(prompts, rng.fold(seed, "compared") % 2**31)

    def prefers(a: Trajectory, b: Trajectory) -> bool:
        return summaries.prefers_first(a.task, a.completion, b.completion, seed=seed)

    return comparisons.pairs(comparisons.sampled(loaded, asked, 8, seed), prefers)


# --- what came of it -------------------------------------------------------------------------------------------------


def found(trained: list[Stage], judge, size: Size, at: Setting) -> dict[str, Any]:
    """Everything that the report shows."""
    asked = summaries.tasks(size.asked, at.seed, "test")
    scorer = load(judge).model
    said: dict[str, list[Trajectory]] = {"references": [written(t, at.seed) for t in asked]}
    shown = [Stage("references", "references", at.out, note="written by people, of mixed quality")]
    for s in trained:
        at.say(f"asking {s.title}: {size.asked} held-out passages")
        several = comparisons.sampled(load(s.folder), asked, 8 if s.name == "sft" else 1, at.seed)
        said[s.name] = [answers[0] for answers in several]
        shown.append(s)
        if s.name == "sft":
            said["best"] = [max(answers, key=lambda t: proxy(scorer, [t])[0]) for answers in several]
            shown.append(Stage("best", "best of 8", s.folder, note="of SFT's, by the reward model; nothing is trained"))
    rows = [row(s, said, scorer, at.seed) for s in shown]
    return {
        "columns": COLUMNS,
        "story": STORY,
        "stages": rows,
        "reward_model": comparisons.judge(
            at.out / "2-reward-model",
            at.out / "comparisons.jsonl",
            load(trained[0].folder),
            asked[:50],
            at.seed,
            gold_of,
        ),
        "samples": [
            sample("a passage to be summed up, graded by gold", {name: said[name][i] for name in said}, verdict)
            for i in range(6)
        ],
        "curves": curves(at.out, CURVES),
        "notes": notes(said, at.seed),
    }


def written(task: Task, seed: int) -> Trajectory:
    """The reference of a passage, as if it had been sampled."""
    text = summaries.reference(task, rng.python(seed, "reference", task.id))
    return Trajectory(task, (*task.prompt, Message("assistant", text)), (), Stop.END)


def gold_of(t: Trajectory) -> float:
    """Gold's grade of a summary."""
    return summaries.grade(t.task, t.completion, t.stop is Stop.END).value


def verdict(t: Trajectory) -> dict[str, Any]:
    """Gold's word on a summary."""
    value = gold_of(t)
    return {"verdict": f"gold {value:+.1f}", "good": value >= 2 if value >= 2 or value < 1 else None}


def proxy(scorer, answers: list[Trajectory]) -> list[float]:
    """The reward model's scores."""
    return score_segments(scorer, [t.segments[0] for t in answers]).tolist()


def row(s: Stage, said: Mapping[str, list[Trajectory]], scorer, seed: int) -> dict[str, Any]:
    """A line of the table."""
    answers, theirs = said[s.name], said["references"]
    values, n = [gold_of(t) for t in answers], len(answers)
    wins = [float(a > b) + 0.5 * (a == b) for a, b in zip(values, map(gold_of, theirs), strict=True)]
    facts = [summaries.grade(t.task, t.completion).parts.get("facts", 0.0) for t in answers]
    sampled = s.name != "references"
    return {
        "name": s.name,
        "title": s.title,
        "folder": str(s.folder) if s.seconds is not None else "",
        "note": s.note,
        "seconds": s.seconds if s.name != "best" else None,
        "gold": interval(bootstrap(values, seed), n),
        "over_reference": interval(bootstrap(wins, seed), n) if sampled else None,
        "well_formed": interval(wilson(sum(formed(t) for t in answers), n), n),
        "facts": fmean(facts),
        "proxy": fmean(proxy(scorer, answers)) if sampled else None,
        "length": fmean(t.length for t in answers) if sampled else None,
    }


def formed(t: Trajectory) -> bool:
    """Whether a summary is sentences of the world, whoever they are about."""
    return well_formed(t.completion.replace(t.task.meta["name"], "Mira"), t.stop is Stop.END)


def notes(said: Mapping[str, list[Trajectory]], seed: int) -> list[str]:
    """What the figures must be read with."""
    values = {name: [gold_of(t) for t in answers] for name, answers in said.items()}
    gain = paired(values["ppo"], values["sft"], seed)
    lead = fmean(summaries.grade(t.task, summaries.opening(t.task.prompt[0].content)).value for t in said["sft"])
    return [
        f"PPO against SFT on the same passages: {gain.value:+.2f} gold ({gain.low:+.2f} to {gain.high:+.2f}).",
        f"The first two sentences of each passage, which need no model, have gold {lead:.2f}.",
        "Summaries are sampled at temperature 1. The rater likes length and misses half of the errors; gold does not.",
        "One seed. Intervals cover the draw of passages, not of seeds.",
    ]
