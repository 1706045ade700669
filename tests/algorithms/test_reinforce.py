"""REINFORCE raises a reward, its baselines and credits are those of the formulas, and it says no where it must."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import test_group, toy
from posttrain.algorithms import reinforce
from posttrain.batch import TokenBatch
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.objectives.regularizers import Entropy, Kl
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim


def config(folder: Path, seed: int = 0, reward: str = "share", **changes) -> reinforce.Config:
    (folder / "reward.py").write_text(test_group.REWARD)
    base = reinforce.Config(
        model=toy.model(folder / "model", seed), template="posttrain",
        data=Data(path=toy.rows(folder / "tasks.jsonl", [{"prompt": w} for w in toy.WORDS])),
        reward=f"{folder / 'reward.py'}:{reward}", kl=Kl(where="reward", estimator="k1", beta=0.01),
        prompts=8, group_size=4, steps=24, sampling=SamplingParams(max_tokens=8),
        eval_every=0, optim=Optim(lr=1e-2), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def learn(baseline: str, seed: int, folder: Path) -> float:
    """Mean reward over the last three steps."""
    _, metrics = toy.run(reinforce, config(folder, seed, baseline=baseline), folder / "run")
    return sum(m["reward_mean"] for m in metrics[-3:]) / 3


# A random model writes "b" about once in 24 words: reward 0.04.
# Ten seeds of `cd tests && python -m algorithms.test_reinforce`, mean - 3 standard deviations: none
# 0.9255 - 3 x 0.0808, running 0.9892 - 3 x 0.0068, leave_one_out 0.9956 - 3 x 0.0042.
THRESHOLDS = {"none": 0.6831, "running": 0.9688, "leave_one_out": 0.9831}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("baseline", THRESHOLDS)
def test_the_reward_rises(tmp_path, baseline, seed):
    assert learn(baseline, seed, tmp_path) > THRESHOLDS[baseline]


def batch(rewards: list[list[float]], lengths: list[int], group: list[int]) -> tuple[torch.Tensor, TokenBatch]:
    """Answers after a prompt of two tokens."""
    n, t = len(rewards), 2 + max(lengths)
    place = torch.arange(t)
    mask = (place >= 2) & (place < 2 + torch.tensor(lengths)[:, None])
    found = torch.zeros(n, t)
    for i, row in enumerate(rewards):
        found[i, 2 : 2 + len(row)] = torch.tensor(row)
    rows = torch.arange(n)
    return found, TokenBatch(
        tokens=torch.zeros(n, t, dtype=torch.long), attend=place < 2 + torch.tensor(lengths)[:, None], mask=mask,
        trajectory=rows, group=torch.tensor(group), temperature=torch.ones(n),
    )  # fmt: skip


def test_a_token_is_credited_with_what_comes_after_it(tmp_path):
    rewards, b = batch([[1, 0, 2], [4, 2]], [3, 2], [0, 0])
    cfg = config(tmp_path, baseline="none", gamma=0.5)
    to_go = reinforce.credit(rewards, b, cfg)
    assert to_go.tolist() == [[0, 0, 1.5, 1, 2], [0, 0, 5, 2, 0]]
    total = reinforce.credit(rewards, b, replace(cfg, credit="total"))
    assert total.tolist() == [[0, 0, 1.5, 1.5, 1.5], [0, 0, 5, 5, 0]]


def test_the_baseline_is_the_others_or_the_past(tmp_path):
    rewards, b = batch([[0, 1], [0, 0], [3]], [2, 2, 1], [0, 0, 1])
    rewards, b = rewards[:2], b.select(torch.tensor([0, 1]))
    cfg = config(tmp_path, baseline="leave_one_out")
    assert reinforce.credit(rewards, b, cfg)[:, 2:].tolist() == [[1, 1], [-1, -1]]
    cfg = replace(cfg, baseline="running")
    assert reinforce.credit(rewards, b, cfg, running=0.25)[:, 2:].tolist() == [[0.75, 0.75], [-0.25, -0.25]]


def test_the_running_baseline_follows_what_was_rewarded_and_the_leash_is_logged(tmp_path):
    cfg = config(tmp_path, steps=3, kl=Kl(where="reward", estimator="k1", beta=0.2, target=1.0, horizon=64))
    _, metrics = toy.run(reinforce, cfg, tmp_path / "run")
    assert metrics[0]["kl_ref_answer"] == pytest.approx(0, abs=1e-5) and metrics[0]["kl_beta"] == 0.2
    assert metrics[1]["kl_beta"] == pytest.approx(0.2 * (1 - 0.2 * 32 / 64))  # far below its target
    for m in metrics:
        charge = m["kl_beta"] * m["kl_ref_answer"]
        assert m["reward_shaped"] == pytest.approx(m["reward_mean"] - charge, abs=1e-6)


def test_an_entropy_bonus_changes_the_step(tmp_path):
    _, plain = toy.run(reinforce, config(tmp_path, steps=4), tmp_path / "plain")
    _, bonus = toy.run(reinforce, config(tmp_path, steps=4, entropy=Entropy(weight=0.5)), tmp_path / "bonus")
    assert bonus[-1]["entropy"] > plain[-1]["entropy"]


def test_what_makes_no_sense_is_refused_together(tmp_path):
    with pytest.raises(ConfigError, match='baseline = "mean" is not one of none, running.*\n.*gamma = 2'):
        config(tmp_path, baseline="mean", gamma=2.0)
    with pytest.raises(ConfigError, match='group_size = 1: baseline = "leave_one_out" needs another answer'):
        config(tmp_path, baseline="leave_one_out", group_size=1)


if __name__ == "__main__":
    toy.record(**{b: lambda seed, folder, b=b: learn(b, seed, folder) for b in THRESHOLDS})
