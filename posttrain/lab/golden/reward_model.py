"""Golden run: a reward model learns the rater from comparisons."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import reward_model
from posttrain.data.rows import Data
from posttrain.lab.preference_runs import LINEAR, column, rise, settings
from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.recipes.stages import stage
from posttrain.train.learner import Optim


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Accuracy on held-out comparisons, of all and of those between answers of one length; calibration."""
    cfg = reward_model.Config(
        template="posttrain", data=Data(path="builtin:preferences", limit=given["pairs"], eval_rows=200),
        batch_size=16, eval_every=1000, optim=Optim(lr=given["lr"], schedule=LINEAR), run=settings(seed),
    )  # fmt: skip
    found = stage(scratch, reward_model, cfg).metrics
    return {name: found[f"eval_{name}"] for name in ("accuracy", "accuracy_matched", "calibration_error")}


def read(cells: Cells) -> list[Figure]:
    """More often right than chance, and about as often as it is sure."""
    right = column(cells["pairs"], "accuracy")
    unsure, low, high = interval(column(cells["pairs"], "calibration_error"))
    text = f"how sure it is and how often it is right differ by {unsure:.3f} [{low:.3f}, {high:.3f}]"
    return [
        rise("accuracy", [0.5] * len(right), right, digits=3),
        Figure(what="calibration error", before=0.5, after=unsure, low=low, high=high, seen=high < 0.2, text=text),
    ]


STUDY = Study(
    name="reward_model",
    claim="a reward model orders held-out answers as the rater does, and is about as sure as it is right",
    source="Ouyang et al. 2022 (arXiv 2203.02155)",
    arms={"pairs": {"pairs": 480, "lr": 5e-4}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
