"""Training for the best of k answers instead of for each: pass@k at the end, and what it costs pass@1."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, measured, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective

PLAIN = Objective(average=Average("token"))
AIMS = {
    "pass@1": PLAIN,
    "pass@k": replace(PLAIN, advantage="pass_at_k_zscore", k=4),
    "pass@k, unbiased": replace(PLAIN, advantage="pass_at_k", k=4),
}


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Held-out chains: pass@1 and pass@8, and the entropy that is left."""
    cfg = config(AIMS[settings["aim"]], seed, steps=settings["steps"], lr=settings["lr"])
    after = measured(run(scratch, cfg), k=8, n=settings["problems"], seed=seed)
    return {
        "pass_1": after.pass_1.value,
        "pass_k": after.pass_k.value,
        "entropy": mean_of(scratch, "entropy", last=5),
    }


def read(cells: Cells) -> list[Figure]:
    """More entropy and a higher pass@8 than training for pass@1."""
    figures = []
    for aim in ("pass@k", "pass@k, unbiased"):
        for name, what in (("pass_k", "pass@8"), ("pass_1", "pass@1"), ("entropy", "entropy at the end")):
            plain, ours = column(cells["pass@1"], name), column(cells[aim], name)
            gap, low, high = paired(ours, plain)
            text = f"{what}: for pass@1 {interval(plain)[0]:.3f}, for {aim} {interval(ours)[0]:.3f}; {gap:+.3f}"
            figures.append(
                Figure(
                    what=f"{what}, trained for {aim} against pass@1",
                    before=interval(plain)[0],
                    after=interval(ours)[0],
                    low=low,
                    high=high,
                    seen=low > 0 if name != "pass_1" else high < 0,
                    text=f"{text} [{low:+.3f}, {high:+.3f}]",
                )
            )
    return figures


STUDY = Study(
    name="pass_at_k_training",
    claim="training for the best of k keeps entropy and pass@k, at the price of pass@1",
    source="Chen et al. 2025 (arXiv 2508.10751); Walder and Karkhanis 2025 (arXiv 2505.15201)",
    arms={aim: {"aim": aim, "steps": 24, "lr": 1e-3, "problems": 64} for aim in AIMS},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
