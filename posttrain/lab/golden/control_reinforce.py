"""Golden run: REINFORCE with a critic as baseline, on CartPole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.control import reinforce
from posttrain.lab.control_runs import cart, rise, run
from posttrain.lab.study import Study


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Return of the first batch and of the last three."""
    return run(reinforce, cart(seed, reinforce, **settings), scratch)


STUDY = Study(
    name="control_reinforce",
    claim="REINFORCE keeps CartPole's pole up several times as long after thirty updates.",
    source="Williams 1992",
    arms={"reinforce": {"steps": 30}},
    seeds=(0, 1, 2),
    measure=measure,
    read=rise("reinforce", "steps that the pole stands"),
)
