"""Golden run: PPO with a critic and the KL leash inside the reward."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import ppo
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column, ppo_config, start_and_end, train


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Share of right answers to new questions, at the start and the end, and what the critic foresees."""
    train(ppo, ppo_config(seed, **settings), scratch)
    return start_and_end(scratch) | {"foreseen": start_and_end(scratch, "explained_variance")["after"]}


def read(cells: Cells) -> list[Figure]:
    """Does it rise?"""
    before, after = column(cells["ppo"], "before"), column(cells["ppo"], "after")
    gain, low, high = paired(after, before)
    text = f"right answers {interval(before)[0]:.3f} → {interval(after)[0]:.3f}: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    figures = [
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
    foreseen, low, high = interval(column(cells["ppo"], "foreseen"))
    figures.append(
        Figure(
            what="explained variance",
            before=0.0,
            after=foreseen,
            low=low,
            high=high,
            seen=low > 0,
            text=f"the critic foresees {foreseen:.2f} of the returns [{low:.2f}, {high:.2f}]",
        )  # fmt: skip
    )
    return figures


STUDY = Study(
    name="ppo",
    claim="PPO raises the share of right answers by half or more in twelve steps, and its critic foresees returns",
    source="Schulman et al. 2017 (arXiv 1707.06347); Ziegler et al. 2019 (arXiv 1909.08593)",
    arms={"ppo": {}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
