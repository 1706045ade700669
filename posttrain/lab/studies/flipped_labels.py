"""Labels that are wrong: DPO, which believes them all, beside the two losses that expect a share of flips.

The pairs are the start's own answers in gold's order, without noise; then a share of the training labels is turned
around. Held-out pairs keep gold's order, so that what is measured is what was learned of the truth. Step size and
number of steps are those of `one_loss`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain import rng
from posttrain.algorithms import preference
from posttrain.assets.world import demos, people
from posttrain.data.rows import Data
from posttrain.lab.preference_runs import column, common, rise, start, trained, values, written
from posttrain.lab.study import Cells, Figure, Study
from posttrain.models.load import load
from posttrain.objectives.preference import PreferenceLoss
from posttrain.recipes import comparisons
from posttrain.recipes.measure import gold_of


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Of each loss the share of held-out pairs that it orders as gold does, and how far the training margins went."""
    model = start(scratch, seed)
    rows = true_pairs(model, seed, given["prompts"])
    held = written(scratch / "held.jsonl", rows[-given["held"] :])
    path = written(scratch / "pairs.jsonl", flipped(rows[: -given["held"]], given["share"], seed))
    same = common(model, path, seed, steps=given["steps"], lr=given["lr"], held=given["held"])
    found = {}
    for name, how in given["losses"].items():
        cfg = preference.Config(loss=PreferenceLoss(**how), **same)
        trained(scratch / name, preference, replace(cfg, data=Data(path=str(path), eval_path=str(held))))
        found[f"{name} in order"] = values(scratch / name, "eval_accuracy")[-1]
        found[f"{name} margin"] = values(scratch / name, "margin")[-1]
    return found


def true_pairs(model: Path, seed: int, prompts: int) -> list[dict[str, Any]]:
    """Pairs of the model's own answers that gold tells apart, the better one first."""
    asked = demos.about_prompts(people.SEEN, prompts, seed)
    drawn = comparisons.sampled(load(model), asked, 8, seed)
    apart = [said[i : i + 2] for said in drawn for i in range(0, 8, 2) if gold_of(said[i]) != gold_of(said[i + 1])]
    return comparisons.pairs(apart, lambda a, b: gold_of(a) > gold_of(b))


def flipped(rows: Sequence[Mapping[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The rows, with a share of the labels turned around."""
    wrong = set(rng.permutation(len(rows), seed, "flip")[: round(share * len(rows))])
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i in wrong else dict(row)
        for i, row in enumerate(rows)
    ]


def read(cells: Cells) -> list[Figure]:
    """Without flips DPO learns most; with them the two that expect flips do better than DPO, or do not."""
    seeds = cells["a fifth flipped"]
    dpo = column(seeds, "dpo in order")
    return [
        rise("no flips, and a fifth", column(cells["no flips"], "dpo in order"), dpo, down=True),
        rise("a fifth: dpo and cdpo", dpo, column(seeds, "cdpo in order")),
        rise("a fifth: dpo and robust", dpo, column(seeds, "robust in order")),
        rise("training margin: dpo and cdpo", column(seeds, "dpo margin"), column(seeds, "cdpo margin"), down=True),
    ]


DPO = {"name": "dpo", "beta": 0.1}
OTHERS = {name: {"name": name, "beta": 0.1, "label_smoothing": 0.2} for name in ("cdpo", "robust")}
ARM = {"prompts": 192, "held": 200, "steps": 60, "lr": 1e-3}

STUDY = Study(
    name="flipped_labels",
    claim="with a fifth of the labels wrong, losses that expect it learn the true order better than DPO",
    source="Chowdhury et al. 2024 (arXiv 2403.00409)",
    arms={
        "no flips": ARM | {"share": 0.0, "losses": {"dpo": DPO}},
        "a fifth flipped": ARM | {"share": 0.2, "losses": {"dpo": DPO} | OTHERS},
    },
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
    sections=("16",),
)
