"""The pull at every token: against loops written from the papers, hand-made numbers, and the loops that train."""

import math
from dataclasses import replace

import pytest
import torch

from posttrain.assets.two_prompts import ANSWERS, LONGEST, step
from posttrain.errors import ShapeError
from posttrain.objectives.average import Average
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.pull import token_pull
from posttrain.objectives.regularizers import Entropy, Kl
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.token_masks import Focus

STEP = step()
FRESH = replace(STEP, logp=STEP.old_logp, sampled_logp=STEP.old_logp)
"""The same answers, before the learner has moved."""


def tokens():
    """(row, place, log-ratio) of every token."""
    for n, answer in enumerate(ANSWERS):
        for t, moved in enumerate(answer.moved, 1):
            yield n, t, moved


def zscore(n: int) -> float:
    group = [a.reward for a in ANSWERS if a.prompt == ANSWERS[n].prompt]
    mean = sum(group) / len(group)
    std = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
    return (ANSWERS[n].reward - mean) / (std + 1e-4)


def by_hand(preset: str) -> torch.Tensor:
    """-∂L/∂log π by the closed forms: A · ρ where PPO's clip does not act, times the weight, plus the leash's part."""
    out = torch.zeros_like(STEP.logp)
    kept = [n for n in range(len(ANSWERS)) if preset != "dapo" or ANSWERS[n].prompt == 0]
    for n, t, moved in tokens():
        length, advantage = len(ANSWERS[n].moved), zscore(n)
        low, high = {"dapo": (0.8, 1.28), "gspo": (1 - 3e-4, 1 + 4e-4)}.get(preset, (0.8, 1.2))
        if preset == "dr_grpo":
            advantage = ANSWERS[n].reward - sum(a.reward for a in ANSWERS if a.prompt == ANSWERS[n].prompt) / 4
        ratio = math.exp(sum(ANSWERS[n].moved) / length if preset == "gspo" else moved)
        free = ratio <= high if advantage > 0 else ratio >= low
        weight = 1 / (len(ANSWERS) * length)
        if preset == "dapo":
            weight = 1 / sum(len(ANSWERS[k].moved) for k in kept) if n in kept else 0.0
        if preset == "dr_grpo":
            weight = 1 / (len(ANSWERS) * LONGEST)
        pull = advantage * ratio if free else 0.0
        if preset == "grpo":
            leash = float(STEP.logp[n, t] - STEP.ref_logp[n, t])
            pull -= 0.04 * (1 - math.exp(-leash))
        out[n, t] = weight * pull
    return out


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_equals_the_closed_form(name):
    objective = PRESETS[name]
    if name == "dr_grpo":
        objective = replace(objective, average=Average("constant", horizon=LONGEST))
    torch.testing.assert_close(token_pull(objective, STEP).whole, by_hand(name), atol=1e-12, rtol=1e-12)


def small(**changes):
    """Two answers of 1 and 3 tokens with rewards 1 and 0, fresh, where the reference agrees."""
    mask = torch.tensor([[False, True, False, False], [False, True, True, True]])
    logp = -mask.double()
    names = ("logp", "old_logp", "sampled_logp", "ref_logp", "entropy", "sum_sq", "value", "draws")
    values = dict.fromkeys(names, logp)
    two = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return replace(STEP, mask=mask, group=torch.zeros(2).long(), reward=two, greedy=two, parts=two[:, None],
                   **(values | changes))  # fmt: skip


def test_numbers_of_the_docstring():
    plain = Objective(advantage="center", clip=Clip(kind="none"))
    pull = token_pull(plain, small())
    assert pull.whole.tolist() == [[0, 1 / 4, 0, 0], [0, *[pytest.approx(-1 / 12)] * 3]]
    assert torch.equal(pull.gain, pull.whole)
    assert pull.advantage.tolist() == [[0, 0.5, 0, 0], [0, -0.5, -0.5, -0.5]]
    assert pull.weight.tolist() == [[0, 1 / 2, 0, 0], [0, *[pytest.approx(1 / 6)] * 3]]
    flat = token_pull(replace(plain, average=Average("token")), small())
    assert flat.whole.tolist() == [[0, 1 / 8, 0, 0], [0, -1 / 8, -1 / 8, -1 / 8]]


@pytest.mark.parametrize("name", PRESETS)
def test_fresh_and_without_a_leash_it_is_weight_times_advantage(name):
    """REINFORCE, whatever the clip; a ratio of the answer's mean spreads it evenly over the answer."""
    bare = replace(PRESETS[name], kl=Kl(), mismatch=Mismatch(), focus=Focus())
    pull = token_pull(bare, FRESH)
    expected, found = pull.weight * pull.advantage, pull.whole
    if bare.ratio == "sequence" or bare.clip.kind == "geometric":
        assert all(torch.equal(row[m], row[m][:1].expand_as(row[m])) for row, m in zip(found, FRESH.mask, strict=True))
        expected, found = expected.sum(1), found.sum(1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_reads_only_the_mask(name):
    nothing = torch.where(STEP.mask, 0.0, math.nan).double()
    junk = {k: getattr(STEP, k) + nothing for k in ("logp", "old_logp", "sampled_logp", "ref_logp", "entropy", "value")}
    for one, other in zip(
        token_pull(PRESETS[name], STEP), token_pull(PRESETS[name], replace(STEP, **junk)), strict=True
    ):
        assert torch.isfinite(one).all() and torch.equal(one, other)
        assert not one[~STEP.mask].any() and not torch.signbit(one[one == 0]).any()


def test_a_leash_in_the_reward_is_charged_where_the_loops_charge_it():
    """REINFORCE and PPO, with moved samplers: r - β (log μ - log π_ref), and for PPO from π_old."""
    objective = PRESETS["reinforce"]
    charge = objective.kl.beta * (STEP.sampled_logp - STEP.ref_logp)
    expected = torch.zeros_like(charge)
    for n, t, _ in tokens():
        expected[n, t] = STEP.reward[n] - float(charge[n, t : len(ANSWERS[n].moved) + 1].sum()) - STEP.baseline
    torch.testing.assert_close(token_pull(objective, STEP).advantage, expected, atol=1e-12, rtol=1e-12)
    elsewhere = replace(STEP, sampled_logp=STEP.sampled_logp - 0.5)
    ppo = PRESETS["ppo"]
    assert torch.equal(token_pull(ppo, elsewhere).advantage, token_pull(ppo, STEP).advantage)


def test_gae_with_lambda_and_whitening():
    """λ = 0 is the one-step error, whitened over all tokens."""
    objective, rows = replace(PRESETS["ppo"], kl=Kl()), STEP
    error = []
    for n, t, _ in tokens():
        last = t == len(ANSWERS[n].moved)
        error.append((float(rows.reward[n]) if last else float(rows.value[n, t + 1])) - float(rows.value[n, t]))
    mean = sum(error) / len(error)
    std = math.sqrt(sum((e - mean) ** 2 for e in error) / (len(error) - 1) + 1e-8)
    found = token_pull(objective, rows, lam=0.0).advantage[rows.mask]
    torch.testing.assert_close(found, torch.tensor([(e - mean) / std for e in error]), atol=1e-12, rtol=1e-12)


def test_gain_is_what_a_leash_and_a_penalty_leave():
    for name in ("grpo", "dro", "kimi"):
        pull = token_pull(PRESETS[name], STEP)
        assert (pull.gain[4:] == 0).all() and (pull.whole[4:][STEP.mask[4:]] != 0).any()
    grpo = PRESETS["grpo"]
    assert torch.equal(token_pull(grpo, STEP).gain, token_pull(replace(grpo, kl=Kl()), STEP).whole)


def test_a_bonus_needs_entropy_and_adds_nothing():
    bonus = replace(PRESETS["grpo"], entropy=Entropy(weight=0.1))
    assert torch.equal(token_pull(bonus, STEP).whole, token_pull(PRESETS["grpo"], STEP).whole)


def test_left_out_groups_count_nowhere():
    rows = replace(STEP, reward=torch.ones_like(STEP.reward))
    assert not any(x.any() for x in token_pull(PRESETS["dapo"], rows))
    alone = replace(STEP, **{k: getattr(STEP, k)[:4] for k in STEP.__dataclass_fields__ if k != "baseline"})
    for name in ("dapo", "scale_rl"):
        whole, part = token_pull(PRESETS[name], STEP), token_pull(PRESETS[name], alone)
        for one, other in zip(whole, part, strict=True):
            assert torch.equal(one[:4], other) and not one[4:].any()


def test_refuses_rows_that_do_not_fit():
    with pytest.raises(ShapeError, match="expected shapes"):
        token_pull(PRESETS["grpo"], replace(STEP, reward=STEP.reward[:3]))
