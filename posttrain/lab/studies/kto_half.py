"""KTO on half of what DPO sees: of every pair one answer alone, liked or not.

Same start, same comparisons, same number of optimizer steps and of rows in each. Step size and strength of either
method are the best of three candidates, (5e-4, 0.3), (1e-3, 0.3) and (1e-3, 0.1), on a seed that is not reported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import preference, unpaired
from posttrain.algorithms.unpaired import VerdictLoss
from posttrain.lab.golden.unpaired import halves
from posttrain.lab.preference_runs import column, common, compared, graded, rise, start, trained
from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.objectives.preference import PreferenceLoss


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Gold's grade of new portraits: at the start, after DPO on pairs, after KTO on verdicts."""
    model = start(scratch, seed)
    pairs = compared(scratch, model, seed, given["prompts"])
    rows = halves(pairs, scratch / "verdicts.jsonl")
    same = {"steps": given["steps"], "held": 16}
    dpo = preference.Config(loss=PreferenceLoss(name="dpo", beta=given["dpo"]["beta"]),
                            **common(model, pairs, seed, lr=given["dpo"]["lr"], **same))  # fmt: skip
    kto = unpaired.Config(loss=VerdictLoss(beta=given["kto"]["beta"]),
                          **common(model, rows, seed, lr=given["kto"]["lr"], batch_size=32, **same))  # fmt: skip
    made = {
        "start": model,
        "dpo": trained(scratch / "dpo", preference, dpo),
        "kto": trained(scratch / "kto", unpaired, kto),
    }
    return {name: graded(path, seed, prompts=96)["gold"] for name, path in made.items()}


def read(cells: Cells) -> list[Figure]:
    """Both gain; the lower end of KTO's share of DPO's gain is held against nine tenths."""
    seeds = cells["portraits"]
    before, dpo, kto = (column(seeds, name) for name in ("start", "dpo", "kto"))
    gains = [[a - b for a, b in zip(after, before, strict=True)] for after in (dpo, kto)]
    whole = sum(gains[0]) / len(gains[0])
    share, low, high = interval([k / whole for k in gains[1]]) if whole > 0 else (0.0, 0.0, 0.0)
    text = f"KTO reaches {share:.2f} [{low:.2f}, {high:.2f}] of DPO's mean gain of {whole:.2f}"
    return [
        rise("gold after dpo", before, dpo),
        rise("gold after kto", before, kto),
        Figure(what="share of the gain", before=1.0, after=share, low=low, high=high, seen=low >= 0.9, text=text),
    ]


STUDY = Study(
    name="kto_half",
    claim="KTO on single verdicts, half of DPO's answers, reaches 90 % of its gain in gold",
    source="Ethayarajh et al. 2024 (arXiv 2402.01306)",
    arms={
        "portraits": {
            "prompts": 96, "steps": 32, "dpo": {"lr": 1e-3, "beta": 0.3}, "kto": {"lr": 1e-3, "beta": 0.1},
        }
    },
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)  # fmt: skip
