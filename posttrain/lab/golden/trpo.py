"""Golden run: TRPO on CartPole, and whether every step stays within its bound."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.control import trpo
from posttrain.lab.control_runs import cart, column, rise, run
from posttrain.lab.study import Cells, Figure, Study
from posttrain.recipes.stages import curve

DELTA = 0.02


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Return of the first batch and of the last three, and the largest KL of a step."""
    found = run(trpo, cart(seed, trpo, **settings), scratch)
    return found | {"kl": max(y for _, y in curve(scratch, "kl_trust"))}


def read(cells: Cells) -> list[Figure]:
    """Does the return rise, and does the bound hold?"""
    most = column(cells["trpo"], "kl")
    text = f"largest kl(old ‖ new) of any step {max(most):.5f} nats, bound {DELTA}"
    held = Figure(what="largest KL", before=DELTA, after=max(most), low=min(most), high=max(most),
                  seen=max(most) <= DELTA, text=text)  # fmt: skip
    return [*rise("trpo", "steps that the pole stands")(cells), held]


STUDY = Study(
    name="trpo",
    claim="TRPO keeps CartPole's pole up several times as long after twelve steps, none of them beyond its KL bound.",
    source="Schulman et al. 2015 (arXiv 1502.05477)",
    arms={"trpo": {"delta": DELTA}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
