"""The group family raises a reward of the user's own on a tiny model, and stops where the reward cannot teach."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import toy
from posttrain.algorithms import group
from posttrain.batch import TokenBatch
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError, InvariantError
from posttrain.models.lora import Lora
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.token_masks import Focus
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim, Outputs

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
        reward=f"{folder / 'reward.py'}:{reward}", objective=objective, prompts=4, group_size=8, steps=16,
        sampling=SamplingParams(max_tokens=8), eval_every=0, optim=Optim(lr=1e-2), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def reward(preset: str, seed: int, folder: Path) -> float:
    """Mean reward over the last three steps."""
    _, metrics = toy.run(group, config(folder, seed, preset), folder / "run")
    return sum(m["reward_mean"] for m in metrics[-3:]) / 3


# A random model writes "b" about once in 24 words: reward 0.04.
# Ten seeds of `cd tests && python -m algorithms.test_group`, mean - 3 standard deviations: grpo 0.9605 - 3 x 0.0232,
# dr_grpo 0.9776 - 3 x 0.0176, rloo 0.9017 - 3 x 0.0791, reinforce 0.8724 - 3 x 0.0809, dapo 0.9732 - 3 x 0.0247.
THRESHOLDS = {"grpo": 0.8911, "dr_grpo": 0.9249, "rloo": 0.6645, "reinforce": 0.6298, "dapo": 0.8991}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("preset", THRESHOLDS)
def test_the_reward_rises(tmp_path, preset, seed):
    assert reward(preset, seed, tmp_path) > THRESHOLDS[preset]


# --- rewards that cannot teach -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["grpo", "reinforce", "dapo"])
def test_a_constant_reward_stops_after_five_batches(tmp_path, preset):
    cfg = config(tmp_path, preset=preset, reward="constant")
    with pytest.raises(InvariantError, match="5 silent batches in a row in step 4"):
        toy.run(group, cfg, tmp_path / "run")
    assert len(toy.lines(tmp_path / "run" / "metrics.jsonl")) == 4
    assert {s["step"] for s in toy.lines(tmp_path / "run" / "samples.jsonl")} == set(range(5))


def test_silence_is_counted_through_a_checkpoint(tmp_path):
    """The fifth silent batch stops a resumed run as well."""
    cfg = config(tmp_path, reward="constant", run=toy.quiet(save_every=2))
    for step in (4, 4):
        with pytest.raises(InvariantError, match=f"5 silent batches in a row in step {step}"):
            toy.run(group, cfg, tmp_path / "run")


def test_a_reward_that_always_abstains_stops_at_once_and_the_samples_say_why(tmp_path):
    with pytest.raises(InvariantError, match="100.0% of answers could not be scored.*samples.jsonl says why"):
        toy.run(group, config(tmp_path, reward="nothing"), tmp_path / "run")
    samples = toy.lines(tmp_path / "run" / "samples.jsonl")
    assert samples and all(s["score"]["why"] == "nothing: the reward returned None" for s in samples)


@pytest.mark.parametrize(("preset", "size"), [("reinforce", 1), ("reinforce_pp", 1)])
def test_answers_without_a_group_are_compared_over_the_batch(tmp_path, preset, size):
    """One answer per prompt is no silence where the baseline is not the group's."""
    _, metrics = toy.run(group, config(tmp_path, preset=preset, group_size=size, prompts=16, steps=7), tmp_path / "run")
    assert len(metrics) == 7


def test_one_sample_per_prompt_is_refused_where_the_group_is_the_baseline(tmp_path):
    with pytest.raises(ConfigError, match="group_size = 1: .*needs at least 2"):
        config(tmp_path, group_size=1)


def test_a_silent_first_batch_makes_no_step(tmp_path):
    """Most first answers of a weak model fail alike: that is no reason to stop a run."""
    (tmp_path / "reward.py").write_text(REWARD)
    rare = "\n\ndef rare(task, trajectory):\n    return float(len(calls.append(1) or calls) > 32 and len(calls) % 2)\n"
    cfg = config(tmp_path, reward="rare", steps=3)
    (tmp_path / "reward.py").write_text(REWARD + "\ncalls = []\n" + rare)
    _, metrics = toy.run(group, cfg, tmp_path / "run")
    assert metrics[0]["zero_variance_share"] == 1 and "loss" not in metrics[0]
    assert metrics[1]["zero_variance_share"] == 0 and "loss" in metrics[1]


def test_minibatches_are_at_most_the_groups_that_teach(tmp_path):
    """DAPO drops groups of equal rewards; fewer than the minibatches asked for may remain."""
    cfg = config(tmp_path, preset="dapo", steps=2, minibatches=4)
    rare = "\ndef some(task, trajectory):\n    return len(trajectory.completion) % 7 * (task.prompt[0].content < 'e')\n"
    (tmp_path / "reward.py").write_text(REWARD + rare)
    cfg = replace(cfg, reward=cfg.reward.replace(":share", ":some"))
    _, metrics = toy.run(group, cfg, tmp_path / "run")
    assert any(0 < m["zero_variance_share"] < 1 for m in metrics)


def test_a_prompt_without_room_for_an_answer(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": " ".join(toy.WORDS * 2)}]
    data = Data(path=toy.rows(tmp_path / "long.jsonl", rows))
    with pytest.raises(DataError, match=r"line 2.*35 tokens and leaves no room .* within 32.*on_bad_row"):
        toy.run(group, config(tmp_path, data=data), tmp_path / "run")
    cfg = config(tmp_path, data=replace(data, on_bad_row="skip"), steps=1)
    toy.run(group, cfg, tmp_path / "skipped")
    assert "1 left out" in (tmp_path / "skipped" / "log.txt").read_text()


def test_the_weights_of_tie_and_bonus_move_after_a_step():
    measured = {"kl_old": (0.06, 2.0), "entropy": (0.2, 2.0)}  # 0.03 and 0.1 nats per token
    objective = replace(PRESETS["skywork_or1"], proximal=PRESETS["ppo_penalty"].proximal)
    state = group.first_weights(objective)
    assert state == {"beta": 0.0, "tie": 1.0, "entropy": 0.0, "bonus": 0.0}
    assert group.next_weights(objective, state, measured) == {"tie": 2.0, "entropy": 0.005, "bonus": 0.005}
    calm = measured | {"entropy": (0.8, 2.0)}
    assert group.next_weights(objective, state | {"entropy": 0.01}, calm) == {"tie": 2.0, "entropy": 0.005, "bonus": 0}
    fixed = group.first_weights(PRESETS["grpo"])
    assert fixed | group.next_weights(PRESETS["grpo"], fixed, measured) == fixed


@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_becomes_the_policy_every_few_steps(tmp_path, rank):
    """The distance is measured before a step's update: nothing at the start and right after the reference moved."""
    cfg = config(tmp_path, steps=6, reference_every=3, lora=Lora(rank=rank))
    _, metrics = toy.run(group, cfg, tmp_path / "run")
    near = [m["kl_ref_k3"] < 1e-9 for m in metrics]
    assert near == [True, False, False, True, False, False]


def test_tokens_are_drawn_by_the_seed():
    n, t = 8, 6
    rows, logp = torch.arange(n), -torch.rand(n, t)
    mask = torch.ones(n, t, dtype=torch.bool)
    batch = TokenBatch(
        tokens=torch.zeros(n, t, dtype=torch.long), attend=mask, mask=mask, trajectory=rows, group=rows,
        temperature=torch.ones(n), weights={"token": mask.float()}, advantage=torch.randn(n, t), sampled_logp=logp,
    )  # fmt: skip
    objective = Objective(clip=Clip(low=1.0, high=1.0), focus=Focus(kind="covariance", share=0.1, low=0.0))
    state = group.first_weights(objective)

    def kept(seed):
        ((_, value, _),), metrics = group.policy_terms(Outputs(logp=logp), batch, objective, state, seed)
        assert float(metrics["focus_share"][0]) == n * t - 4
        return value != 0

    assert torch.equal(kept(7), kept(7)) and not torch.equal(kept(7), kept(8))


if __name__ == "__main__":
    toy.record(**{p: lambda seed, folder, p=p: reward(p, seed, folder) for p in THRESHOLDS})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises_in_bfloat16_and_the_gap_between_sampler_and_learner_is_logged(tmp_path, seed):
    cfg = config(tmp_path, seed)
    _, metrics = toy.run(group, replace(cfg, optim=replace(cfg.optim, precision="bfloat16")), tmp_path / "run")
    assert sum(m["reward_mean"] for m in metrics[-3:]) / 3 > THRESHOLDS["grpo"]
    assert all(1e-6 < m["sampler_gap_mean"] < 0.05 for m in metrics)
