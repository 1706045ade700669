"""Returns and GAE: against loops and hand-computed numbers, on masks with holes, and at the two ends of λ."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.returns import (
    decoupled_gae,
    explained_variance,
    gae,
    last_token,
    length_adaptive_lambda,
    rewards_to_go,
    token_rewards,
)

REWARDS = torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
VALUES = torch.tensor([[0.2, 0.5, 0.4, 0.8]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


def data(n=6, t=8):
    mask = torch.rand(n, t) < 0.6
    mask[:, 0], mask[:, 1] = False, True
    return torch.randn(n, t), torch.randn(n, t), mask


@pytest.mark.parametrize(
    "lam, advantages",
    [
        (0.0, (0.3, -0.1, 0.4, 0.2)),
        (0.5, (0.375, 0.15, 0.5, 0.2)),
        (0.95, (0.737475, 0.4605, 0.59, 0.2)),
        (1.0, (0.8, 0.5, 0.6, 0.2)),
    ],
)
def test_gae_worked_numbers(lam, advantages):
    found, targets = gae(REWARDS, VALUES, ALL, lam=lam)
    torch.testing.assert_close(found, torch.tensor([advantages]))
    torch.testing.assert_close(targets, found + VALUES)


def test_gae_against_the_double_sum():
    """A_t = Σ_l (γλ)^l δ_{t+l} over the policy's own tokens, with a value after the last one."""
    rewards, values, mask = data()
    last = torch.randn(6)
    gamma, lam = 0.9, 0.7
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=lam, last_value=last)
    for n in range(6):
        at = mask[n].nonzero().flatten().tolist()
        r, v = rewards[n, at].tolist(), [*values[n, at].tolist(), float(last[n])]
        delta = [r[k] + gamma * v[k + 1] - v[k] for k in range(len(r))]
        for k, t in enumerate(at):
            expected = sum((gamma * lam) ** (i - k) * delta[i] for i in range(k, len(r)))
            assert math.isclose(advantages[n, t], expected, rel_tol=1e-9, abs_tol=1e-12)


def test_gae_at_the_two_ends_of_lambda():
    rewards, values, mask = data()
    advantages, targets = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    returns = rewards_to_go(rewards, mask, gamma=0.9)
    torch.testing.assert_close(advantages[mask], (returns - values)[mask])
    torch.testing.assert_close(targets, returns)
    per_row, _ = gae(rewards, values, mask, gamma=0.9, lam=torch.tensor([0.0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(per_row[1::2], advantages[1::2])
    torch.testing.assert_close(per_row[::2], gae(rewards, values, mask, gamma=0.9, lam=0.0)[0][::2])


def test_tool_tokens_are_stepped_over():
    """Putting masked tokens between the policy's own changes nothing about the policy's own."""
    rewards, values, _ = data()
    whole = torch.ones(6, 8, dtype=torch.bool)
    wide = torch.zeros(6, 16, dtype=torch.bool)
    wide[:, ::2] = True

    def spread(x):
        out = torch.full((6, 16), math.nan)
        out[:, ::2] = x
        return out

    for f in (lambda r, v, m: gae(r, v, m, gamma=0.9, lam=0.8)[0], lambda r, v, m: rewards_to_go(r, m, gamma=0.9)):
        found = f(spread(rewards), spread(values), wide)
        torch.testing.assert_close(found[:, ::2], f(rewards, values, whole))
        assert not found[:, 1::2].any()


def test_rewards_to_go_example():
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert rewards_to_go(torch.tensor([[1.0, 0, 2]]), mask, gamma=0.5).tolist() == [[1.5, 1, 2]]


def test_rewards_to_go_against_the_sum():
    rewards, _, mask = data()
    found = rewards_to_go(torch.where(mask, rewards, math.nan), mask, gamma=0.9)
    for n in range(6):
        at = mask[n].nonzero().flatten().tolist()
        for k, t in enumerate(at):
            expected = sum(0.9**i * float(rewards[n, s]) for i, s in enumerate(at[k:]))
            assert math.isclose(found[n, t], expected, rel_tol=1e-9, abs_tol=1e-12)
    assert not found[~mask].any()


def test_empty_rows_and_empty_batches():
    rewards, values, mask = data()
    mask[2] = False
    for found in (*gae(rewards, values, mask), rewards_to_go(rewards, mask), token_rewards(rewards[:, 0], mask)):
        assert found.isfinite().all() and not found[2].any()
    none = torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)
    assert gae(*none)[0].shape == (2, 0) and rewards_to_go(none[0], none[2]).shape == (2, 0)


def test_gae_does_not_pass_a_gradient_and_reads_only_the_mask():
    rewards, values, mask = data()
    advantages, targets = gae(rewards, values, mask, lam=0.8)
    junk = [torch.where(mask, x, math.nan).requires_grad_() for x in (rewards, values)]
    last = torch.zeros(6, requires_grad=True)
    for f in (gae, decoupled_gae):
        found, goals = f(*junk, mask, lam=0.8, last_value=last)
        assert not found.requires_grad and not goals.requires_grad
        torch.testing.assert_close(found, advantages)
    torch.testing.assert_close(gae(*junk, mask, lam=0.8)[1], targets)
    assert not advantages[~mask].any() and not targets[~mask].any()
    with pytest.raises(ShapeError):
        gae(rewards, values[:, 1:], mask)


def test_decoupled_gae_takes_each_half_from_its_own_lambda():
    rewards, values, mask = data()
    last, lam = torch.randn(6), torch.rand(6)
    found = decoupled_gae(rewards, values, mask, gamma=0.9, lam=lam, target_lam=0.7, last_value=last)
    torch.testing.assert_close(found[0], gae(rewards, values, mask, gamma=0.9, lam=lam, last_value=last)[0])
    torch.testing.assert_close(found[1], gae(rewards, values, mask, gamma=0.9, lam=0.7, last_value=last)[1])
    usual = torch.tensor([[0.737475, 0.4605, 0.59, 0.2]])
    for f in (gae, decoupled_gae):
        torch.testing.assert_close(f(REWARDS, VALUES, ALL)[0], usual)
    advantages, targets = decoupled_gae(REWARDS, VALUES, ALL, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.375, 0.15, 0.5, 0.2]]))
    torch.testing.assert_close(targets, torch.ones(1, 4))


def test_a_truncated_answer_bootstraps_from_the_value_after_it():
    found, targets = gae(
        torch.zeros(1, 1), torch.tensor([[0.5]]), ALL[:, :1], gamma=0.5, last_value=torch.tensor([3.0])
    )
    assert found.tolist() == [[1.0]] and targets.tolist() == [[1.5]]


def test_last_token():
    mask = torch.tensor([[False, True, True, False, True, False], [False] * 6])
    assert last_token(mask).nonzero().tolist() == [[0, 4]]


def test_token_rewards_worked_numbers():
    old, ref = torch.tensor([[0.5, 0.4, 0.9]]).log(), torch.tensor([[0.25, 0.5, 0.9]]).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    rewards = token_rewards(torch.tensor([1.0]), mask, kl=old - ref, beta=0.1)
    assert [round(x, 6) for x in rewards[0].tolist()] == [-0.069315, 0.022314, 1.0]
    assert token_rewards(torch.tensor([2.0]), mask).tolist() == [[0, 0, 2.0]]


def test_token_rewards_add_up_and_read_only_the_mask():
    _, kl, mask = data()
    score = torch.randn(6)
    rewards = token_rewards(score, mask, kl=torch.where(mask, kl, math.nan).requires_grad_(), beta=0.3)
    torch.testing.assert_close(rewards.sum(1), score - 0.3 * (kl * mask).sum(1))
    assert not rewards[~mask].any() and not rewards.requires_grad
    with pytest.raises(ConfigError, match="without a kl"):
        token_rewards(score, mask, beta=0.3)


def test_token_rewards_of_steps_and_with_a_range():
    mask = torch.tensor([[True, True, False, True]])
    steps = torch.tensor([[0.5, -7, math.nan, 9]])
    assert token_rewards(steps, mask).tolist() == [[0.5, -7, 0, 9]]
    assert token_rewards(steps, mask, clip=(-1, 2)).tolist() == [[0.5, -1, 0, 2]]
    kl = torch.tensor([[0.1, 0.2, 5, -0.3]])
    charged = token_rewards(steps, mask, kl=kl, beta=10.0, clip=(-1, 2))  # the range is the score's, not the sum's
    torch.testing.assert_close(charged, torch.tensor([[-0.5, -3, 0, 5]]))
    assert token_rewards(torch.tensor([20.0]), mask, clip=(-1, 2)).tolist() == [[0, 0, 0, 2]]
    missing = token_rewards(torch.tensor([math.nan]), mask, clip=(-1, 2))
    assert missing[0, 3].isnan() and missing[0, :3].tolist() == [0, 0, 0]


def test_length_adaptive_lambda():
    mask = torch.arange(1000) < torch.tensor([[100], [1000], [5]])
    torch.testing.assert_close(length_adaptive_lambda(mask), torch.tensor([0.8, 0.98, 0.0]))
    torch.testing.assert_close(length_adaptive_lambda(mask, 0.5), torch.tensor([0.98, 0.998, 0.6]))
    assert length_adaptive_lambda(torch.zeros(1, 3, dtype=torch.bool)).tolist() == [0]


def test_explained_variance():
    _, targets, mask = data()
    assert math.isclose(explained_variance(targets, targets, mask), 1)
    assert abs(explained_variance(torch.full_like(targets, 5.0), targets, mask)) < 1e-12
    assert explained_variance(-targets, targets, mask) < 0
    two = torch.tensor([[0.0, 1, math.nan]]), torch.tensor([[0.0, 2, math.nan]]), torch.tensor([[True, True, False]])
    assert explained_variance(*two) == 0.75
    assert not explained_variance(two[0], torch.ones(1, 3), two[2]).isfinite()
