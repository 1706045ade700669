"""Golden run: GRPO on sums that a program verifies, with pass@k before and after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, measured, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired

K = 16


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """pass@1 and pass@k on sums that training never poses, of the base and of what it became."""
    model = run(scratch, config("grpo", seed, steps=settings["steps"], lr=settings["lr"]))
    before, after = (measured(m, k=K, n=settings["problems"], seed=seed) for m in ("base", model))
    return {
        "pass_1_before": before.pass_1.value,
        "pass_k_before": before.pass_k.value,
        "pass_1": after.pass_1.value,
        "pass_k": after.pass_k.value,
    }


def read(cells: Cells) -> list[Figure]:
    """From under 30 % to over 80 %, two deviations between seeds away from either; and what pass@k does meanwhile."""
    figures = []
    for name, what in (("pass_1", "pass@1, held-out sums"), ("pass_k", f"pass@{K}, the same")):
        before, after = (interval(column(cells["grpo"], f"{name}{end}")) for end in ("_before", ""))
        gain, low, high = paired(column(cells["grpo"], name), column(cells["grpo"], f"{name}_before"))
        seen = low > 0 if name == "pass_k" else before[2] < 0.3 and after[1] > 0.8
        text = f"{what}: {before[0]:.3f} → {after[0]:.3f}, by {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=before[0], after=after[0], low=low, high=high, seen=seen, text=text))
    return figures


STUDY = Study(
    name="group",
    claim="GRPO takes a verifiable task from under 30 % to over 80 %, and pass@k rises with it",
    source="Shao et al. 2024 (arXiv 2402.03300)",
    arms={"grpo": {"steps": 40, "lr": 2e-3, "problems": 48}},
    seeds=(0, 1, 2),
    sections=("23",),
    measure=measure,
    read=read,
)
