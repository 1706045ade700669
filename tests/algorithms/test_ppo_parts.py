"""What PPO may have besides its two losses: text beside answers, a scale for scores, a price on missing ends, a reward
model, an early stop, a tie with a target; and that one model's gradients are gone when the other's turn comes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import test_reward_model, toy
from algorithms.test_ppo import config
from algorithms.test_reinforce import batch
from posttrain.algorithms import onpolicy, ppo, reward_model
from posttrain.algorithms.plan import demand, rows_of
from posttrain.algorithms.ppo import Ptx
from posttrain.algorithms.shaping import Shaping, first_scale, shaped, was_cut
from posttrain.chat.render import render
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.models.heads import ScalarModel
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.regularizers import Kl, Proximal
from posttrain.records import Group, Message, Score, Segment, Stop, Task, Trajectory
from posttrain.rewards.base import score
from posttrain.rewards.model import segment
from posttrain.rewards.resolve import rewards_for
from posttrain.train.demand import peak
from posttrain.train.learner import Learner

TASK = Task("t", (Message("user", "a"),))


def member(text: str, stop: Stop = Stop.END, value: float | None = 0.0) -> Trajectory:
    segment = Segment(tokens=(1, 2), mask=(False, True), logp=(math.nan, -1.0))
    messages = (*TASK.prompt, Message("assistant", text))
    return Trajectory(TASK, messages, (segment,), stop, score=Score(value))


def groups(*stops: Stop) -> list[Group]:
    return [Group(TASK, tuple(member("b", stop) for stop in stops))]


# --- scores ---------------------------------------------------------------------------------------------------------


def test_cut_answers_are_told_in_the_order_of_the_batch():
    found = [Group(TASK, (member("b", Stop.LENGTH), member("b", Stop.END, None), member("b", Stop.END)))]
    assert was_cut(found) == [True, False]


@pytest.mark.parametrize(("kind", "expected"), [("keep", [2, 3]), ("subtract", [2, 1.5]), ("replace", [2, 1.5])])
def test_a_missing_end_costs(kind, expected):
    shaping = Shaping(missing_end=kind, end_value=0.0 if kind == "keep" else 1.5)
    reward, _ = shaped(groups(Stop.END, Stop.LENGTH), torch.tensor([2.0, 3.0]), shaping, {})
    assert reward.tolist() == expected


def test_the_first_scores_fix_the_scale():
    shaping = Shaping(scale="start")
    state = first_scale(shaping)
    four = groups(*[Stop.END] * 4)
    reward, state = shaped(four, torch.tensor([1.0, 1.0, 1.0, 1.0]), shaping, state)
    assert reward.tolist() == [0, 0, 0, 0]  # nothing differs yet
    state = first_scale(shaping)
    reward, state = shaped(four, torch.tensor([1.0, 3.0, 1.0, 3.0]), shaping, state)
    assert reward.tolist() == [-1, 1, -1, 1]  # mean 2, deviation 1
    reward, state = shaped(four, torch.tensor([2.0, 6.0, 5.0, 5.0]), shaping, state)
    assert reward.tolist() == [0, 4, 3, 3] and state["scores"]["count"] == 4


def test_a_running_scale_takes_in_every_batch_and_a_clip_comes_after_it():
    shaping = Shaping(scale="running", clip=1.0, missing_end="replace", end_value=-5.0)
    state = first_scale(shaping)
    _, state = shaped(groups(Stop.END, Stop.END), torch.tensor([0.0, 2.0]), shaping, state)
    reward, state = shaped(groups(Stop.END, Stop.LENGTH), torch.tensor([8.0, 2.0]), shaping, state)
    assert state["scores"]["mean"] == 3 and state["scores"]["count"] == 4
    assert reward.tolist() == [1.0, -5.0]  # 5 / √9 is cut to 1; the price is in units of what comes out


def test_rewards_are_whitened_without_a_shift(tmp_path):
    rewards, b = batch([[1, 2, 3]], [3], [0])
    cfg = config(tmp_path, shaping=Shaping(whiten=True), lam=1.0, gamma=0.0, whiten=False)
    b = b.with_(old_value=torch.zeros(b.mask.shape))
    found = ppo.with_advantages(b, 2 * rewards, cfg)
    assert found.value_target[b.mask].tolist() == pytest.approx([3, 4, 5])  # (2, 4, 6) / 2, and the mean, 4, is back
    assert torch.equal(found.advantage, found.value_target)
    assert ppo.with_advantages(b, rewards, replace(cfg, whiten=True)).advantage[b.mask].tolist() == pytest.approx(
        [-1, 0, 1], abs=1e-4
    )


def test_settings_that_change_nothing_are_refused():
    with pytest.raises(ConfigError, match='end_value = -1.0 changes nothing with missing_end = "keep"'):
        Shaping(end_value=-1.0)
    with pytest.raises(ConfigError, match="what an answer loses must be positive"):
        Shaping(missing_end="subtract", end_value=-1.0)
    with pytest.raises(ConfigError, match="clip = 0"):
        Shaping(clip=0.0)
    with pytest.raises(ConfigError, match="a negative weight would unlearn the text"):
        Ptx(weight=-1.0)


# --- the leash ------------------------------------------------------------------------------------------------------


def test_the_controller_moves_beta_towards_its_target(tmp_path):
    cfg = config(tmp_path, steps=5)
    kl = replace(cfg.objective.kl, target=1.0, horizon=100)
    _, metrics = toy.run(ppo, replace(cfg, objective=replace(cfg.objective, kl=kl)), tmp_path / "run")
    for now, then in zip(metrics, metrics[1:], strict=False):
        error = min(max(now["kl_ref_answer"] / 1.0 - 1, -0.2), 0.2)
        assert then["kl_beta"] == pytest.approx(now["kl_beta"] * (1 + error * 32 / 100), rel=1e-5)
    assert metrics[0]["kl_beta"] == kl.beta != metrics[-1]["kl_beta"]


def test_a_leash_in_the_loss_has_a_controller_too():
    rewards, b = batch([[0, 1]], [2], [0])
    b = b.with_(ref_logp=torch.full(b.mask.shape, -2.0))
    logp = torch.full(b.mask.shape, -1.0)
    leash = Kl(where="loss", estimator="k3", beta=0.1, target=1.0, horizon=10)
    found, state, metrics = onpolicy.charged(b, torch.tensor([1.0]), logp, leash, {"beta": 0.1})
    assert found.tolist() == rewards.tolist()  # nothing is charged in the reward
    assert float(metrics["kl_ref_answer"][0]) == 2 and state["beta"] == pytest.approx(0.1 * (1 + 0.2 / 10))


def test_the_card_s_three_tokens():
    """Card 14: β = 0.1, score 1 at the third token: (-0.069315, 0.022314, 1)."""
    _, b = batch([[0, 0, 0]], [3], [0])
    logp, ref = (torch.zeros(b.mask.shape).masked_scatter(b.mask, torch.tensor(p).log())
                 for p in ([0.5, 0.4, 0.9], [0.25, 0.5, 0.9]))  # fmt: skip
    leash = PRESETS["ppo"].kl
    found, _, metrics = onpolicy.charged(b.with_(ref_logp=ref), torch.tensor([1.0]), logp, leash, {"beta": 0.1})
    assert found[b.mask].tolist() == pytest.approx([-0.069315, 0.022314, 1.0], abs=1e-6)
    assert float(metrics["reward_shaped"][0]) == pytest.approx(0.953, abs=1e-3)


# --- the penalised form, and when to stop -----------------------------------------------------------------------------


def steps_of(monkeypatch) -> list[Learner]:
    """The learner of every optimizer step."""
    made, real = [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, *parts: made.append(self) or real(self, *parts))
    return made


def test_the_penalised_form_learns_and_its_weight_goes_by_the_distance_after_the_passes(tmp_path, monkeypatch):
    """With one optimizer step per rollout the logged kl_old, measured before it, is 0: it would only ever halve."""
    penalty = replace(PRESETS["ppo_penalty"], proximal=Proximal(estimator="k3", weight=1.0, target=1e-4))
    seen, real = [], onpolicy.next_weights
    monkeypatch.setattr(
        onpolicy, "next_weights", lambda o, s, m: seen.append((m["kl_old"], real(o, s, m))) or seen[-1][1]
    )
    cfg = config(tmp_path, objective=penalty, epochs=1, minibatches=1, steps=3)
    _, metrics = toy.run(ppo, cfg, tmp_path / "run")
    assert all(m["kl_old"] == pytest.approx(0, abs=1e-9) for m in metrics)
    assert [w["tie"] for _, w in seen] == [2.0, 4.0, 8.0] and all(kl > 1.5e-4 for (kl, _), _ in seen)


def test_a_stop_leaves_out_the_passes_that_are_left(tmp_path, monkeypatch):
    made = steps_of(monkeypatch)
    toy.run(ppo, config(tmp_path, steps=2, epochs=3, minibatches=2, stop_kl=1e-9), tmp_path / "run")
    assert len(made) == 2 * 2 * 2  # one pass per rollout, of critic and policy
    made.clear()
    toy.run(ppo, config(tmp_path, steps=2, epochs=3, minibatches=2, stop_kl=1e9), tmp_path / "free")
    assert len(made) == 3 * 2 * 2 * 2


def test_the_distance_moved_is_k3_over_all_tokens(tmp_path, monkeypatch):
    caught = []
    real = onpolicy.moved

    def moved(policy, b):
        found = real(policy, b)
        gap = (policy.outputs(b).logp - b.old_logp)[b.mask].double()
        caught.append((found, float((gap.exp() - 1 - gap).mean())))
        return found

    monkeypatch.setattr(ppo, "moved", moved)
    toy.run(ppo, config(tmp_path, steps=2, stop_kl=10.0), tmp_path / "run")
    assert all(found == pytest.approx(slow, rel=1e-3) and slow > 0 for found, slow in caught)


def test_rare_rewards_that_fall_into_one_minibatch_stop_nothing(tmp_path, monkeypatch):
    """The other minibatch has nothing for a critic that begins at 0, and is passed over."""
    cfg = config(tmp_path, reward="rare", steps=1, epochs=1, minibatches=8)
    once = "\ncalls = []\ndef rare(task, trajectory):\n    calls.append(1)\n    return float(len(calls) == 5)\n"
    (tmp_path / "reward.py").write_text((tmp_path / "reward.py").read_text() + once)
    made = steps_of(monkeypatch)
    toy.run(ppo, cfg, tmp_path / "run")
    critics = [learner for learner in made if isinstance(learner.model, ScalarModel)]
    assert 0 < len(critics) < 8 and len(made) - len(critics) == 8


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_other_model_s_gradients_are_gone(tmp_path, monkeypatch):
    held, real = [], Learner.step
    learners: set[Learner] = set()

    def step(self, *parts):
        learners.add(self)
        held.append([any(p.grad is not None for p in other.parameters) for other in learners if other is not self])
        return real(self, *parts)

    monkeypatch.setattr(Learner, "step", step)
    toy.run(ppo, config(tmp_path, steps=2), tmp_path / "run")
    assert len(learners) == 2 and not any(any(found) for found in held)
    assert all(p.grad is None for learner in learners for p in learner.parameters)


# --- text beside answers ----------------------------------------------------------------------------------------------


def text(folder: Path) -> Data:
    items = [{"text": " ".join(toy.WORDS[(i + j) % 16] for j in range(8))} for i in range(16)]
    return Data(path=toy.rows(folder / "text.jsonl", items), kind="text")


def test_text_is_a_second_part_of_the_same_step(tmp_path, monkeypatch):
    """Its gradient is added: the step's loss is the sum of both, and only the policy's steps have it."""
    parts, real = [], Learner.step

    def step(self, *given):
        found = real(self, *given)
        parts.append((self, given, found))
        return found

    monkeypatch.setattr(Learner, "step", step)
    cfg = config(tmp_path, steps=1, ptx=Ptx(weight=3.0, data=text(tmp_path)))
    toy.run(ppo, cfg, tmp_path / "run")
    assert [len(given) for _, given, _ in parts] == [1, 2] * 4
    _, (answers, beside), found = parts[1]
    assert len(beside.batch) == 16 and beside.batch.mask.sum(1).min() == 8  # as many as answers; words and the end
    nll = found["ptx_nll"][0] / found["ptx_nll"][1]
    surrogate = -float((answers.batch.weights["token"] * answers.batch.advantage).sum())  # at ratio 1
    assert float(found["loss"][0]) == pytest.approx(surrogate + 3.0 * float(nll), rel=1e-4) and float(nll) > 2
    first, second = (p[1][1].batch.tokens for p in (parts[1], parts[3]))
    assert not torch.equal(first, second)  # other documents in the next step


def test_text_is_among_the_rows_that_a_run_took(tmp_path):
    """`runs diff` compares what rows.jsonl holds: of each step the prompts, then the documents of four updates."""
    cfg = config(tmp_path, steps=2, ptx=Ptx(weight=1.0, data=text(tmp_path)))
    toy.run(ppo, cfg, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/rows.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 5 + [1] * 5
    assert [len(line["rows"]) for line in lines[:5]] == [cfg.prompts] + [16] * 4
    assert lines[1]["rows"] != lines[2]["rows"]


def test_a_plan_counts_text_that_is_longer_than_the_answers(tmp_path):
    cfg = config(tmp_path)
    short, long = (replace(cfg, ptx=Ptx(weight=1.0, data=replace(text(tmp_path), max_len=n))) for n in (2, 60))
    without, little, much = (peak(demand(c, rows_of(c))).total for c in (cfg, short, long))
    assert without == little < much


def test_text_is_learned_beside_the_answers(tmp_path):
    cfg = config(tmp_path, steps=12, ptx=Ptx(weight=1.0, data=text(tmp_path)))
    _, metrics = toy.run(ppo, cfg, tmp_path / "run")
    assert metrics[-1]["ptx_nll"] < 0.6 * metrics[0]["ptx_nll"]
    assert metrics[-1]["reward_mean"] > metrics[0]["reward_mean"]


# --- a reward model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scorer(tmp_path) -> str:
    """A reward model that was taught to like "b"."""
    folder = tmp_path / "scorer"
    folder.mkdir()
    items = [{"prompt": a, "chosen": "b b", "rejected": f"{c} {a}"} for a in "acdefg" for c in "hijklm"]
    cfg = test_reward_model.config(folder, steps=30)
    data = Data(path=toy.rows(folder / "likes.jsonl", items))
    toy.run(reward_model, replace(cfg, data=data, eval_every=0), folder / "run")
    return f"model:{folder / 'run'}"


def test_a_reward_model_scores_as_it_was_trained_to(tmp_path, scorer):
    rewards = rewards_for(scorer, [TASK])
    members = (member("b b"), member("c d"), member("b b b b"))
    found = [m.score.value for m in score([Group(TASK, members)], rewards)[0].members]
    loaded = load(scorer.removeprefix("model:"))
    assert isinstance(loaded.model, ScalarModel) and found[0] > found[1] + 1
    segments = [render(m.messages, loaded.template, loaded.tokenizer)[0] for m in members]
    assert found == pytest.approx(reward_model.score_segments(loaded.model, segments).tolist(), abs=1e-5)


def test_an_answer_without_an_end_is_scored_without_one(scorer):
    judge = load(scorer.removeprefix("model:"))
    ended, cut = segment(member("b b"), judge), segment(member("b b", Stop.LENGTH), judge)
    assert ended.tokens[:-1] == cut.tokens and ended.tokens[-1] == toy.MARKS.index("<|end|>")


def test_ppo_learns_from_a_reward_model_on_a_fixed_scale(tmp_path, scorer):
    cfg = config(tmp_path, steps=14, shaping=Shaping(scale="start", missing_end="subtract", end_value=1.0))
    _, metrics = toy.run(ppo, replace(cfg, reward=scorer), tmp_path / "run")
    early, late = (sum(m["reward_mean"] for m in part) / 3 for part in (metrics[:3], metrics[-3:]))
    assert late > early + metrics[0]["reward_std"]
    assert metrics[-1]["clipped_at_length_share"] < metrics[0]["clipped_at_length_share"]


def test_a_model_without_a_head_is_no_reward(tmp_path):
    with pytest.raises(ConfigError, match="this model has no scalar head.*train reward_model"):
        rewards_for(f"model:{toy.model(tmp_path / 'model')}", [TASK])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="stop_kl = 0.0 must be positive"):
        config(tmp_path, stop_kl=0.0)
    with pytest.raises(ConfigError, match='"zscore" needs no critic'):
        config(tmp_path, objective=Objective(average=Average("token")))
