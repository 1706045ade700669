"""Losses of reward models: loops from the papers, computed numbers, and the constant that comparisons leave free."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives.reward import (
    all_pairs,
    bradley_terry,
    calibration_error,
    careless_bradley_terry,
    davidson,
    outcome,
    plackett_luce,
    top_choice,
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


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
def test_accuracy_of_a_ranking_is_the_share_of_its_pairs(formula):
    scores, mask = ragged()
    scores[1, 1] = scores[1, 0]  # equal is not right
    accuracy = formula(scores, mask)[1]["accuracy"]
    for p in range(4):
        r = scores[p, mask[p]].tolist()
        right = [a > b for i, a in enumerate(r) for b in r[i + 1 :]]
        assert accuracy[p].item() == pytest.approx(sum(right) / max(len(right), 1))


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
    soft, metrics = outcome(torch.tensor([0.3]), torch.tensor([0.7]))
    assert metrics["accuracy"].item() == 1 and metrics["good_share"].item() == 0.7
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


def test_every_addition_at_once_against_a_loop():
    w, r, m = torch.randn(6), torch.randn(6), torch.rand(6)
    for smoothing in (0.2, torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])):
        loss, metrics = bradley_terry(w, r, margin=m, centering=0.03, label_smoothing=smoothing)
        for i in range(6):
            a, b, gap = w[i].item(), r[i].item(), (w[i] - r[i] - m[i]).item()
            e = smoothing if isinstance(smoothing, float) else smoothing[i].item()
            expected = -(1 - e) * math.log(sigmoid(gap)) - e * math.log(sigmoid(-gap)) + 0.03 * (a + b) ** 2
            assert math.isclose(loss[i], expected, rel_tol=1e-12)
        assert metrics["margin"].tolist() == (w - r).tolist()
        assert metrics["reward_chosen"].tolist() == w.tolist() and metrics["reward_rejected"].tolist() == r.tolist()


def test_smoothing_is_least_at_the_log_odds_of_the_label():
    for smoothing in (0.1, torch.tensor([0.1])):
        gap = torch.tensor([math.log(9)], requires_grad=True)
        (slope,) = torch.autograd.grad(bradley_terry(gap, torch.zeros(1), label_smoothing=smoothing)[0].sum(), gap)
        assert abs(slope.item()) < 1e-12
    half = bradley_terry(torch.tensor([3.0]), torch.zeros(1), label_smoothing=0.5)[0]
    assert half.item() == bradley_terry(torch.tensor([-3.0]), torch.zeros(1), label_smoothing=0.5)[0].item()


def test_davidson_worked_numbers_and_loop():
    first, second, result = torch.tensor([1.0, 1, 1]), torch.zeros(3), torch.tensor([1.0, 0, 0.5])
    loss, metrics = davidson(first, second, result, torch.zeros(()))
    assert [round(math.exp(-x), 6) for x in loss.tolist()] == [0.506480, 0.186324, 0.307196]
    assert metrics["margin"].tolist() == [1, 1, 1] and metrics["tie"].tolist() == pytest.approx(
        [0.307196] * 3, abs=1e-6
    )
    first, second, log_tie = torch.randn(3), torch.randn(3), torch.tensor(-0.7)
    loss, _ = davidson(first, second, result, log_tie)
    assert davidson(first, second, result, log_tie)[1]["margin"].tolist() == (first - second).tolist()
    for i in range(3):
        a, b = first[i].item(), second[i].item()
        weights = [math.exp(a), math.exp(b), math.exp(-0.7 + (a + b) / 2)]
        assert math.isclose(math.exp(-loss[i]), weights[i] / sum(weights), rel_tol=1e-12)
    no_ties = davidson(first[:2], second[:2], result[:2], torch.tensor(-60.0))[0]
    torch.testing.assert_close(no_ties, bradley_terry(torch.stack([first[0], second[1]]),
                                                      torch.stack([second[0], first[1]]))[0])  # fmt: skip


def test_top_choice_is_the_first_factor_of_a_ranking():
    scores, mask = torch.tensor([[1.0, 0, -1, 0.5]]), torch.ones(1, 4, dtype=torch.bool)
    loss, metrics = top_choice(scores, mask, torch.tensor([0]))
    assert round(loss.item(), 6) == 0.746567 and metrics["accuracy"].item() == 1
    assert top_choice(scores, mask, torch.tensor([3]))[1]["accuracy"].item() == 0
    scores, mask = ragged()
    best = torch.tensor([3, 1, 0, 0])
    loss = top_choice(torch.where(mask, scores, math.nan), mask, best)[0]
    for p in range(4):
        r = scores[p, mask[p]].tolist()
        expected = math.log(sum(math.exp(x) for x in r)) - r[best[p]]
        assert math.isclose(loss[p], expected, rel_tol=1e-10, abs_tol=1e-14)
    pairs = torch.randn(5, 2)
    whole = torch.ones(5, 2, dtype=torch.bool)
    torch.testing.assert_close(
        top_choice(pairs, whole, torch.zeros(5, dtype=torch.long))[0], plackett_luce(pairs, whole)[0]
    )


def test_calibration_error_counts_bin_by_bin():
    gap = math.log(3) * torch.tensor([1.0, 1, 1, -1])  # confidence 0.75, right 3 times in 4
    error, table = calibration_error(gap)
    assert error.item() == pytest.approx(0, abs=1e-15)
    assert table[table[:, 0] > 0].tolist() == [[4, pytest.approx(0.75), pytest.approx(0.75)]]
    sure = torch.tensor([1e4, 1e4, -1e4, -1e4])  # certain, and right half of the time
    assert calibration_error(sure)[0].item() == 0.5
    gap = torch.randn(50, requires_grad=True)
    error, table = calibration_error(gap, bins=4)
    bins = [[] for _ in range(4)]
    for g in gap.tolist():
        p = sigmoid(abs(g))
        bins[min(3, int((p - 0.5) * 8))].append((p, float(g > 0)))
    expected = sum(abs(sum(p for p, _ in b) - sum(r for _, r in b)) for b in bins) / 50
    assert error.item() == pytest.approx(expected) and not error.requires_grad
    assert table[:, 0].tolist() == [len(b) for b in bins]
    assert table[0, 1].item() == pytest.approx(sum(p for p, _ in bins[0]) / len(bins[0]))
    assert table[0, 2].item() == pytest.approx(sum(r for _, r in bins[0]) / len(bins[0]))
    assert calibration_error(torch.zeros(3))[0].item() == 0  # no choice, half right
    error, table = calibration_error(torch.tensor([-1.0]), bins=1)
    assert error.item() == pytest.approx(sigmoid(1)) and table.tolist() == [[1, pytest.approx(sigmoid(1)), 0]]
    assert calibration_error(torch.tensor([1.0]), bins=1)[1][0, 2].item() == 1
    assert calibration_error(torch.zeros(0))[0].item() == 0


def test_gradients_of_what_has_options():
    one = {"dtype": torch.float64, "requires_grad": True}
    chosen, rejected = torch.randn(4, **one), torch.randn(4, **one)
    smoothing = torch.tensor([0.0, 0.2, 0.5, 1.0])

    def everything(w, r):
        return bradley_terry(w, r, margin=torch.ones(4), centering=0.1, label_smoothing=smoothing)[0]

    assert torch.autograd.gradcheck(everything, (chosen, rejected))
    result = torch.tensor([1.0, 0.5, 0, 0.5])
    assert torch.autograd.gradcheck(
        lambda a, b, t: davidson(a, b, result, t)[0], (chosen, rejected, torch.randn((), **one))
    )
    scores, mask = ragged()
    best = torch.tensor([4, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda s: top_choice(s, mask, best)[0], (scores.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda s: outcome(s, result)[0], (chosen,))
    for call in (
        lambda x: bradley_terry(x, -x, label_smoothing=0.3, centering=0.1)[0],
        lambda x: davidson(x, -x, torch.tensor([0.5, 0.0]), torch.zeros(()))[0],
        lambda x: outcome(x, torch.tensor([0.0, 1.0]))[0],
    ):
        x = torch.tensor([1e4, -1e4], requires_grad=True)
        loss = call(x)
        (slope,) = torch.autograd.grad(loss.sum(), x)
        assert torch.isfinite(loss).all() and torch.isfinite(slope).all()


def test_refusals():
    with pytest.raises(ConfigError, match="away from 0"):
        bradley_terry(torch.zeros(2), torch.zeros(2), centering=-0.1)
    with pytest.raises(ShapeError):
        bradley_terry(torch.zeros(2), torch.zeros(2), margin=torch.zeros(3))
    with pytest.raises(ShapeError):
        bradley_terry(torch.zeros(2), torch.zeros(2), label_smoothing=torch.zeros(3))
    for smoothing in (-0.1, 0.6):
        with pytest.raises(ConfigError, match="swapped"):
            bradley_terry(torch.zeros(2), torch.zeros(2), label_smoothing=smoothing)
    with pytest.raises(DataError, match="outcome"):
        davidson(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 0.3]), torch.zeros(()))
    with pytest.raises(ConfigError, match="bins"):
        calibration_error(torch.zeros(2), bins=0)


@pytest.mark.parametrize("error", [0.0, 0.1, 0.4])
def test_a_careless_judge_against_a_loop(error):
    first, second = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    label = torch.tensor([1.0, 0, 0.5, 1, 0, 0.25], dtype=torch.float64)
    loss, metrics = careless_bradley_terry(first, second, label, error=error)
    for i in range(6):
        p = (1 - error) * sigmoid(float(first[i] - second[i])) + error / 2
        expected = -float(label[i]) * math.log(p) - (1 - float(label[i])) * math.log(1 - p)
        assert math.isclose(float(loss[i]), expected, rel_tol=1e-9)
        right = abs(float(first[i] > second[i]) - (1 - float(label[i])))
        assert math.isclose(float(metrics["accuracy"][i]), right)
    assert torch.equal(metrics["margin"], first - second)


def test_a_careless_judges_worked_numbers():
    first, second, one = torch.tensor([0.8]), torch.tensor([0.4]), torch.ones(1)
    assert round(careless_bradley_terry(first, second, one)[0].item(), 6) == 0.529637
    assert round(careless_bradley_terry(first, second, one, error=0.0)[0].item(), 6) == 0.513015
    assert round(careless_bradley_terry(first, second, one / 2, error=0.0)[0].item(), 6) == 0.713015
    far = careless_bradley_terry(torch.tensor([-1e4]), torch.zeros(1), one)[0]
    assert math.isclose(far.item(), -math.log(0.05), rel_tol=1e-6)
    same = careless_bradley_terry(one, one, one)[1]["accuracy"]
    assert same.tolist() == [0.5]
    gap = torch.tensor([-1e4, 3.0], requires_grad=True)
    careless_bradley_terry(gap, torch.zeros(2), torch.ones(2), error=0.0)[0].sum().backward()
    assert gap.grad.isfinite().all()
    for error in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="share of random answers"):
            careless_bradley_terry(first, second, one, error=error)
