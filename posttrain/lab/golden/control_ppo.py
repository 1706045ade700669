"""Golden run: PPO on CartPole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.control import ppo
from posttrain.lab.control_runs import cart, rise, run
from posttrain.lab.study import Study


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Return of the first batch and of the last three."""
    return run(ppo, cart(seed, ppo, **settings), scratch)


STUDY = Study(
    name="control_ppo",
    claim="PPO keeps CartPole's pole up several times as long after twelve batches of 1024 steps.",
    source="Schulman et al. 2017 (arXiv 1707.06347)",
    arms={"ppo": {}},
    seeds=(0, 1, 2),
    measure=measure,
    read=rise("ppo", "steps that the pole stands"),
)
