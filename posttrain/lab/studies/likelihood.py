"""Where the probability of liked answers goes: DPO lets it fall, a cross-entropy term holds it.

Everything starts at one model and sees the same pairs in the same order, as many steps at one rate. What is measured is
the log-probability of chosen answers that were held out, per answer and in nats, and the gap to the rejected ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import preference
from posttrain.lab.preference_runs import column, common, compared, rise, start, trained, values
from posttrain.lab.study import Cells, Figure, Study
from posttrain.objectives.preference import PreferenceLoss


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Of each loss the log-probabilities of held-out answers after the first step and at the end."""
    model = start(scratch, seed)
    pairs = compared(scratch, model, seed, given["prompts"])
    found = {}
    for name, how in given["losses"].items():
        same = common(model, pairs, seed, steps=given["steps"], lr=given["lr"], held=48)
        cfg = preference.Config(loss=PreferenceLoss(**how), **(same | {"eval_every": 1}))
        trained(scratch / name, preference, cfg)
        for side in ("chosen", "rejected"):
            seen = values(scratch / name, f"eval_logp_{side}")
            found |= {f"{name} {side} before": seen[0], f"{name} {side} after": seen[-1]}
    return found


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
            "prompts": 64, "steps": 40, "lr": 1e-3,
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
)  # fmt: skip
