"""The leash's controller holds the KL that it is told to hold.

Where one right answer in sixteen becomes nine in ten, the KL per answer goes to about three nats under a light leash.
The controller begins near the weight that the targets need and moves it by a fortieth per step at most: a policy takes
some steps to follow its leash, and a controller that is quicker than its policy overshoots.
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
    objective = replace(base, kl=replace(base.kl, beta=0.3, target=settings["target"], horizon=512))
    train(ppo, ppo_config(seed, lr=1e-3, steps=settings["steps"], epochs=1, objective=objective), scratch)
    kl = values(scratch, "kl_ref_answer")
    return {"kl": fmean(kl[-max(1, len(kl) // 3) :]), "beta": values(scratch, "kl_beta")[-1], "curve": kl}


def read(cells: Cells) -> list[Figure]:
    """Each target, and what was reached."""
    figures = []
    for arm in cells:
        target = float(arm.removeprefix("target "))
        mean, low, high = interval(column(cells[arm], "kl"))
        seen = (1 - WITHIN) * target < low and high < (1 + WITHIN) * target
        text = f"{arm} nats: {mean:.2f} [{low:.2f}, {high:.2f}] over the last third"
        figures.append(
            Figure(what=f"KL per answer, {arm}", before=target, after=mean, low=low, high=high, seen=seen, text=text)
        )
    return figures


STUDY = Study(
    name="kl_controller",
    claim="the adaptive controller holds the KL per answer within a quarter of its target",
    source="Ziegler et al. 2019 (arXiv 1909.08593), section 2.2",
    arms={f"target {t:g}": {"target": t, "steps": 45} for t in (1.0, 2.0)},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
