"""Where the probability of liked answers goes: DPO lets it fall, a cross-entropy term holds it.

Everything starts at one model and sees the same pairs in the same order, as many steps at one rate. What is measured is
the log-probability of chosen answers that were held out, per answer and in nats, and the gap to the rejected ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import preference
from posttrain.batch import collate_pairs
from posttrain.data.rows import Data, pairs
from posttrain.lab.preference_runs import column, common, compared, rise, start, trained, values
from posttrain.lab.study import Cells, Figure, Study
from posttrain.models.load import load
from posttrain.objectives.preference import PreferenceLoss
from posttrain.train.learner import outputs

HELD = 48


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Of each loss the log-probabilities of held-out answers at the start and at the end."""
    model = start(scratch, seed)
    path = compared(scratch, model, seed, given["prompts"])
    before, found = at_start(model, path), {}
    for name, how in given["losses"].items():
        same = common(model, path, seed, steps=given["steps"], lr=given["lr"], held=HELD)
        cfg = preference.Config(loss=PreferenceLoss(**how), **same)
        trained(scratch / name, preference, cfg)
        for side in ("chosen", "rejected"):
            end = values(scratch / name, f"eval_logp_{side}")[-1]
            found |= {f"{name} {side} before": before[side], f"{name} {side} after": end}
    return found


def at_start(model: Path, path: Path) -> dict[str, float]:
    """What the start says of the held-out answers of both kinds."""
    loaded = load(model)
    batch = collate_pairs([row.pair for row in pairs(Data(path=str(path), eval_rows=HELD), loaded).held])
    logp = (outputs(loaded.model, batch, ("logp",), 16384).logp * batch.mask).sum(1)
    return {"chosen": float(logp[batch.label > 0].mean()), "rejected": float(logp[batch.label < 0].mean())}


def read(cells: Cells) -> list[Figure]:
    """Falls with DPO while the gap grows; not with a cross-entropy term beside the same loss."""
    seeds, figures = cells["pairs"], []

    def gap(name: str, when: str) -> list[float]:
        sides = (column(seeds, f"{name} {side} {when}") for side in ("chosen", "rejected"))
        return [a - b for a, b in zip(*sides, strict=True)]

    ends = {name: [column(seeds, f"{name} chosen {when}") for when in ("before", "after")]
            for name in ("dpo", "rpo", "dpop")}  # fmt: skip
    figures.append(rise("dpo: log π(chosen)", *ends["dpo"], down=True))
    figures.append(rise("dpo: log π(chosen) - log π(rejected)", gap("dpo", "before"), gap("dpo", "after")))
    for name, words in (("rpo", "with cross-entropy (rpo)"), ("dpop", "with a penalty (dpop)")):
        figures.append(rise(f"log π(chosen) at the end, dpo and {words}", ends["dpo"][1], ends[name][1]))
    figures.append(rise("rpo: log π(chosen)", *ends["rpo"]))
    figures.append(rise("rpo: log π(chosen) - log π(rejected)", gap("rpo", "before"), gap("rpo", "after")))
    return figures


STUDY = Study(
    name="likelihood",
    claim="DPO's chosen answers grow less likely while their lead grows; a cross-entropy term holds them",
    source="Pang et al. 2024 (arXiv 2404.19733); Pal et al. 2024 (arXiv 2402.13228)",
    arms={
        "pairs": {
            "prompts": 64, "steps": 30, "lr": 1e-3,
            "losses": {
                "dpo": {"name": "dpo", "beta": 0.1},
                "rpo": {"name": "rpo", "beta": 0.1, "nll": 1.0},
                "dpop": {"name": "dpop", "beta": 0.1},
            },
        }
    },
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
    sections=("16",),
)  # fmt: skip
