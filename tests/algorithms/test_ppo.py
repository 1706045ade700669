"""PPO raises a reward that depends on the prompt, and its critic comes to foresee it."""

from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import toy
from posttrain.algorithms import ppo
from posttrain.data.rows import Data
from posttrain.errors import InvariantError
from posttrain.objectives.presets import PRESETS
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim

REWARD = """
def share(task, trajectory):
    words = trajectory.completion.split()
    return words.count("b") / 8 + 0.5 * (task.prompt[0].content < "i")

def nothing(task, trajectory):
    return None

def constant(task, trajectory):
    return 1.0
"""


def config(folder: Path, seed: int = 0, reward: str = "share", **changes) -> ppo.Config:
    (folder / "reward.py").write_text(REWARD)
    leash = replace(PRESETS["ppo"].kl, beta=0.01)  # at 0.05, a "b" would cost more than it earns
    base = ppo.Config(
        model=toy.model(folder / "model", seed), template="posttrain",
        data=Data(path=toy.rows(folder / "tasks.jsonl", [{"prompt": w} for w in toy.WORDS])),
        reward=f"{folder / 'reward.py'}:{reward}", objective=replace(PRESETS["ppo"], kl=leash),
        prompts=32, steps=18, sampling=SamplingParams(max_tokens=8),
        eval_every=0, optim=Optim(lr=1e-2), critic_optim=Optim(lr=5e-3), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def learn(metric: str, seed: int, folder: Path) -> float:
    """Mean of a metric over the last three steps."""
    _, metrics = toy.run(ppo, config(folder, seed), folder / "run")
    return sum(m[metric] for m in metrics[-3:]) / 3


# Every step has each of the 16 prompts twice, so 0.25 of the reward is theirs; a random model begins at 0.29.
# Ten seeds of `cd tests && python -m algorithms.test_ppo`, mean - 3 standard deviations: reward 1.2352 - 3 x 0.0231,
# explained variance 0.9808 - 3 x 0.0195.
THRESHOLDS = {"reward_mean": 1.1658, "explained_variance": 0.9224}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises_and_the_critic_foresees_it(tmp_path, seed):
    _, metrics = toy.run(ppo, config(tmp_path, seed), tmp_path / "run")
    assert metrics[0]["explained_variance"] == pytest.approx(0, abs=1e-6)  # its head begins at zero
    for metric, threshold in THRESHOLDS.items():
        assert sum(m[metric] for m in metrics[-3:]) / 3 > threshold, metric


def test_a_reward_that_always_abstains_stops_at_once(tmp_path):
    with pytest.raises(InvariantError, match="100.0% of answers could not be scored.*samples.jsonl says why"):
        toy.run(ppo, config(tmp_path, reward="nothing"), tmp_path / "run")
    assert (tmp_path / "run" / "samples.jsonl").stat().st_size > 0


def test_a_constant_reward_stops_after_five_batches(tmp_path):
    with pytest.raises(InvariantError, match="5 silent batches in a row in step 4"):
        toy.run(ppo, config(tmp_path, reward="constant"), tmp_path / "run")


def test_warm_up_trains_the_critic_alone(tmp_path):
    _, metrics = toy.run(ppo, config(tmp_path, steps=4, warmup_steps=3), tmp_path / "run")
    assert ["value_loss" in m and "loss" not in m for m in metrics] == [True, True, True, False]
    assert all(m["kl_ref_k1"] == pytest.approx(0, abs=1e-5) for m in metrics if "kl_ref_k1" in m and m["step"] < 3)


if __name__ == "__main__":
    toy.record(**{m: lambda seed, folder, m=m: learn(m, seed, folder) for m in THRESHOLDS})
