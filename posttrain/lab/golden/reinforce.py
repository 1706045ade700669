"""Golden run: plain policy gradients, with the mean of the other answers as baseline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import reinforce
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column, reinforce_config, start_and_end, train


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Share of right answers to new questions, in the first step and over the last three."""
    train(reinforce, reinforce_config(seed, **settings), scratch)
    return start_and_end(scratch)


def read(cells: Cells) -> list[Figure]:
    """Does it rise?"""
    before, after = column(cells["reinforce"], "before"), column(cells["reinforce"], "after")
    gain, low, high = paired(after, before)
    text = f"right answers {interval(before)[0]:.3f} → {interval(after)[0]:.3f}: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    return [
        Figure(
            what="right answers",
            before=interval(before)[0],
            after=interval(after)[0],
            low=low,
            high=high,
            seen=low > 0.5,
            text=text,
        )  # fmt: skip
    ]


STUDY = Study(
    name="reinforce",
    claim="REINFORCE with a baseline raises the share of right answers by half or more in twelve steps",
    source="Williams 1992; Ahmadian et al. 2024 (arXiv 2402.14740)",
    arms={"reinforce": {"baseline": "leave_one_out"}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
