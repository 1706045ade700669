"""Several scorers: the worked numbers, loops, and what a common scale is for."""

import math
import statistics

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.ensembles import all_good, ensemble_mean, uncertainty_weighted, worst_case


def test_worked_numbers():
    scores = torch.tensor([[1.0], [2], [6]])
    assert ensemble_mean(scores).tolist() == [3] and worst_case(scores).tolist() == [1]
    assert uncertainty_weighted(scores, weight=0.5).item() == pytest.approx(3 - 0.5 * 14 / 3)


def test_against_loops():
    scores = torch.randn(4, 6)
    for b in range(6):
        column = scores[:, b].tolist()
        assert ensemble_mean(scores)[b].item() == pytest.approx(statistics.fmean(column))
        assert worst_case(scores)[b].item() == min(column)
        expected = statistics.fmean(column) - 0.7 * statistics.pvariance(column)
        assert uncertainty_weighted(scores, weight=0.7)[b].item() == pytest.approx(expected)


def test_members_that_agree_are_one_member():
    one = torch.randn(1, 5)
    three = one.expand(3, 5)
    for combine in (ensemble_mean, worst_case, lambda s: uncertainty_weighted(s, weight=2.0)):
        torch.testing.assert_close(combine(three), one[0])
        torch.testing.assert_close(combine(one), one[0])
        members = torch.randn(3, 5)
        torch.testing.assert_close(combine(members.flip(0)), combine(members))
        torch.testing.assert_close(combine(members + 2), combine(members) + 2)


def test_all_good_against_a_loop_with_absent_components():
    rewards, references = torch.randn(3, 4), torch.randn(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]]).bool()
    found = all_good(torch.where(mask, rewards, math.nan), torch.where(mask, references, math.inf), mask)
    for b in range(4):
        gaps = [(rewards[k, b] - references[k, b]).item() for k in range(3) if mask[k, b]]
        assert found[b].item() == pytest.approx(sum(-math.log(1 + math.exp(-g)) for g in gaps))
    every = torch.ones(2, 1, dtype=torch.bool)
    assert all_good(torch.ones(2, 1), torch.ones(2, 1), every).item() == pytest.approx(-2 * math.log(2))
    assert all_good(torch.full((2, 1), -1e4), torch.zeros(2, 1), every).item() == -2e4


def test_refusals():
    with pytest.raises(ConfigError, match="disagree"):
        uncertainty_weighted(torch.zeros(2, 2), weight=-1.0)
    with pytest.raises(ShapeError):
        worst_case(torch.zeros(3))
    with pytest.raises(ShapeError):
        all_good(torch.zeros(2, 3), torch.zeros(2, 2), torch.ones(2, 3).bool())
