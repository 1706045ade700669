"""Losses of reward models: peers, loops from the papers, and the constant that comparisons leave free."""

import math

import oracle
import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.reward import all_pairs, bradley_terry, outcome, plackett_luce

NAMES = [f"bradley_terry_{n}" for n in ("plain", "margin", "centred", "margin_centred")]


@pytest.mark.parametrize("case", oracle.cases("reward_model", *NAMES))
def test_bradley_terry_equals_trl(case):
    chosen, rejected = case.leaf("chosen"), case.leaf("rejected")
    loss, _ = bradley_terry(
        chosen,
        rejected,
        margin=case.inputs.get("margin"),
        centering=case.hyper["center_rewards_coefficient"] or 0.0,
    )
    case.check("loss", loss.mean())
    loss.mean().backward()
    case.check("grad_chosen", chosen.grad)
    case.check("grad_rejected", rejected.grad)


@pytest.mark.parametrize("case", oracle.cases("reward_model", "openrlhf"))
def test_bradley_terry_equals_openrlhf(case):
    case.check("pairwise", bradley_terry(case["chosen"], case["rejected"])[0].mean())
    case.check("logexp", bradley_terry(case["chosen"], case["rejected"])[0].mean())
    with_margin = bradley_terry(case["chosen"], case["rejected"], margin=case["margin"])[0]
    case.check("pairwise_margin", with_margin.mean())


def test_worked_numbers():
    gap = torch.tensor([0.0, 1, 2, -1], requires_grad=True)
    loss, metrics = bradley_terry(gap, torch.zeros(4))
    assert [round(x, 6) for x in loss.tolist()] == [0.693147, 0.313262, 0.126928, 1.313262]
    assert metrics["accuracy"].tolist() == [0, 1, 1, 0] and not metrics["margin"].requires_grad
    loss.sum().backward()
    assert [round(-x, 6) for x in gap.grad.tolist()] == [0.5, 0.268941, 0.119203, 0.731059]
    one = torch.ones(1)
    assert math.isclose(bradley_terry(one, torch.zeros(1), margin=one)[0].item(), math.log(2))
    scores, mask = torch.tensor([[2.0, 1, 0]]), torch.ones(1, 3, dtype=torch.bool)
    assert round(plackett_luce(scores, mask)[0].item(), 6) == 0.720868
    assert round(all_pairs(scores, mask)[0].item(), 6) == 0.251150


def ragged():
    scores = torch.randn(4, 5)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3], [1]])
    return scores, mask


def test_rankings_against_loops():
    scores, mask = ragged()
    listwise, pairwise = plackett_luce(scores, mask)[0], all_pairs(scores, mask)[0]
    for p in range(4):
        r = scores[p, mask[p]].tolist()
        expected = sum(math.log(sum(math.exp(x) for x in r[k:])) - r[k] for k in range(len(r)))
        assert math.isclose(listwise[p], expected, rel_tol=1e-10, abs_tol=1e-14)
        pairs = [(a, b) for i, a in enumerate(r) for b in r[i + 1 :]]
        expected = sum(math.log(1 + math.exp(b - a)) for a, b in pairs) / max(len(pairs), 1)
        assert math.isclose(pairwise[p], expected, rel_tol=1e-10, abs_tol=1e-14)


@pytest.mark.parametrize("formula", [plackett_luce, all_pairs])
def test_two_answers_are_bradley_terry(formula):
    scores = torch.randn(6, 2)
    loss, metrics = formula(scores, torch.ones(6, 2, dtype=torch.bool))
    expected, pair_metrics = bradley_terry(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["accuracy"], pair_metrics["accuracy"])


@pytest.mark.parametrize("formula", [plackett_luce, all_pairs])
@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_absent_answers_change_nothing(formula, junk):
    scores, mask = ragged()
    leaf = torch.where(mask, scores, junk).requires_grad_()
    loss, metrics = formula(leaf, mask)
    loss.sum().backward()
    clean = torch.where(mask, scores, 0.0).requires_grad_()
    expected, expected_metrics = formula(clean, mask)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(leaf.grad, clean.grad)
    torch.testing.assert_close(metrics, expected_metrics)
    assert not leaf.grad[~mask].any()


def test_a_constant_per_prompt_changes_nothing_without_centring():
    chosen, rejected = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(bradley_terry(chosen + 3, rejected + 3)[0], bradley_terry(chosen, rejected)[0])
    scores, mask = ragged()
    for formula in (plackett_luce, all_pairs):
        torch.testing.assert_close(formula(scores + 3, mask)[0], formula(scores, mask)[0])
    centred = bradley_terry(chosen + 3, rejected + 3, centering=0.1)[0] > bradley_terry(chosen + 3, rejected + 3)[0]
    assert centred.all()


def test_outcome_is_binary_cross_entropy():
    score, good = torch.tensor([0.0, 2.0, -2.0]), torch.tensor([True, True, True])
    loss, metrics = outcome(score, good)
    expected = [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert metrics["accuracy"].tolist() == [0, 1, 0] and metrics["good_share"].tolist() == [1, 1, 1]
    soft, _ = outcome(torch.tensor([0.3]), torch.tensor([0.7]))
    p = 1 / (1 + math.exp(-0.3))
    assert math.isclose(soft.item(), -0.7 * math.log(p) - 0.3 * math.log(1 - p))


def test_gradcheck_and_extremes():
    scores, mask = ragged()
    for formula in (plackett_luce, all_pairs):
        assert torch.autograd.gradcheck(lambda s, f=formula: f(s, mask)[0], (scores.requires_grad_(),))
    chosen = torch.tensor([-1e5, 1e5], requires_grad=True)
    loss = bradley_terry(chosen, torch.zeros(2))[0]
    loss.sum().backward()
    assert loss.tolist() == [1e5, 0] and torch.isfinite(chosen.grad).all()


def test_refusals():
    with pytest.raises(ConfigError, match="away from 0"):
        bradley_terry(torch.zeros(2), torch.zeros(2), centering=-0.1)
    with pytest.raises(ShapeError):
        bradley_terry(torch.zeros(2), torch.zeros(2), margin=torch.zeros(3))
