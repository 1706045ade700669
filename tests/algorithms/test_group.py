"""The group family raises a reward of the user's own on a tiny model, and stops where the reward cannot teach."""

from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import toy
from posttrain.algorithms import group
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError, InvariantError
from posttrain.objectives.average import Average
from posttrain.objectives.presets import PRESETS
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim

REWARD = """
def share(task, trajectory):
    words = trajectory.completion.split()
    return words.count("b") / 8

def nothing(task, trajectory):
    return None

def constant(task, trajectory):
    return 1.0
"""
HORIZON = Average("constant", horizon=8)


def config(folder: Path, seed: int = 0, preset: str = "grpo", reward: str = "share", **changes) -> group.Config:
    (folder / "reward.py").write_text(REWARD)
    objective = PRESETS[preset]
    if objective.average.kind == "constant":
        objective = replace(objective, average=HORIZON)
    base = group.Config(
        model=toy.model(folder / "model", seed), template="posttrain",
        data=Data(path=toy.rows(folder / "tasks.jsonl", [{"prompt": w} for w in toy.WORDS])),
        reward=f"{folder / 'reward.py'}:{reward}", objective=objective, prompts=4, group_size=8, steps=12,
        sampling=SamplingParams(max_tokens=8), eval_every=0, optim=Optim(lr=1e-2), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def reward(preset: str, seed: int, folder: Path) -> float:
    """Mean reward over the last three steps."""
    _, metrics = toy.run(group, config(folder, seed, preset), folder / "run")
    return sum(m["reward_mean"] for m in metrics[-3:]) / 3


# A random model writes "b" about once in 24 words: reward 0.04.
# `cd tests && python -m algorithms.test_group`: RECORDED
THRESHOLDS = {"grpo": 0.3, "dr_grpo": 0.3, "rloo": 0.3, "reinforce": 0.3, "dapo": 0.3}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("preset", THRESHOLDS)
def test_the_reward_rises(tmp_path, preset, seed):
    assert reward(preset, seed, tmp_path) > THRESHOLDS[preset]


if __name__ == "__main__":
    toy.record(**{p: lambda seed, folder, p=p: reward(p, seed, folder) for p in THRESHOLDS})
