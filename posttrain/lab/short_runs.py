"""The short run that studies of the group family vary: sums, asked of the embedded base, half a minute on one core.

The base answers one sum in fifty: it seldom works the columns out, and runs on after its answer. Learning both takes
forty steps of 64 answers. What a study changes stands in its own file.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import group
from posttrain.data.rows import Data
from posttrain.data.tasks import tasks
from posttrain.evals.measure import Answers, Measured, collect, count
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.recipes.stages import curve, stage
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

MAX_TOKENS = 40


def config(objective: Objective | str, seed: int, *, steps: int, lr: float = 2e-3, task: str = "sums",
           max_tokens: int = MAX_TOKENS, schedule: str = "linear", **changes: Any) -> group.Config:  # fmt: skip
    """A short run of 8 prompts with 8 answers each. objective: or the name of a preset."""
    objective = PRESETS[objective] if isinstance(objective, str) else objective
    if objective.average.kind == "constant":
        objective = replace(objective, average=Average("constant", horizon=max_tokens))
    base = group.Config(
        template="plain",
        data=Data(path=f"builtin:{task}", limit=4000),
        objective=objective,
        prompts=8,
        group_size=8,
        steps=steps,
        sampling=SamplingParams(max_tokens=max_tokens),
        eval_every=0,
        optim=Optim(lr=lr, schedule=Schedule(kind=schedule, warmup=3)),
        run=RunConfig(seed=seed, threads=1, save_every=1000, keep=1, samples=0),
    )
    return replace(base, **changes)


def run(folder: Path, cfg: group.Config) -> Path:
    """Train in a folder; its model."""
    return stage(folder, group, cfg).model


def mean_of(folder: Path, metric: str, first: int | None = None, last: int | None = None) -> float:
    """A metric's mean over the first or last so many steps that have it; over all, without a number."""
    values = [y for _, y in curve(folder, metric)]
    values = values[:first] if first else values[-last:] if last else values
    return fmean(values)


def answers_of(model: Path | str, *, k: int, n: int = 64, task: str = "sums", split: str = "test", seed: int = 0,
               max_tokens: int = MAX_TOKENS) -> Answers:  # fmt: skip
    """Greedy and k sampled answers to n tasks that training never saw."""
    loaded = load(model, template="plain")
    asked = tasks(task, n, seed, split)
    return collect(TorchSampler(loaded.model), asked, loaded, rewards_for("auto", asked), k=k, max_tokens=max_tokens)


def measured(model: Path | str, **how: Any) -> Measured:
    """The figures of `answers_of`."""
    return count(answers_of(model, **how))


def column(cells: Mapping[int, Mapping[str, Any]], name: str) -> list[float]:
    """One figure of an arm, by seed."""
    return [float(cells[seed][name]) for seed in sorted(cells)]
