"""Advantages: against loops, the identities between them, and what must not change them."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError, DataError
from posttrain.objectives.advantages import (
    ADVANTAGES,
    center,
    center_then_whiten,
    estimate,
    leave_one_out,
    mean_ratio,
    mixed,
    running_baseline,
    zscore,
)
from posttrain.objectives.returns import last_token
from posttrain.objectives.tokens import masked

GROUPED = {"center": center, "zscore": zscore, "leave_one_out": leave_one_out, "mean_ratio": mean_ratio}


def test_group_estimators_against_loops():
    reward, group = torch.rand(9), torch.tensor([4, 1, 4, 1, 1, 4, 4, 1, 1])
    results = {name: f(reward, group) for name, f in GROUPED.items()}
    for i in range(9):
        members = [float(r) for r, g in zip(reward, group, strict=True) if g == group[i]]
        r, mean = float(reward[i]), statistics.fmean(members)
        others = list(members)
        others.remove(r)
        expected = {
            "center": r - mean,
            "zscore": (r - mean) / (statistics.stdev(members) + 1e-4),
            "leave_one_out": r - statistics.fmean(others),
            "mean_ratio": (r - mean) / (mean + 1e-6),
        }
        for name, value in expected.items():
            assert math.isclose(results[name][i], value, rel_tol=1e-10, abs_tol=1e-12), name


def test_worked_group():
    reward, group = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0]), torch.zeros(8, dtype=torch.long)
    expected = {"center": (0.75, -0.25), "zscore": (1.620, -0.540), "leave_one_out": (0.857, -0.286)}
    expected["mean_ratio"] = (3.0, -1.0)
    for name, (right, wrong) in expected.items():
        advantage = GROUPED[name](reward, group)
        assert abs(advantage[0] - right) < 1e-3 and abs(advantage[1] - wrong) < 1e-3


rewards = st.lists(st.floats(0, 2, allow_nan=False), min_size=2, max_size=8)


@settings(max_examples=30, deadline=None)
@given(rewards, st.floats(-5, 5), st.floats(0.5, 4))
def test_identities(values, shift, scale):
    reward, group = torch.tensor(values), torch.zeros(len(values), dtype=torch.long)
    n = len(values)
    centered = center(reward, group)
    torch.testing.assert_close(leave_one_out(reward, group), n / (n - 1) * centered)
    torch.testing.assert_close(center(reward + shift, group), centered, atol=1e-12, rtol=1e-9)
    assert abs(centered.sum()) < 1e-12
    if reward.std() > 0.01:
        a, b = zscore(reward, group, eps=1e-12), zscore(scale * reward + shift, group, eps=1e-12)
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", GROUPED)
def test_equal_rewards_and_lone_answers_give_exactly_zero(name):
    reward = torch.tensor([0.1, 0.1, 0.1, 0.7], dtype=torch.float32)  # 0.1 · 3 / 3 is not 0.1 in float32
    assert not GROUPED[name](reward, torch.tensor([0, 0, 0, 1])).any()
    assert not mixed(reward, torch.tensor([0, 0, 0, 1])).any()


def test_mixed_finds_groups_with_a_signal():
    assert mixed(torch.tensor([1.0, 0, 1, 1]), torch.tensor([3, 3, 8, 8])).tolist() == [True, True, False, False]


def test_mean_ratio_refuses_negative_rewards():
    with pytest.raises(DataError, match="success rate"):
        mean_ratio(torch.tensor([1.0, -1.0]), torch.tensor([0, 0]))


def batch(n=6, t=5):
    mask = torch.rand(n, t) < 0.7
    mask[:, 0], mask[:, 1] = False, True
    reward = masked((torch.arange(n) % 3 == 0).double()[:, None], last_token(mask))  # 0 or 1: every kind takes it
    rows = {"greedy": torch.rand(2).repeat_interleave(3), "parts": torch.rand(n, 2)}
    tokens = {"old_logp": -torch.rand(n, t), "sum_sq": torch.rand(n, t)}
    return reward, mask, torch.arange(n) // 3, rows, tokens


EXTRA = {"return": ("baseline",), "greedy": ("greedy",), "pass_at_k": ("k",), "pass_at_k_zscore": ("k",),
         "decoupled": ("parts",), "optimal_token": ("old_logp", "sum_sq")}  # fmt: skip


def run(kind, reward, mask, group, rows, tokens, **kwargs):
    extra = {"baseline": 0.3, "k": 2, **rows, **tokens}
    return estimate(kind, reward, mask, group, **{name: extra[name] for name in EXTRA.get(kind, ())}, **kwargs)


def each(f, rows, tokens):
    """One change to all inputs that are per row, and one to those that are per token."""
    return {n: f(x) for n, x in rows.items()}, {n: f(x) for n, x in tokens.items()}


WITHOUT_CRITIC = [name for name in ADVANTAGES if name != "gae"]


@pytest.mark.parametrize("kind", WITHOUT_CRITIC)
def test_junk_padding_and_order_change_nothing(kind):
    reward, mask, group, rows, tokens = batch()
    advantage = run(kind, reward, mask, group, rows, tokens)
    assert torch.isfinite(advantage).all() and not advantage[~mask].any() and advantage.any()
    junk = {n: torch.where(mask, x, math.nan) for n, x in tokens.items()}
    torch.testing.assert_close(run(kind, torch.where(mask, reward, math.nan), mask, group, rows, junk), advantage)
    wide = {n: torch.nn.functional.pad(x, (0, 3), value=math.inf) for n, x in {"r": reward, **tokens}.items()}
    found = run(kind, wide.pop("r"), torch.nn.functional.pad(mask, (0, 3)), group, rows, wide)
    torch.testing.assert_close(found[:, :5], advantage)
    order = torch.randperm(6)
    moved = run(kind, reward[order], mask[order], group[order], *each(lambda x: x[order], rows, tokens))
    torch.testing.assert_close(moved, advantage[order])


@pytest.mark.parametrize("kind", WITHOUT_CRITIC)
def test_a_trajectory_in_two_rows_is_one_answer(kind):
    reward, mask, group, rows, tokens = batch()
    mask[0] = torch.tensor([False, True, True, True, True])
    first = torch.arange(5) < 3
    split = torch.cat([mask[:1] & first, mask[:1] & ~first, mask[1:]])

    def twice(x):
        return torch.cat([x[:1], x])

    cut = run(
        kind,
        twice(reward),
        split,
        twice(group),
        *each(twice, rows, tokens),
        trajectory=torch.tensor([7, 7, 1, 2, 3, 4, 5]),
    )
    whole = run(kind, reward, mask, group, rows, tokens)
    torch.testing.assert_close(cut[0] + cut[1], whole[0])
    torch.testing.assert_close(cut[2:], whole[1:])


def test_center_then_whiten_is_the_estimate_of_its_name():
    reward, mask, group, *_ = batch()
    advantage = center_then_whiten((reward * mask).sum(1), group, mask)
    torch.testing.assert_close(estimate("center_then_whiten", reward, mask, group), advantage)
    assert abs(advantage[mask].mean()) < 1e-12 and abs(advantage[mask].std() - 1) < 1e-6


def test_running_baseline_starts_unbiased_and_moves_slowly():
    state = running_baseline({"baseline": 0.0, "weight": 0.0}, torch.tensor([1.0, 3.0]))
    assert math.isclose(state["baseline"], 2.0)
    constant = running_baseline(state, torch.tensor([2.0]))
    assert math.isclose(constant["baseline"], 2.0)
    for _ in range(200):
        constant = running_baseline(constant, torch.tensor([5.0]))
    assert math.isclose(constant["baseline"], 5.0, rel_tol=1e-6)


def test_estimate_refuses_what_it_cannot_use():
    reward, mask, group, *_ = batch()
    with pytest.raises(ConfigError, match="subtracts a baseline"):
        estimate("return", reward, mask, group)
    with pytest.raises(ConfigError, match="no other"):
        estimate("center", reward, mask, group, baseline=0.0)
    with pytest.raises(ConfigError, match="critic"):
        estimate("gae", reward, mask, group)
    with pytest.raises(ConfigError, match="is not one of return, greedy, center"):
        estimate("centre", reward, mask, group)
