"""How many comparisons a learned reward needs on Pendulum, and whether it helps to ask where the ensemble disagrees.

All arms see the same number of environment steps. The labeller is synthetic and wrong in one answer of ten.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.control import ppo, segments
from posttrain.lab.control_runs import column, compare, pendulum, run
from posttrain.lab.study import Cells, Figure, Study
from posttrain.recipes.stages import curve

COUNTS = (150, 300, 700)


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """True return, and how like the true reward the learned one is on the last batch."""
    method = segments if "comparisons" in settings else ppo
    found = run(method, pendulum(seed, **settings), scratch)
    like = [y for _, y in curve(scratch, "reward_correlation")] if method is segments else [1.0]
    return found | {"like": like[-1]}


def read(cells: Cells) -> list[Figure]:
    """More comparisons, better questions, and the distance to the true reward."""
    true = column(cells["true reward"], "after")
    figures = []
    for count in COUNTS:
        ours = column(cells[f"disagreement {count}"], "after")
        figures.append(compare(f"{count} comparisons", ours, column(cells[f"disagreement {count}"], "before"),
                               f"true return from {count} comparisons, start to end"))  # fmt: skip
    most, least = (column(cells[f"disagreement {n}"], "after") for n in (COUNTS[-1], COUNTS[0]))
    figures.append(compare("700 against 150", most, least, "true return from 700 comparisons instead of 150"))
    figures.append(compare("700 against the true reward", most, true, "true return from 700 comparisons instead of the "
                           "true reward (seen: no difference)", sign=0))  # fmt: skip
    for count in COUNTS:
        ours, any_pair = (column(cells[f"{q} {count}"], "after") for q in ("disagreement", "random"))
        figures.append(compare(f"queries, {count}", ours, any_pair, f"true return from {count} comparisons, asked by "
                               "disagreement instead of at random"))  # fmt: skip
    return figures


STUDY = Study(
    name="comparisons_asked",
    claim="More comparisons give a higher true return, up to that of the true reward; disagreement asks better ones.",
    source="Christiano et al. 2017 (arXiv 1706.03741), sections 3.1 and 3.3",
    arms={"true reward": {"steps": 45}} | {
        f"{queries} {count}": {"steps": 45, "comparisons": count, "queries": queries}
        for queries in ("disagreement", "random") for count in COUNTS
    },
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)  # fmt: skip
