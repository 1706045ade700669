"""Golden run: online DPO, gold judging what the policy writes at that moment."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import online_preference
from posttrain.data.rows import Data
from posttrain.lab.preference_runs import LINEAR, column, graded, rise, settings, start, trained, values
from posttrain.lab.study import Cells, Figure, Study
from posttrain.objectives.preference import PreferenceLoss
from posttrain.train.learner import Optim


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """The judge's grade in the first rollout and over the last three, and of portraits of people never asked about."""
    model = start(scratch, seed)
    cfg = online_preference.Config(
        model=str(model), data=Data(path="builtin:about", limit=2000), reward="gold",
        loss=PreferenceLoss(beta=given["beta"]), steps=given["steps"], prompts=16, group_size=4, eval_every=0,
        optim=Optim(lr=given["lr"], schedule=LINEAR), run=settings(seed),
    )  # fmt: skip
    after = trained(scratch / "online", online_preference, cfg)
    rated = values(scratch / "online", "reward_mean")
    return {
        "judged_before": rated[0],
        "judged_after": fmean(rated[-3:]),
        "before": graded(model, seed)["gold"],
        "after": graded(after, seed)["gold"],
    }


def read(cells: Cells) -> list[Figure]:
    """The grade rises, of people who are asked about and of others."""
    seeds = cells["online_dpo"]
    return [
        rise("grade of people asked about", column(seeds, "judged_before"), column(seeds, "judged_after")),
        rise("grade of others", column(seeds, "before"), column(seeds, "after")),
    ]


STUDY = Study(
    name="online_preference",
    claim="online DPO raises its judge's grade of what it writes, also of people it was never asked about",
    source="Guo et al. 2024 (arXiv 2402.04792)",
    arms={"online_dpo": {"steps": 16, "lr": 5e-4, "beta": 0.1}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
