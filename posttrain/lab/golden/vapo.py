"""Golden run: VAPO: a pre-trained critic, λ by length, a loss on right answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import vapo
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column, start_and_end, train, vapo_config


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Share of right answers to new questions, at the start and the end, and what the critic foresees."""
    train(vapo, vapo_config(seed, **settings), scratch)
    return start_and_end(scratch) | {"foreseen": start_and_end(scratch, "explained_variance")["after"]}


def read(cells: Cells) -> list[Figure]:
    """Does it rise? Of returns that are nearly all 1 at the end there is little to foresee."""
    before, after = column(cells["vapo"], "before"), column(cells["vapo"], "after")
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
        )
    ]


STUDY = Study(
    name="vapo",
    claim="VAPO raises the share of right answers by half or more in nine steps after its critic was trained",
    source="Yue et al. 2025 (arXiv 2504.05118)",
    arms={"vapo": {}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
