"""Conventions of other libraries: hand-computed, and where exactly each leaves our own formula."""

import math

import pytest
import torch

from posttrain.errors import ShapeError
from posttrain.objectives import peers
from posttrain.objectives.advantages import (
    center,
    center_live,
    leave_one_out,
    moments,
    optimal_token,
    pass_at_k,
    whiten,
    zscore,
)
from posttrain.objectives.returns import gae, rewards_to_go, token_rewards

NAN = math.nan
REWARD, GROUP = torch.tensor([1.0, 0, 5, 0.5], dtype=torch.float64), torch.tensor([0, 0, 1, 0])
HOLES = torch.tensor([[True, False, True]])


def test_a_lone_answer_keeps_its_raw_reward():
    assert peers.keep_lone(center(REWARD, GROUP), REWARD, GROUP).tolist() == [0.5, -0.5, 5, 0]
    assert peers.keep_lone(leave_one_out(REWARD, GROUP), REWARD, GROUP)[2] == 5
    found = peers.verl_zscore(REWARD, GROUP, eps=0.25)
    torch.testing.assert_close(found, torch.tensor([0.5 / 0.75, -0.5 / 0.75, 5 / 1.25, 0]))
    torch.testing.assert_close(peers.verl_zscore(REWARD, GROUP)[2], torch.tensor(5 / 1.000001))
    torch.testing.assert_close(found[GROUP == 0], zscore(REWARD, GROUP, eps=0.25)[GROUP == 0])
    with pytest.raises(ShapeError):
        peers.keep_lone(REWARD, REWARD[:2], GROUP)


def test_verl_counts_rewards_that_are_not_zero():
    reward, group = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long)
    assert peers.verl_center_live(reward, group).tolist() == [3, -1, -1, -1]
    assert peers.verl_center_live(reward, group, scale=2.0).tolist() == [1.5, -0.5, -0.5, -0.5]
    assert center_live(reward, group).tolist() == [0.75, -0.25, -0.25, -0.25]
    assert not peers.verl_center_live(torch.zeros(4), group).any()
    torch.testing.assert_close(peers.verl_center_live(REWARD, GROUP)[2], torch.tensor(5 * 4 / 3))


def test_verl_divides_the_best_of_a_group():
    reward, group = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(peers.verl_pass_at_k(reward, group, eps=0.0), torch.tensor([2.0, 0, 0, 0]))
    torch.testing.assert_close(peers.verl_pass_at_k(reward, group, eps=0.5), pass_at_k(reward, group))
    torch.testing.assert_close(peers.verl_pass_at_k(reward, group)[0], torch.tensor(1 / 0.500001))


def test_verl_hands_the_longest_answer_its_raw_return():
    mask, group = torch.tensor([[True, False], [True, True]]), torch.tensor([0, 0])
    reward = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    logp, sum_sq = torch.full((2, 2), 0.5).log(), torch.full((2, 2), 0.5)
    assert peers.verl_optimal_token(reward, mask, group, logp, sum_sq).tolist() == [[0, 0], [0, 1]]
    assert optimal_token(reward, mask, group, logp, sum_sq).tolist() == [[0, 0], [0, 0]]
    even = torch.tensor([[1.0, NAN], [0.0, 0]])
    for eps, baseline in ((1e-8, 0.5), (1.0, 0.25)):  # weights of 1/2 each
        found = peers.verl_optimal_token(even, mask, group, logp, sum_sq, eps=eps)
        torch.testing.assert_close(found[:, 0], torch.tensor([1 - baseline, -baseline]))
    torch.testing.assert_close(
        peers.verl_optimal_token(even, mask, group, logp, sum_sq)[:, 0], torch.tensor([0.5, -0.5])
    )


def x_and_mask():
    mask = torch.rand(5, 6) < 0.6
    mask[:, 0] = True
    return torch.randn(5, 6), mask


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_by_trl_and_verl_is_ours_without_the_mask(shift):
    x, mask = x_and_mask()
    ours = whiten(x, mask, shift=shift)
    trl, verl = peers.trl_whiten(x, mask, shift=shift), peers.verl_whiten(x, mask, shift=shift)
    torch.testing.assert_close(trl[mask], ours[mask])
    torch.testing.assert_close(verl[mask], ours[mask], atol=1e-7, rtol=1e-7)
    mean, var = moments(x, mask)
    torch.testing.assert_close(trl, (x - mean) / (var + 1e-8).sqrt() + (0 if shift else mean))
    tiny = torch.tensor([[1e-4, -1e-4]]), torch.ones(1, 2, dtype=torch.bool)  # variance 2e-8
    expected = torch.tensor([[1e-4, -1e-4]]) / math.sqrt(3e-8)
    torch.testing.assert_close(peers.trl_whiten(*tiny, shift=shift), expected)
    torch.testing.assert_close(peers.verl_whiten(*tiny, shift=shift), expected)
    if shift:
        assert torch.equal(peers.trl_whiten(x, mask), trl) and torch.equal(peers.verl_whiten(x, mask), verl)
    assert (trl[~mask] != 0).all() and (verl[~mask] != 0).all()
    junk = torch.where(mask, x, NAN)
    torch.testing.assert_close(peers.verl_whiten(junk, mask)[mask], peers.verl_whiten(x, mask)[mask])
    assert peers.trl_whiten(junk, mask)[~mask].isnan().all()


def test_verl_moments_have_an_epsilon_in_both_divisors():
    x, mask = torch.tensor([[1e6, 3e6, NAN]]), torch.tensor([[True, True, False]])
    mean, var = peers.verl_moments(x, mask)
    assert math.isclose(mean, 4e6 / (2 + 1e-8), rel_tol=1e-15) and mean != moments(x, mask)[0]
    assert math.isclose(var, 2e12 / (2 + 1e-8) * 2, rel_tol=1e-12)
    assert peers.verl_moments(x, torch.zeros_like(mask))[1] == 0
    assert peers.verl_moments(x, torch.tensor([[True, False, False]]))[1] < 1  # one entry: what the 1e-8 leaves of it


def test_openrlhf_whitens_by_the_population_and_clamps():
    x, mask = x_and_mask()
    found = peers.openrlhf_whiten(torch.where(mask, x, NAN), mask)
    torch.testing.assert_close(found, whiten(x, mask, ddof=0, eps=0.0))
    torch.testing.assert_close(peers.openrlhf_whiten(x, mask, divide=False)[mask], x[mask] - x[mask].mean())
    tiny = torch.tensor([[1e-6, -1e-6]]), torch.ones(1, 2, dtype=torch.bool)  # variance 1e-12 counts as 1e-8
    torch.testing.assert_close(peers.openrlhf_whiten(*tiny), torch.tensor([[1e-2, -1e-2]]))
    torch.testing.assert_close(peers.openrlhf_whiten_rows(*tiny), torch.tensor([[1e-2, -1e-2]]))


def test_openrlhf_rows_are_normalised_alone():
    x, mask = torch.tensor([[1.0, 2, 3, NAN], [NAN, 8, NAN, 6], [5, NAN, NAN, NAN]]), None
    mask = ~x.isnan()
    root = math.sqrt(1.5)
    expected = torch.tensor([[-root, 0, root, 0], [0, 1, 0, -1], [0, 0, 0, 0]])
    torch.testing.assert_close(peers.openrlhf_whiten_rows(x, mask), expected)
    assert not peers.openrlhf_whiten_rows(x, torch.zeros_like(mask)).any()


def test_openrlhf_charges_for_masked_places():
    score, kl, mask = torch.tensor([20.0]), torch.tensor([[0.1, 0.2]]), torch.tensor([[True, False]])
    found = peers.openrlhf_token_rewards(score, kl.requires_grad_(), mask, beta=1.0, clip=(-10, 10))
    torch.testing.assert_close(found, torch.tensor([[9.9, -0.2]]))
    assert not found.requires_grad
    ours = token_rewards(score, mask, kl=kl, beta=1.0, clip=(-10, 10))
    torch.testing.assert_close(ours, torch.tensor([[9.9, 0.0]]))
    assert peers.openrlhf_token_rewards(-score, kl, mask, beta=0.0).tolist() == [[-20, 0]]


def test_openrlhf_cuts_the_bootstrap_at_a_hole():
    rewards, values = torch.tensor([[0.0, NAN, 1]]), torch.tensor([[0.5, NAN, 0.5]])
    found, targets = peers.openrlhf_gae(rewards, values, HOLES, gamma=1.0, lam=0.0)
    assert found.tolist() == [[-0.5, 0.5, 0.5]] and targets[HOLES].tolist() == [0, 1]
    found, _ = peers.openrlhf_gae(rewards, values, HOLES, gamma=1.0, lam=1.0)
    assert found.tolist() == [[0.5, 1, 0.5]]
    assert gae(rewards, values, HOLES, lam=0.0)[0].tolist() == [[0, 0, 0.5]]
    whole = torch.tensor([[True, True, False]])
    args = torch.randn(1, 3), torch.randn(1, 3), whole
    for a, b in zip(peers.openrlhf_gae(*args, gamma=0.9, lam=0.7), gae(*args, gamma=0.9, lam=0.7), strict=True):
        torch.testing.assert_close(a[whole], b[whole])


def test_openrlhf_counts_a_hole_as_time():
    rewards = torch.tensor([[1.0, NAN, 2]])
    assert peers.openrlhf_rewards_to_go(rewards, HOLES, gamma=0.5).tolist() == [[1.5, 1, 2]]
    assert rewards_to_go(rewards, HOLES, gamma=0.5).tolist() == [[2, 0, 2]]
