"""Dr. GRPO's point: averaging per answer lets wrong answers stay long; a constant divisor does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.recipes.stages import curve

AVERAGES = {
    "per_answer": Objective(advantage="center", average=Average("sequence")),
    "constant": Objective(advantage="center", average=Average("constant", horizon=1)),
    "token": Objective(advantage="center", average=Average("token")),
}
"""The same advantage, r - mean, so that the average alone differs; the horizon becomes the run's limit."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Length of wrong and right answers to questions about words, once the run is under way."""
    cfg = config(AVERAGES[settings["average"]], seed, steps=settings["steps"], lr=settings["lr"], task="words",
                 max_tokens=settings["max_tokens"], schedule="constant")  # fmt: skip
    run(scratch, cfg)
    late = 3 * settings["steps"] // 4
    return {
        "wrong": mean_of(scratch, "length_wrong", last=late),
        "right": mean_of(scratch, "length_right", last=late),
        "reward": mean_of(scratch, "reward_mean", last=5),
        "curve": [y for _, y in curve(scratch, "length_wrong")],
    }


def read(cells: Cells) -> list[Figure]:
    """Wrong answers are longer under the per-answer average; right ones, and what is learned, are alike."""
    figures = []
    for other in ("constant", "token"):
        for name, what in (("wrong", "tokens of wrong answers"), ("reward", "reward at the end")):
            theirs, ours = column(cells["per_answer"], name), column(cells[other], name)
            gap, low, high = paired(theirs, ours)
            text = f"{what}: per answer {interval(theirs)[0]:.2f}, {other} {interval(ours)[0]:.2f}; {gap:+.2f} more"
            figures.append(
                Figure(
                    what=f"{what}, per answer against {other}",
                    before=interval(ours)[0],
                    after=interval(theirs)[0],
                    low=low,
                    high=high,
                    seen=low > 0 if name == "wrong" else low <= 0 <= high,
                    text=f"{text} [{low:+.2f}, {high:+.2f}]",
                )
            )
    return figures


STUDY = Study(
    name="length_bias",
    claim="an average per answer keeps wrong answers longer than a constant divisor does, at an equal reward",
    source="Liu et al. 2025 (arXiv 2503.20783), section 3.1",
    arms={
        name: {"average": name, "steps": 24, "lr": 5e-4, "max_tokens": 32} for name in AVERAGES
    },
    seeds=(0, 1, 2, 3, 4),
    sections=("23",),
    measure=measure,
    read=read,
)  # fmt: skip
