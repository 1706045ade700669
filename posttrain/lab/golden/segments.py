"""Golden run: a pendulum swings up by a reward that was learned from 200 comparisons, one in ten of them wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.control import segments
from posttrain.lab.control_runs import column, compare, pendulum, rise, run
from posttrain.lab.study import Cells, Figure, Study
from posttrain.recipes.stages import curve


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """True return of the first batch and of the last three, and how like the true reward the learned one is."""
    found = run(segments, pendulum(seed, **settings), scratch)
    like = [y for _, y in curve(scratch, "reward_correlation")]
    return found | {"like before": like[0], "like": like[-1]}


def read(cells: Cells) -> list[Figure]:
    """Does the true return rise, which nothing was trained on?"""
    arm = cells["segments"]
    like = compare("likeness", column(arm, "like"), [0.0] * len(arm), "correlation of learned and true reward, above 0")
    return [*rise("segments", "true return of an episode")(cells), like]


STUDY = Study(
    name="segments",
    claim="200 comparisons of clips teach a reward on which PPO raises Pendulum's true return.",
    source="Christiano et al. 2017 (arXiv 1706.03741)",
    arms={"segments": {"comparisons": 200}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
