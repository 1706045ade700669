"""Why SimPO runs away in length, and when it does not.

The pairs are the model's own, kept so that the chosen answer is the longer one in nine of ten ("confounded"), or
in as many as not ("balanced"). A loss on means per token pulls at the stop token with weight 1/|y|: up by 1/|y| of the
long winner, down by 1/|y| of the short loser. The sum is negative, so stopping is unlearned, whatever the answers say;
with sums, as in DPO, the two weights are equal. Hence the study also measures the log-probability of the stop token
itself, at the end of held-out answers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from posttrain import rng
from posttrain.algorithms import preference
from posttrain.batch import collate_pairs
from posttrain.data.rows import Data, pairs
from posttrain.lab.preference_runs import column, common, compared, graded, rise, start, trained, written
from posttrain.lab.study import Cells, Figure, Study
from posttrain.models.load import load
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.returns import last_token
from posttrain.train.learner import outputs


def confounded(path: Path, to: Path, share: float, seed: int) -> Path:
    """As many pairs as there are with a shorter winner, divided by its share, so that winners are longer in `share`."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    longer = [r for r in rows if len(r["chosen"]) > len(r["rejected"])]
    shorter = [r for r in rows if len(r["chosen"]) < len(r["rejected"])]
    n = min(len(longer) / share, len(shorter) / (1 - share))
    kept = longer[: round(n * share)] + shorter[: round(n * (1 - share))]
    return written(to, [kept[i] for i in rng.permutation(len(kept), seed, "confounded")])


def stopping(model: Path, path: Path) -> float:
    """Mean log-probability of the stop token at the end of all answers in a file of pairs."""
    loaded = load(model)
    batch = collate_pairs([row.pair for row in pairs(Data(path=str(path)), loaded).train])
    logp = outputs(loaded.model, batch, ("logp",), 16384).logp
    return float(logp[last_token(batch.mask)].mean())


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Of each loss the length of new portraits, gold's grade, and how likely stopping is at the end of answers."""
    torch.set_num_threads(1)
    model = start(scratch, seed)
    whole = compared(scratch, model, seed, given["prompts"])
    rows = confounded(whole, scratch / "kept.jsonl", given["longer"], seed)
    first = graded(model, seed)
    found = {f"start {name}": x for name, x in first.items()} | {"start stop": stopping(model, whole)}
    for name, how in given["losses"].items():
        cfg = preference.Config(
            loss=PreferenceLoss(**{k: v for k, v in how.items() if k != "lr"}),
            **common(model, rows, seed, steps=given["steps"], lr=how["lr"], held=0),
        )
        after = trained(scratch / name, preference, cfg)
        found |= {f"{name} {what}": x for what, x in graded(after, seed).items()}
        found[f"{name} stop"] = stopping(after, whole)
    return found


def read(cells: Cells) -> list[Figure]:
    """Lengths after each loss on both sets; and what became of the stop token."""
    figures = []
    for arm, seeds in cells.items():
        before = column(seeds, "start length")
        for name in LOSSES:
            figures.append(rise(f"{arm}, {name}: length", before, column(seeds, f"{name} length"), digits=1))
        figures.append(rise(f"{arm}: length after dpo and after simpo", column(seeds, "dpo length"),
                            column(seeds, "simpo length"), digits=1))  # fmt: skip
        for name in ("dpo", "simpo"):
            figures.append(rise(f"{arm}, {name}: log π(stop)", column(seeds, "start stop"),
                                column(seeds, f"{name} stop"), down=True))  # fmt: skip
        figures.append(rise(f"{arm}: gold after dpo and after simpo", column(seeds, "dpo gold"),
                            column(seeds, "simpo gold")))  # fmt: skip
    if len(cells) == 2:
        lengths = (column(seeds, "simpo length") for seeds in cells.values())
        figures.append(rise("simpo: length on confounded and on balanced pairs", *lengths, down=True, digits=1))
    return sorted(figures, key=lambda f: fmean((f.before, f.after)) < 0)


LOSSES = {
    "dpo": {"name": "dpo", "beta": 0.3, "lr": 5e-4},
    "simpo": {"name": "simpo", "beta": 2.0, "gamma": 1.0, "lr": 5e-4},
    "simpo_nll": {"name": "simpo", "beta": 2.0, "gamma": 1.0, "nll": 1.0, "lr": 5e-4},
    "dpo_norm": {"name": "dpo_norm", "beta": 5.0, "lr": 5e-4},
    "rdpo": {"name": "rdpo", "beta": 0.3, "alpha": 0.05, "lr": 5e-4},
}
_SIZE = {"prompts": 96, "steps": 24, "losses": LOSSES}

STUDY = Study(
    name="length_confounded",
    claim="on pairs whose winners are longer SimPO unlearns to stop, since it weighs the stop token by 1/|y|",
    source="Meng et al. 2024 (arXiv 2405.14734); Park et al. 2024 (arXiv 2403.19159)",
    arms={"confounded": {**_SIZE, "longer": 0.9}, "balanced": {**_SIZE, "longer": 0.5}},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
