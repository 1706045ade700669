"""Advantages that the whole batch scales, several rewards, and the baseline per token: against loops."""

import math
import statistics

import pytest
import torch

from posttrain.errors import ShapeError
from posttrain.objectives.advantages import (
    batch_center,
    batch_zscore,
    center,
    center_live,
    center_then_scale,
    center_then_whiten,
    decoupled,
    moments,
    optimal_token,
    running_baseline,
    still_running,
    weighted_sum,
    whiten,
    zscore,
)

NAN = math.nan
REWARD = torch.tensor([0.3, 1.7, NAN, 0.9, 0.2, 1.1, NAN, 0.6, 1.9, 0.4, 0.7, NAN], dtype=torch.float64)
GROUP = torch.tensor([4, 1, 4, 4, 1, 9, 7, 1, 4, 2, 2, 2])
GIVEN = ~REWARD.isnan()


def tokens(n=6, t=7):
    mask = torch.rand(n, t) < 0.6
    mask[:, 0], mask[:, 1] = False, True
    return torch.randn(n, t), mask


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("shift", [True, False])
def test_whiten_against_a_loop(shift, ddof):
    x, mask = tokens()
    values = x[mask].tolist()
    mean = statistics.fmean(values)
    var = sum((v - mean) ** 2 for v in values) / (len(values) - ddof)
    found = whiten(torch.where(mask, x, NAN), mask, shift=shift, eps=0.3, ddof=ddof)
    expected = torch.tensor([(v - mean) / math.sqrt(var + 0.3) + (0 if shift else mean) for v in values])
    torch.testing.assert_close(found[mask], expected)
    assert not found[~mask].any()
    torch.testing.assert_close(moments(x, mask, ddof=ddof), (torch.tensor(mean), torch.tensor(var)))


def test_whiten_worked_numbers():
    """The advantages of card 12, by the sample's and by the population's variance."""
    x, mask = torch.tensor([[0.737475, 0.4605, 0.59, 0.2]]), torch.ones(1, 4, dtype=torch.bool)
    sample = torch.tensor([[1.054518, -0.160026, 0.407835, -1.302327]])
    torch.testing.assert_close(whiten(x, mask), sample, atol=1e-6, rtol=0)
    population = torch.tensor([[1.217652, -0.184782, 0.470928, -1.503797]])
    torch.testing.assert_close(whiten(x, mask, ddof=0), population, atol=1e-6, rtol=0)
    rewards = torch.tensor([[1.0, 2, 3, 9]]), torch.tensor([[True, True, True, False]])
    kept = whiten(*rewards, shift=False, ddof=0)
    torch.testing.assert_close(kept, torch.tensor([[0.775255, 2, 3.224745, 0]]), atol=1e-6, rtol=0)


def test_whiten_of_next_to_nothing():
    mask = torch.tensor([[False, True, False]])
    assert whiten(torch.tensor([[9.0, 5, 9]]), mask).tolist() == [[0, 0, 0]]
    assert whiten(torch.tensor([[9.0, 5, 9]]), mask, shift=False).tolist() == [[0, 5, 0]]
    assert whiten(torch.full((1, 3), NAN), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]
    x = torch.tensor([[9.0, 5, 7]])
    assert [float(m) for m in moments(x, mask)] == [5, 0]
    assert [float(m) for m in moments(x, torch.zeros_like(mask))] == [0, 0]
    assert [float(m) for m in moments(x, torch.tensor([[False, True, True]]))] == [6, 2]
    with pytest.raises(ShapeError):
        whiten(torch.zeros(1, 3), torch.ones(1, 4, dtype=torch.bool))


def test_center_then_whiten_against_a_loop():
    _, mask = tokens(12)
    centered = center(REWARD, GROUP)
    values = [float(centered[i]) for i, t in mask.nonzero().tolist() if GIVEN[i]]
    mean, std = statistics.fmean(values), math.sqrt(statistics.variance(values) + 1e-8)
    expected = torch.where(mask & GIVEN[:, None], (centered[:, None] - mean) / std, 0.0)
    torch.testing.assert_close(center_then_whiten(REWARD, GROUP, mask), expected)


def scored(x=REWARD):
    return x[~x.isnan()].tolist()


def test_batch_statistics_against_loops():
    mean, std = statistics.fmean(scored()), statistics.stdev(scored())
    torch.testing.assert_close(batch_center(REWARD), torch.where(GIVEN, REWARD - mean, 0.0))
    expected = torch.where(GIVEN, (REWARD - mean) / (std + 0.2), 0.0)
    torch.testing.assert_close(batch_zscore(REWARD, eps=0.2), expected)
    torch.testing.assert_close(batch_zscore(REWARD.nan_to_num(7.0), given=GIVEN, eps=0.2), expected)
    torch.testing.assert_close(center_then_scale(REWARD, GROUP), center(REWARD, GROUP) / (std + 1e-4))
    torch.testing.assert_close(batch_zscore(torch.tensor([1.0, 2, 3])), torch.tensor([-1.0, 0, 1]) / 1.0001)
    assert batch_center(torch.tensor([1.0, 0, 0, 1])).tolist() == [0.5, -0.5, -0.5, 0.5]


def test_center_then_scale_divides_by_the_raw_rewards_deviation():
    reward, group = torch.tensor([1.0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert center_then_scale(reward, group, eps=0).tolist() == [1, -1, 0, 0]
    equal = torch.full((4,), 0.1, dtype=torch.float32)
    assert not center_then_scale(equal, group).any() and not batch_zscore(equal).any()


def test_center_live_averages_over_what_teaches():
    reward, group = torch.tensor([1.0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert center_live(reward, group).tolist() == [1, -1, 0, 0]
    assert center_live(reward, group, scale=4.0).tolist() == [0.25, -0.25, 0, 0]
    assert center_live(torch.tensor([1.0, 0, 1, NAN]), group).tolist() == [0.75, -0.75, 0, 0]  # 3 given, 2 live
    assert not center_live(torch.ones(4), group).any()
    alive = torch.tensor([True, True, False, False])
    weights = torch.rand(4)
    torch.testing.assert_close(
        (center_live(reward, group) * weights).mean(), (center(reward, group) * weights)[alive].mean()
    )


def test_weighted_sum_leaves_out_what_was_not_given():
    rewards, weights = torch.tensor([[1, 0.5], [NAN, 0.5], [NAN, NAN], [-3, 0]]), torch.tensor([1, 0.2])
    found = weighted_sum(rewards, weights)
    torch.testing.assert_close(found, torch.tensor([1.1, 0.1, NAN, -3.0]), equal_nan=True)
    found = weighted_sum(rewards, weights, clip=(-1.0, 0.6))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.1, NAN, -1.0]), equal_nan=True)
    torch.testing.assert_close(weighted_sum(rewards)[:2], torch.tensor([1.5, 0.5]))
    with pytest.raises(ShapeError, match="answers, kinds"):
        weighted_sum(torch.ones(3))
    with pytest.raises(ShapeError):
        weighted_sum(rewards, torch.ones(3))


def test_decoupled_against_a_loop():
    rewards = torch.stack([REWARD, torch.randn(12), torch.randn(12)], 1)
    rewards[2, 1:] = NAN  # nothing at all was given there
    rewards[9, 2] = NAN
    weights = torch.tensor([1.0, 0.3, 2.0])
    total = []
    for i in range(12):
        parts = []
        for k in range(3):
            members = scored(rewards[GROUP.eq(GROUP[i]), k])
            if not math.isnan(rewards[i, k]) and len(members) > 1:
                z = (float(rewards[i, k]) - statistics.fmean(members)) / (statistics.stdev(members) + 1e-4)
                parts.append(float(weights[k]) * z)
        total.append(sum(parts))
    kept = total[:2] + total[3:]
    mean, std = statistics.fmean(kept), statistics.stdev(kept) + 1e-4
    expected = torch.tensor([(x - mean) / std for x in total])
    expected[2] = 0
    torch.testing.assert_close(decoupled(rewards, GROUP, weights), expected)


def test_decoupled_does_not_care_for_the_scale_of_a_reward():
    rewards, group = torch.randn(8, 2), torch.arange(8) // 4
    scaled = rewards * torch.tensor([10.0, 1])
    torch.testing.assert_close(decoupled(scaled, group), decoupled(rewards, group), atol=1e-3, rtol=1e-3)
    one = decoupled(rewards[:, :1], group, eps=1e-9)
    torch.testing.assert_close(one, batch_zscore(zscore(rewards[:, 0], group, eps=1e-9), eps=1e-9))


def test_running_baseline_starts_unbiased_and_moves_slowly():
    start = {"baseline": 0.0, "weight": 0.0}
    state = running_baseline(start, torch.tensor([1.0, 3.0]))
    assert math.isclose(state["baseline"], 2.0) and start == {"baseline": 0.0, "weight": 0.0}
    constant = running_baseline(state, torch.tensor([2.0]))
    assert math.isclose(constant["baseline"], 2.0) and math.isclose(constant["weight"], 0.19)
    for _ in range(200):
        constant = running_baseline(constant, torch.tensor([5.0]))
    assert math.isclose(constant["baseline"], 5.0, rel_tol=1e-6)
    second = running_baseline(running_baseline(start, torch.zeros(1), decay=0.5), torch.ones(1), decay=0.5)
    assert math.isclose(second["baseline"], 2 / 3)


# --- the baseline per token ---


def policy(n=6, t=7, vocabulary=4):
    """Log-probabilities of sampled tokens and Σ π² of real distributions, on masks with holes."""
    x, mask = tokens(n, t)
    logits = 2 * torch.randn(n, t, vocabulary)
    p = logits.softmax(-1)
    chosen = torch.multinomial(p.flatten(0, 1), 1).view(n, t, 1)
    return x, mask, torch.arange(n) % 2, p.gather(2, chosen)[..., 0].log(), p.square().sum(-1), (logits, chosen)


def test_optimal_token_against_a_loop():
    reward, mask, group, logp, sum_sq, _ = policy()
    found = optimal_token(*(torch.where(mask, x, NAN) for x in (reward,)), mask, group,
                          *(torch.where(mask, x, NAN) for x in (logp, sum_sq)), eps=0.0)  # fmt: skip
    at = [row.nonzero().flatten().tolist() for row in mask]
    for i in range(6):
        for place, t in enumerate(at[i]):
            weight, value = [], []
            for j in range(6):
                if group[j] == group[i] and len(at[j]) > place:
                    own = at[j][: place + 1]
                    weight.append(sum(1 - 2 * math.exp(logp[j, s]) + float(sum_sq[j, s]) for s in own))
                    value.append(sum(float(reward[j, s]) for s in at[j][place:]))
            mine = sum(float(reward[i, s]) for s in at[i][place:])
            baseline = sum(w * v for w, v in zip(weight, value, strict=True)) / sum(weight)
            expected = mine - baseline if len(weight) > 1 else 0.0
            assert math.isclose(found[i, t], expected, rel_tol=1e-9, abs_tol=1e-12)
            assert still_running(mask, group)[i, t] == len(weight)
    assert not found[~mask].any() and not still_running(mask, group)[~mask].any()


def test_the_weight_is_the_squared_gradient_in_the_logits():
    *_, logp, sum_sq, (logits, chosen) = policy()
    logits.requires_grad_()
    total = logits.log_softmax(-1).gather(2, chosen).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(gradient.square().sum(-1), 1 - 2 * logp.exp() + sum_sq)


def test_optimal_token_of_equal_weights_is_center():
    one = (
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([3, 3]),
        torch.full((2, 1), 0.5).log(),
        torch.full((2, 1), 0.5),
    )
    reward = torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(optimal_token(reward, *one), torch.tensor([[0.5], [-0.5]]), atol=1e-7, rtol=0)
    assert optimal_token(reward, *one, eps=1.0).tolist() == [[0.75], [-0.25]]  # weights of 1/2 each
    assert not optimal_token(torch.full((2, 1), 0.1), *one).any()  # equal returns, exactly


def test_optimal_token_at_the_extremes():
    reward, mask, group, logp, sum_sq, _ = policy()
    certain = optimal_token(reward, mask, group, torch.zeros_like(logp), torch.ones_like(sum_sq))
    hopeless = optimal_token(reward, mask, group, torch.full_like(logp, -1e4), sum_sq)
    assert certain.isfinite().all() and hopeless.isfinite().all()
    nothing = optimal_token(reward, torch.zeros_like(mask), group, logp, sum_sq)
    assert not nothing.any() and nothing.shape == mask.shape
    free = optimal_token(reward, mask, group, logp.requires_grad_(), sum_sq.requires_grad_())
    assert not free.requires_grad  # a baseline is a number, not a path for the gradient
    with pytest.raises(ShapeError):
        optimal_token(reward, mask, group, logp[:, 1:], sum_sq)
