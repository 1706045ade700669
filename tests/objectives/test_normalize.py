"""Rewards on a scale: moments in pieces, the gain and the bias, and length taken out."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.normalize import (
    clip_reward,
    length_slope,
    moments_std,
    preference_as_reward,
    rescale,
    update_moments,
    without_length,
)

NOTHING = {"count": 0.0, "mean": 0.0, "sum_sq": 0.0}


def everywhere(x):
    return torch.ones_like(x, dtype=torch.bool)


def test_rescale_gives_the_wanted_moments():
    x = torch.randn(50) * 3 + 7
    mean, std = x.mean().item(), x.std().item()
    found = rescale(x, mean=mean, std=std, to_mean=-1.0, to_std=0.5)
    assert found.mean().item() == pytest.approx(-1) and found.std().item() == pytest.approx(0.5)
    assert rescale(torch.tensor([7.0]), mean=3.0, std=2.0).tolist() == [2]
    assert rescale(torch.tensor([7.0]), mean=3.0, std=1.0, to_mean=1.0).tolist() == [5]


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_moments_do_not_depend_on_the_cuts(values, cuts):
    x, state = torch.tensor(values, dtype=torch.float64), dict(NOTHING)
    edges = [0, *sorted(min(c, len(values)) for c in cuts), len(values)]
    for a, b in zip(edges, edges[1:], strict=False):
        state = update_moments(state, x[a:b], everywhere(x[a:b]))
    assert state["count"] == len(values)
    assert state["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert state["sum_sq"] == pytest.approx(statistics.pvariance(values) * len(values), abs=1e-8)
    assert moments_std(state) == pytest.approx(statistics.pstdev(values), abs=1e-7)


def test_moments_leave_their_input_and_the_masked_alone():
    state = {"count": 2.0, "mean": 5.0, "sum_sq": 8.0}
    found = update_moments(state, torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True]))
    assert state == {"count": 2.0, "mean": 5.0, "sum_sq": 8.0}
    assert found == pytest.approx({"count": 4, "mean": 3.5, "sum_sq": 8 + 2 + 9})  # 3² · 2 · 2 / 4
    assert update_moments(NOTHING, torch.tensor([1.0, 3]), torch.tensor([True, True])) == {
        "count": 2, "mean": 2, "sum_sq": 2}  # fmt: skip
    same = update_moments(state, torch.tensor([math.nan]), torch.tensor([False]))
    assert same == state and same is not state
    assert moments_std(NOTHING) == 0 and moments_std({"count": 4.0, "mean": 1.0, "sum_sq": 16.0}) == 2
    two = {"count": 2.0, "mean": 1.0, "sum_sq": 9.0}
    assert moments_std(two, ddof=1) == 3 and moments_std(two | {"count": 1.0}, ddof=1) == 0


def test_clip_and_its_gradient():
    x = torch.tensor([-7.0, 4, 9], requires_grad=True)
    assert clip_reward(x, 5.0).tolist() == [-5, 4, 5] and clip_reward(x, 0.5).tolist() == [-0.5, 0.5, 0.5]
    (slope,) = torch.autograd.grad(clip_reward(x, 5.0).sum(), x)
    assert slope.tolist() == [0, 1, 0]


def test_preference_as_reward_against_a_loop():
    reward, references = torch.randn(4), torch.randn(4, 3)
    found = preference_as_reward(reward, references)
    for i in range(4):
        wins = [1 / (1 + math.exp(-(reward[i] - r).item())) for r in references[i]]
        assert found[i].item() == pytest.approx(sum(wins) / 3)
    assert preference_as_reward(torch.tensor([2.0]), torch.tensor([[2.0]])).item() == 0.5
    assert preference_as_reward(torch.tensor([1e4, -1e4]), torch.zeros(2, 1)).tolist() == [1, 0]
    assert torch.autograd.gradcheck(preference_as_reward, (reward.requires_grad_(), references.requires_grad_()))


def test_length_slope_is_the_least_squares_line():
    length = torch.tensor([10.0, 20, 30])
    slope = length_slope(torch.tensor([1.0, 2, 3]), length, everywhere(length))
    assert slope.item() == pytest.approx(0.1)
    close = torch.tensor([10.0, 10.5])  # spread Σ (|y| - mean)² = 1/8
    assert length_slope(torch.tensor([1.0, 2]), close, everywhere(close)).item() == pytest.approx(2)
    reward, length = torch.randn(20), torch.randint(1, 50, (20,))
    mask = torch.rand(20) > 0.3
    found = length_slope(torch.where(mask, reward, math.nan), length, mask)
    expected = statistics.linear_regression(length[mask].tolist(), reward[mask].tolist()).slope
    assert found.item() == pytest.approx(expected)
    freed = without_length(reward[mask], length[mask], slope=found, at=25.0)
    assert length_slope(freed, length[mask], everywhere(freed)).item() == pytest.approx(0, abs=1e-12)
    assert without_length(torch.tensor([3.0]), torch.tensor([30]), slope=0.1, at=20.0).item() == pytest.approx(2)


def test_length_slope_of_nothing():
    same = torch.full((3,), 7.0)
    for length, mask in ((same, everywhere(same)), (torch.arange(3.0), torch.zeros(3, dtype=torch.bool))):
        reward = torch.randn(3, requires_grad=True)
        slope = length_slope(reward, length, mask)
        assert slope.item() == 0
        assert torch.isfinite(torch.autograd.grad(slope, reward)[0]).all()


def test_refusals():
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="one score"):
            rescale(torch.zeros(2), mean=0.0, std=std)
    with pytest.raises(ConfigError, match="positive"):
        clip_reward(torch.zeros(2), 0.0)
    with pytest.raises(ShapeError):
        preference_as_reward(torch.zeros(2), torch.zeros(3, 1))
