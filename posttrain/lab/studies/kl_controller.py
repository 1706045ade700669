"""The leash's controller holds the KL that it is told to hold.

Where one right answer in sixteen becomes nine in ten, the KL per answer goes to about three nats under a light leash.
The controller begins at a weight between the two that the targets need, and moves it by a tenth per step at most, which
is quicker than Ziegler's, whose runs are a hundred times as long.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import ppo
from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.lab.word_runs import column, ppo_config, train, values
from posttrain.objectives.presets import PRESETS

WITHIN = 0.25
"""Share of the target that the mean over the last third may be away."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """KL per answer over the last third of the run, and the weight at the end."""
    base = PRESETS["ppo"]
    steer = {"target": settings["target"], "horizon": 128} if settings["target"] else {}
    objective = replace(base, kl=replace(base.kl, beta=0.3, **steer))
    train(ppo, ppo_config(seed, steps=settings["steps"], objective=objective), scratch)
    kl = values(scratch, "kl_ref_answer")
    return {"kl": fmean(kl[-len(kl) // 3 :]), "beta": values(scratch, "kl_beta")[-1], "curve": kl}


def read(cells: Cells) -> list[Figure]:
    """Each target with what was reached; and that the targets differ from what a fixed weight does."""
    free = interval(column(cells["fixed"], "kl"))[0]
    figures = []
    for arm in (a for a in cells if a != "fixed"):
        target = float(arm.removeprefix("target "))
        mean, low, high = interval(column(cells[arm], "kl"))
        seen = (1 - WITHIN) * target < low and high < (1 + WITHIN) * target
        text = f"target {target:g} nats: {mean:.2f} [{low:.2f}, {high:.2f}] at the end; at a fixed weight {free:.2f}"
        figures.append(
            Figure(what=f"KL per answer, {arm}", before=free, after=mean, low=low, high=high, seen=seen, text=text)
        )
    return figures


STUDY = Study(
    name="kl_controller",
    claim="the adaptive controller holds the KL per answer within a quarter of its target",
    source="Ziegler et al. 2019 (arXiv 1909.08593), section 2.2",
    arms={"fixed": {"target": None, "steps": 30}} | {f"target {t:g}": {"target": t, "steps": 30} for t in (1.0, 2.0)},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
