"""Golden runs of the group family: one preset of each kind of idea, each on its own short run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired

ARMS = {
    "dr_grpo": {},
    "dapo": {"minibatches": 2},
    "gspo": {"minibatches": 2},
    "cispo": {"minibatches": 2},
    "rloo": {},
    "remax": {},
    "reinforce_pp": {"minibatches": 2},
    "otb": {},
    "gdpo": {"reward": "auto + 0.5 * ended"},
}
"""Preset -> what it needs besides: several updates where its ratio is to move, several rewards."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Share of right answers to questions about words, over the first two steps and the last three."""
    changes = {name: value for name, value in settings.items() if name not in ("preset", "steps", "lr")}
    cfg = config(settings["preset"], seed, steps=settings["steps"], lr=settings["lr"], task="words", max_tokens=16,
                 **changes)  # fmt: skip
    run(scratch, cfg)
    right = "reward_part_verify" if "reward" in changes else "reward_mean"
    return {"before": mean_of(scratch, right, first=2), "after": mean_of(scratch, right, last=3)}


def read(cells: Cells) -> list[Figure]:
    """Each of them learns: the share rises by a third of all answers, and the interval leaves no doubt."""
    figures = []
    for name, cell in cells.items():
        before, after = column(cell, "before"), column(cell, "after")
        gain, low, high = paired(after, before)
        text = f"{name}: right {interval(before)[0]:.2f} → {interval(after)[0]:.2f} [{low:+.2f}, {high:+.2f}]"
        figures.append(
            Figure(
                what=f"{name}: right answers",
                before=interval(before)[0],
                after=interval(after)[0],
                low=low,
                high=high,
                seen=low > 0 and gain > 1 / 3,
                text=text,
            )
        )
    return figures


STUDY = Study(
    name="presets",
    claim="every kind of relative of GRPO learns: other baselines, ratios, clips, averages, several rewards",
    source="Section 24 of the book; papers in `posttrain methods`",
    arms={name: {"preset": name, "steps": 16, "lr": 1e-3, **more} for name, more in ARMS.items()},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
