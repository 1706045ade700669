"""The short runs that studies of preference learning vary: portraits of people, compared and graded by gold.

The start is the base after a few batches of demonstrated portraits, of mixed quality, so that it stops and has much to
learn. Its own answers are compared two by two, by an annotator whose taste is gold's and whose choices are noisy: what
biased annotators do is the affair of other studies. What a study changes stands in its own file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import torch

from posttrain import rng
from posttrain.algorithms import sft
from posttrain.assets.world import demos, people
from posttrain.assets.world.rater import chooses_first, rating
from posttrain.data.rows import Data
from posttrain.lab.study import Figure, interval, paired
from posttrain.models.load import load
from posttrain.recipes import comparisons, measure
from posttrain.recipes.stages import curve, stage
from posttrain.records import Stop, Trajectory
from posttrain.train.checkpoint import write_text
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

LINEAR = Schedule(kind="linear", warmup=3)


def settings(seed: int) -> RunConfig:
    """The part of every config that is the same."""
    return RunConfig(seed=seed, threads=1, save_every=1000, keep=1, samples=0)


def start(scratch: Path, seed: int, steps: int = 25) -> Path:
    """The model that all methods begin with."""
    rows = []
    for i, (person, text) in enumerate(demos.portraits(1000, seed)):
        asked = people.ABOUT[rng.fold(seed, "asked", i) % len(people.ABOUT)].format(person.name)
        rows.append({"prompt": asked, "completion": text})
    path = written(scratch / "demonstrations.jsonl", rows)
    cfg = sft.Config(template="plain", data=Data(path=str(path)), steps=steps, batch_size=16, eval_every=0,
                     optim=Optim(lr=1e-3, schedule=LINEAR), run=settings(seed))  # fmt: skip
    return stage(scratch / "start", sft, cfg).model


def fair(seed: int) -> comparisons.Prefers:
    """An annotator without biases: gold's order, with as much noise as the rater's choices have."""

    def prefers(a: Trajectory, b: Trajectory) -> bool:
        gap = measure.gold_of(a) - measure.gold_of(b)
        return chooses_first(gap, a.task.meta["person"], a.completion, b.completion, seed)

    return prefers


def compared(scratch: Path, model: Path, seed: int, prompts: int) -> Path:
    """Pairs of the model's own answers as a fair but noisy annotator compares them, four to a prompt."""
    path = scratch / "pairs.jsonl"
    if path.exists():
        return path
    asked = demos.about_prompts(people.SEEN, prompts, seed)
    return written(path, comparisons.pairs(comparisons.sampled(load(model), asked, 8, seed), fair(seed)))


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as a data file."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def common(model: Path, data: Path, seed: int, *, steps: int, lr: float, batch_size: int = 16, held: int = 32) -> dict:
    """What the configs of the methods on stored data share."""
    return {
        "model": str(model), "data": Data(path=str(data), eval_rows=held), "steps": steps, "batch_size": batch_size,
        "eval_every": steps if held else 0, "optim": Optim(lr=lr, schedule=LINEAR), "run": settings(seed),
    }  # fmt: skip


def trained(folder: Path, method: ModuleType, cfg: Any) -> Path:
    """A run's model."""
    return stage(folder, method, cfg).model


def portraits(model: Path, seed: int, prompts: int = 48, n: int = 4) -> list[Trajectory]:
    """Sampled portraits of people that no training has asked about."""
    torch.set_num_threads(1)
    asked = demos.about_prompts(people.TEST, prompts, seed)
    return [m for members in comparisons.sampled(load(model), asked, n, seed) for m in members]


def graded(model: Path, seed: int, prompts: int = 48, n: int = 4) -> dict[str, float]:
    """Gold's mean grade and the rater's, the mean length in tokens, and the share that was cut off, of portraits."""
    said = portraits(model, seed, prompts, n)
    return {
        "gold": fmean(measure.gold_of(m) for m in said),
        "rated": fmean(rated(m) for m in said),
        "length": fmean(m.length for m in said),
        "cut": fmean(m.stop is Stop.LENGTH for m in said),
    }


def rated(m: Trajectory) -> float:
    """How much the rater likes a portrait."""
    return rating(people.PEOPLE[m.task.meta["person"]], m.completion, m.stop is Stop.END)


def values(folder: Path, metric: str) -> list[float]:
    """A metric over the steps that have it."""
    return [y for _, y in curve(folder, metric)]


def column(cells: Mapping[int, Mapping[str, Any]], name: str) -> list[float]:
    """One figure of an arm, by seed."""
    return [float(cells[seed][name]) for seed in sorted(cells)]


def rise(what: str, before: Sequence[float], after: Sequence[float], *, down: bool = False, least: float = 0.0,
         digits: int = 2) -> Figure:  # fmt: skip
    """Whether something rose (or fell) over the seeds by more than `least`, as a figure."""
    gain, low, high = paired(after, before)
    start, end = interval(before)[0], interval(after)[0]
    return Figure(
        what=what, before=start, after=end, low=low, high=high, seen=high < -least if down else low > least,
        text=f"{what}: {start:.{digits}f} → {end:.{digits}f}, {gain:+.{digits}f} [{low:+.{digits}f}, "
        f"{high:+.{digits}f}]",
    )  # fmt: skip
