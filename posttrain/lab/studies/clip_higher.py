"""DAPO's clip-higher: a wider upper edge lets rare tokens become likely, so that entropy lasts longer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.surrogate import Clip
from posttrain.recipes.stages import curve


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Entropy over the second half, what the clip cut, and the reward, with eight updates to a rollout."""
    objective = Objective(clip=Clip(low=0.2, high=settings["high"]), average=Average("token"))
    cfg = config(objective, seed, steps=settings["steps"], lr=settings["lr"], task="words", max_tokens=16,
                 schedule="constant", epochs=settings["epochs"], minibatches=4)  # fmt: skip
    run(scratch, cfg)
    late = settings["steps"] // 2
    return {
        "entropy": mean_of(scratch, "entropy", last=late),
        "cut": mean_of(scratch, "clip_high_share"),
        "reward": mean_of(scratch, "reward_mean", last=late),
        "curve": [y for _, y in curve(scratch, "entropy")],
    }


def read(cells: Cells) -> list[Figure]:
    """More entropy, fewer tokens cut above; what the reward says of it."""
    figures = []
    for other in ("0.28", "1.0"):
        for name, what, seen in (
            ("entropy", "entropy, second half", lambda low, high: low > 0),
            ("cut", "share of tokens cut above", lambda low, high: high < 0),
            ("reward", "reward, second half", lambda low, high: low > 0),
        ):
            narrow, wide = column(cells["0.2"], name), column(cells[other], name)
            gap, low, high = paired(wide, narrow)
            text = f"{what}: 0.2 → {interval(narrow)[0]:.4f}, {other} → {interval(wide)[0]:.4f}; {gap:+.4f}"
            figures.append(
                Figure(
                    what=f"{what}, upper edge {other} against 0.2",
                    before=interval(narrow)[0],
                    after=interval(wide)[0],
                    low=low,
                    high=high,
                    seen=seen(low, high),
                    text=f"{text} [{low:+.4f}, {high:+.4f}]",
                )
            )
    return figures


STUDY = Study(
    name="clip_higher",
    claim="a wider upper edge of the clip keeps entropy",
    source="Yu et al. 2025 (arXiv 2503.14476), section 3.1",
    arms={f"{high}": {"high": high, "steps": 20, "lr": 3e-4, "epochs": 2} for high in (0.2, 0.28, 1.0)},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
