"""Golden run: DPO on comparisons of the model's own portraits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import preference
from posttrain.lab.preference_runs import column, common, compared, graded, rise, start, trained, values
from posttrain.lab.study import Cells, Figure, Study
from posttrain.objectives.preference import PreferenceLoss


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Gold's grade of new portraits before and after, and accuracy on held-out comparisons."""
    model = start(scratch, seed)
    pairs = compared(scratch, model, seed, given["prompts"])
    same = common(model, pairs, seed, steps=given["steps"], lr=given["lr"])
    cfg = preference.Config(loss=PreferenceLoss(name="dpo", beta=given["beta"]), **same)
    after = trained(scratch / "dpo", preference, cfg)
    return {
        "before": graded(model, seed)["gold"],
        "after": graded(after, seed)["gold"],
        "accuracy": values(scratch / "dpo", "eval_accuracy")[-1],
    }


def read(cells: Cells) -> list[Figure]:
    """Gold rises, and held-out pairs are told apart."""
    seeds = cells["dpo"]
    right = column(seeds, "accuracy")
    return [
        rise("gold", column(seeds, "before"), column(seeds, "after")),
        rise("accuracy", [0.5] * len(right), right, digits=3),
    ]


STUDY = Study(
    name="preference",
    claim="DPO on noisy comparisons of its own answers raises gold's grade of new portraits",
    source="Rafailov et al. 2023 (arXiv 2305.18290)",
    arms={"dpo": {"prompts": 64, "steps": 24, "lr": 5e-4, "beta": 0.3}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
