"""Small runs on control tasks."""

from pathlib import Path

import pytest

pytest.importorskip("gymnasium", reason="control tasks need the extra control")

from algorithms import toy  # noqa: E402

from posttrain.control import ppo, reinforce, segments, trpo  # noqa: E402
from posttrain.control.learning import Task  # noqa: E402
from posttrain.control.predictor import Predictor  # noqa: E402

CART = Task(envs=4, horizon=64, hidden=(16,))
SWING = Task(env="Pendulum-v1", envs=4, horizon=50, hidden=(16,))


def config(name: str, seed: int = 0, **run):
    """Three or more quick steps of a method."""
    settings = toy.quiet(seed, **run)
    match name:
        case "reinforce":
            return reinforce.Config(episodes=4, steps=4, hidden=(16,), critic_updates=2, run=settings)
        case "trpo":
            return trpo.Config(task=CART, steps=4, critic_updates=2, run=settings)
        case "ppo":
            return ppo.Config(task=CART, steps=4, run=settings)
        case "segments":
            return segments.Config(
                task=SWING, steps=4, segment=10, comparisons=24, update=ppo.Update(epochs=1, minibatches=2),
                predictor=Predictor(hidden=(8,), first_updates=5, updates=2, batch=8), run=settings,
            )  # fmt: skip


MODULES = {"reinforce": reinforce, "trpo": trpo, "ppo": ppo, "segments": segments}


def run(name: str, cfg, folder: Path) -> list[dict]:
    """Train, and the lines of metrics.jsonl."""
    return toy.run(MODULES[name], cfg, folder)[1]
