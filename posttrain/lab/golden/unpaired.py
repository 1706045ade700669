"""Golden run: KTO on single verdicts about the model's own portraits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import unpaired
from posttrain.algorithms.unpaired import VerdictLoss
from posttrain.lab.preference_runs import column, common, compared, graded, rise, start, trained, values, written
from posttrain.lab.study import Cells, Figure, Study


def halves(pairs: Path, path: Path) -> Path:
    """Of every pair one answer alone, the chosen and the rejected by turns, as a verdict."""
    rows = []
    for i, row in enumerate(map(json.loads, pairs.read_text().splitlines())):
        side = "chosen" if i % 2 == 0 else "rejected"
        rows.append({"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"})
    return written(path, rows)


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Gold's grade of new portraits before and after, and how well held-out verdicts are foreseen."""
    model = start(scratch, seed)
    rows = halves(compared(scratch, model, seed, given["prompts"]), scratch / "verdicts.jsonl")
    same = common(model, rows, seed, steps=given["steps"], lr=given["lr"])
    after = trained(scratch / "kto", unpaired, unpaired.Config(loss=VerdictLoss(beta=given["beta"]), **same))
    good, bad = (values(scratch / "kto", f"eval_reward_{side}")[-1] for side in ("chosen", "rejected"))
    return {"before": graded(model, seed)["gold"], "after": graded(after, seed)["gold"], "good": good, "bad": bad}


def read(cells: Cells) -> list[Figure]:
    """Gold rises; held-out answers that were liked get more reward than the others."""
    seeds = cells["kto"]
    return [
        rise("gold", column(seeds, "before"), column(seeds, "after")),
        rise("reward of bad and of good answers", column(seeds, "bad"), column(seeds, "good"), digits=3),
    ]


STUDY = Study(
    name="unpaired",
    claim="KTO raises gold's grade of new portraits from thumbs up and down alone",
    source="Ethayarajh et al. 2024 (arXiv 2402.01306)",
    arms={"kto": {"prompts": 96, "steps": 32, "lr": 1e-3, "beta": 0.1}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
