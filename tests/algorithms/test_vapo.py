"""VAPO trains its critic first, credits by length, learns right answers a second time, and raises a reward."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import test_ppo, toy
from algorithms.test_reinforce import batch
from posttrain.algorithms import vapo
from posttrain.batch import weigh
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.objectives.average import Average
from posttrain.objectives.returns import gae
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim, Outputs


def config(folder: Path, seed: int = 0, reward: str = "share", **changes) -> vapo.Config:
    (folder / "reward.py").write_text(test_ppo.REWARD)
    base = vapo.Config(
        model=toy.model(folder / "model", seed), template="posttrain",
        data=Data(path=toy.rows(folder / "tasks.jsonl", [{"prompt": w} for w in toy.WORDS])),
        reward=f"{folder / 'reward.py'}:{reward}", right=0.8, alpha=0.5, pretrain_steps=2,
        prompts=8, group_size=4, minibatches=2, epochs=2, steps=16, sampling=SamplingParams(max_tokens=8),
        eval_every=0, optim=Optim(lr=1e-2), critic_optim=Optim(lr=5e-3), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def learn(metric: str, seed: int, folder: Path) -> float:
    """Mean of a metric over the last three steps."""
    _, metrics = toy.run(vapo, config(folder, seed), folder / "run")
    return sum(m[metric] for m in metrics[-3:]) / 3


# As in test_ppo, 0.25 of the reward are the prompts'; a random model begins at 0.29.
# Ten seeds of `cd tests && python -m algorithms.test_vapo`, mean - 3 standard deviations: reward 1.1160 - 3 x 0.1451,
# explained variance 0.7639 - 3 x 0.2390.
THRESHOLDS = {"reward_mean": 0.6807, "explained_variance": 0.0469}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises_and_the_critic_foresees_it(tmp_path, seed):
    _, metrics = toy.run(vapo, config(tmp_path, seed), tmp_path / "run")
    for metric, threshold in THRESHOLDS.items():
        assert sum(m[metric] for m in metrics[-3:]) / 3 > threshold, metric


def test_the_critic_is_trained_before_the_policy(tmp_path):
    """It fits the frozen policy's returns; those it can foresee are the prompts' share."""
    _, metrics = toy.run(vapo, config(tmp_path, steps=8, pretrain_steps=6), tmp_path / "run")
    assert ["value_loss" in m and "loss" not in m for m in metrics] == [True] * 6 + [False] * 2
    assert metrics[0]["explained_variance"] == pytest.approx(0, abs=1e-6) and metrics[5]["explained_variance"] > 0.05


def test_lambda_grows_with_the_answer_and_the_critic_sees_whole_returns(tmp_path):
    rewards, b = batch([[0, 0, 1], [0, 0, 0, 0, 0, 2]], [3, 6], [0, 1])
    b = b.with_(old_value=torch.full(b.mask.shape, 0.5))
    found = vapo.with_advantages(b, rewards, config(tmp_path, alpha=0.5))
    assert found.value_target[b.mask].tolist() == [1.0] * 3 + [2.0] * 6
    lams = torch.tensor([1 - 1 / (0.5 * 3), 1 - 1 / (0.5 * 6)])
    slow = [gae(rewards[i : i + 1], b.old_value[i : i + 1], b.mask[i : i + 1], lam=float(lams[i]))[0] for i in (0, 1)]
    raw = torch.cat(slow)[b.mask]
    assert torch.allclose(found.advantage[b.mask], (raw - raw.mean()) / raw.std(), atol=1e-5)


def test_right_answers_are_averaged_over_their_own_tokens():
    _, b = batch([[0, 0, 1], [0, 0, 0, 0, 0, 2], [1]], [3, 6, 1], [0, 1, 2])
    b = vapo.weigh_right(weigh(b.with_(label=torch.tensor([1.0, 0.0, 1.0])), Average("token")))
    logp = -torch.rand(b.mask.shape)
    metrics = {}
    (term,) = vapo.positive_terms(Outputs(logp=logp), b, 0.1, metrics)
    right = torch.cat([logp[0, 2:5], logp[2, 2:3]])
    assert float((term.value * term.weight).sum()) == pytest.approx(-0.1 * float(right.mean()), rel=1e-5)
    total, count = metrics["positive_nll"]
    assert float(total / count) == pytest.approx(-float(right.mean()), rel=1e-5)
    assert vapo.positive_terms(Outputs(logp=logp), b, 0.0, metrics) == []


def test_nothing_right_adds_nothing(tmp_path):
    """The two runs see no right answer, so μ cannot matter."""
    runs = []
    for weight in (0.0, 0.5):
        cfg = config(tmp_path, positive=weight, right=99.0, steps=3, pretrain_steps=1)
        runs.append(toy.run(vapo, cfg, tmp_path / str(weight))[1])
    assert [m["reward_mean"] for m in runs[0]] == [m["reward_mean"] for m in runs[1]]
    assert not any("positive_nll" in m for m in runs[1])


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="pretrain_steps = 16 must leave the policy some of 16 steps"):
        config(tmp_path, pretrain_steps=16)
    with pytest.raises(ConfigError, match="alpha = 0.0 must be positive.*\n.*positive = -1"):
        config(tmp_path, alpha=0.0, positive=-1.0)


if __name__ == "__main__":
    toy.record(**{m: lambda seed, folder, m=m: learn(m, seed, folder) for m in THRESHOLDS})
