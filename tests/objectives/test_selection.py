"""Choosing among answers: brute force over every draw, the worked numbers, and known identities."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives.selection import (
    best_of_n,
    best_of_n_bound,
    best_of_n_kl,
    best_of_n_policy,
    best_of_n_value,
    majority_at_k,
    pass_hat_k,
    unbiased_pass_at_k,
    weighted_vote,
)

P, RISING = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), torch.arange(4.0, dtype=torch.float64)


def test_best_of_n_takes_the_first_of_equals_and_nobody_absent():
    score = torch.tensor([[0.2, 0.9, 0.9], [5.0, 1, 2], [math.nan, -math.inf, 3], [1, 2, 3]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]]).bool()
    assert best_of_n(score, mask).tolist() == [1, 2, 1, -1]


def brute_policy(p, reward, n):
    """Every ordered draw of n, the tie shared among the drawn that are best."""
    found = [0.0] * len(p)
    for draw in itertools.product(range(len(p)), repeat=n):
        chance = math.prod(p[i] for i in draw)
        best = [i for i in draw if reward[i] == max(reward[j] for j in draw)]
        for i in best:
            found[i] += chance / len(best)
    return found


@pytest.mark.parametrize("reward", [[0, 1, 2, 3], [1, 1, 0, 2], [5, 5, 5, 5], [2, 0, 2, 0]])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_policy_and_kl_against_every_draw(reward, n):
    r = torch.tensor(reward, dtype=torch.float64)
    q = brute_policy(P.tolist(), reward, n)
    torch.testing.assert_close(best_of_n_policy(P, r, n), torch.tensor(q))
    expected = sum(a * math.log(a / b) for a, b in zip(q, P.tolist(), strict=True) if a > 0)
    assert best_of_n_kl(P, r, n).item() == pytest.approx(expected, abs=1e-14)
    assert -1e-15 <= best_of_n_kl(P, r, n).item() <= best_of_n_bound(n) + 1e-12


def test_best_of_n_worked_numbers():
    assert [round(x, 4) for x in best_of_n_policy(P, RISING, 4).tolist()] == [0.0256, 0.2145, 0.4160, 0.3439]
    assert round(best_of_n_kl(P, RISING, 4).item(), 4) == 0.5871
    known = {
        2: 0.1931,
        4: 0.6363,
        8: 1.2044,
        16: 1.8351,
        32: 2.4970,
        64: 3.1745,
        128: 3.8598,
        256: 4.5491,
        1024: 5.9324,
    }
    assert {n: round(best_of_n_bound(n), 4) for n in known} == known and best_of_n_bound(1) == 0


def test_best_of_n_reaches_the_bound_without_atoms():
    many = torch.full((4000,), 1 / 4000)
    assert best_of_n_kl(many, torch.arange(4000.0), 8).item() == pytest.approx(best_of_n_bound(8), abs=2e-3)


def test_best_of_n_depends_on_order_alone_and_on_each_row():
    p, reward = torch.softmax(torch.randn(3, 5), -1), torch.randn(3, 5)
    torch.testing.assert_close(best_of_n_policy(p, reward, 5), best_of_n_policy(p, torch.exp(3 * reward), 5))
    torch.testing.assert_close(best_of_n_policy(p, reward, 5)[1], best_of_n_policy(p[1], reward[1], 5))
    torch.testing.assert_close(best_of_n_policy(p, reward, 5).sum(-1), torch.ones(3))
    torch.testing.assert_close(best_of_n_policy(p, reward, 1), p)


def test_impossible_answers_and_large_n():
    p, reward = torch.tensor([0.0, 0.5, 0.5, 0.0]), torch.tensor([0.0, 1, 2, math.inf])
    assert best_of_n_policy(p, reward, 2).tolist() == [0, 0.25, 0.75, 0]
    assert best_of_n_kl(P, RISING, 100_000).item() == pytest.approx(math.log(10))
    leaf = P.clone().requires_grad_()
    (slope,) = torch.autograd.grad(best_of_n_kl(leaf, RISING, 1000), leaf)
    assert torch.isfinite(slope).all()
    assert torch.autograd.gradcheck(lambda q: best_of_n_kl(q, torch.tensor([0.0, 1, 1, 2]), 3), (leaf,))


def test_best_of_n_value_is_the_mean_over_all_subsets():
    worked = best_of_n_value(torch.tensor([[1.0, 2, 3]]), torch.tensor([[5.0, 1, 3]]), 2)
    assert worked.item() == pytest.approx(7 / 3)
    proxy, gold = torch.randint(0, 4, (3, 6)).double(), torch.randn(3, 6)
    for n in range(1, 7):
        found = best_of_n_value(proxy, gold, n)
        for p in range(3):
            means = []
            for draw in itertools.combinations(range(6), n):
                top = max(proxy[p, i] for i in draw)
                best = [gold[p, i].item() for i in draw if proxy[p, i] == top]
                means.append(sum(best) / len(best))
            assert found[p].item() == pytest.approx(sum(means) / len(means))
    torch.testing.assert_close(best_of_n_value(proxy, gold, 1), gold.mean(1))
    assert best_of_n_value(proxy.float(), gold.float(), 2).dtype == torch.float32


@pytest.mark.parametrize("n", [1, 5, 7])
def test_pass_at_k_and_pass_hat_k_count_subsets(n):
    for k in range(1, n + 1):
        for right in range(n + 1):
            draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
            c = torch.tensor([right])
            assert unbiased_pass_at_k(c, n, k).item() == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)
            assert pass_hat_k(c, n, k).item() == pytest.approx(sum(map(all, draws)) / len(draws), abs=1e-15)


def test_pass_at_k_worked_numbers():
    two = torch.tensor([2])
    found = {k: round(unbiased_pass_at_k(two, 16, k).item(), 4) for k in (1, 2, 4, 8, 16)}
    assert found == {1: 0.1250, 2: 0.2417, 4: 0.4500, 8: 0.7667, 16: 1}
    assert [pass_hat_k(torch.tensor([3]), 4, k).item() for k in (1, 2, 4)] == [0.75, 0.5, 0]
    each = unbiased_pass_at_k(torch.tensor([1, 1]), torch.tensor([2, 4]), 2)
    assert each.tolist() == [1, 0.5] and each.dtype == torch.float64
    large = unbiased_pass_at_k(torch.tensor([37]), 10_000, 100).item()
    assert large == pytest.approx(1 - math.comb(9963, 100) / math.comb(10_000, 100))


def brute_majority(answers, truth, voted, k, ties):
    total = 0.0
    for draw in itertools.combinations(range(len(answers)), k):
        said = [answers[i] for i in draw if voted[i]]
        counts = Counter(said)
        leaders = [a for a in counts if counts[a] == max(counts.values())]
        if ties == "first":
            total += bool(said) and next(a for a in said if a in leaders) == truth
        elif truth in leaders:
            total += 1 / len(leaders)
    return total / math.comb(len(answers), k)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 8))
def test_majority_against_every_subset(data, n):
    answers = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    voted = data.draw(st.lists(st.sampled_from([True, True, True, False]), min_size=n, max_size=n))
    truth, k = data.draw(st.integers(0, 4)), data.draw(st.integers(1, n))
    for ties in ("share", "first"):
        found = majority_at_k(torch.tensor([answers]), torch.tensor([truth]), torch.tensor([voted]), k, ties=ties)
        assert found.item() == pytest.approx(brute_majority(answers, truth, voted, k, ties), abs=1e-13)
        assert found.dtype == torch.float64


@pytest.mark.parametrize(
    "answers", [[1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [1, 2, 0, 0, 3], [2, 1, 1, 0, 0, 2], [3, 3, 3]]
)
@pytest.mark.parametrize("unread", [None, 0, 1])
def test_majority_of_chosen_answers(answers, unread):
    voted = [i != unread for i in range(len(answers))]
    for k in range(1, len(answers) + 1):
        for ties in ("share", "first"):
            found = majority_at_k(torch.tensor([answers]), torch.tensor([0]), torch.tensor([voted]), k, ties=ties)
            assert found.item() == pytest.approx(brute_majority(answers, 0, voted, k, ties), abs=1e-13)


def test_majority_of_two_answers_is_the_tail_of_the_hypergeometric_law():
    answers = torch.tensor([[0] * 36 + [1] * 24])
    found = []
    for k in (1, 3, 5, 11, 41):
        found.append(majority_at_k(answers, torch.tensor([0]), torch.ones_like(answers).bool(), k).item())
        tail = sum(math.comb(36, j) * math.comb(24, k - j) for j in range(k // 2 + 1, k + 1)) / math.comb(60, k)
        assert found[-1] == pytest.approx(tail)
    assert found == sorted(found) and found[0] == 0.6  # voting helps where the right answer is the most frequent


def test_majority_rows_are_apart_and_numbers_may_be_large():
    answers = torch.tensor([[0, 1, 0], [1, 1, 0]])
    found = majority_at_k(answers, torch.tensor([0, 0]), torch.ones(2, 3).bool(), 2)
    assert found.tolist() == pytest.approx([2 / 3, 1 / 3])
    answers = torch.tensor([[0, 0, 0, 1, 1] + [2] * 1030])  # C(1035, 517) is no float; the last 1030 do not vote
    for ties in ("share", "first"):
        found = majority_at_k(answers, torch.tensor([0]), answers != 2, 517, ties=ties)
        expected = 0.0
        for drawn in itertools.product([False, True], repeat=5):
            ours, theirs = sum(drawn[:3]), sum(drawn[3:])
            tied = 0.5 if ties == "share" else 1.0
            wins = 1.0 if ours > theirs else tied if ours == theirs > 0 else 0.0
            expected += wins * (math.comb(1030, 517 - sum(drawn)) / math.comb(1035, 517))
        assert found.item() == pytest.approx(expected)


def test_weighted_vote():
    answers, every = torch.tensor([[7, 8, 8, 9]]), torch.ones(1, 4, dtype=torch.bool)
    assert weighted_vote(answers, torch.ones(1, 4), every).tolist() == [1]
    assert weighted_vote(answers, torch.tensor([[0.9, 0.3, 0.3, 0.1]]), every).tolist() == [0]
    assert weighted_vote(torch.tensor([[5, 6, 6, 5]]), torch.ones(1, 4), every).tolist() == [0]  # tied: the first
    mask = torch.tensor([[True, True, False, True]])
    junk = torch.tensor([[1.0, 0.5, math.nan, 0.7]])
    assert weighted_vote(answers, junk, mask).tolist() == [0]
    assert weighted_vote(answers, torch.ones(1, 4), ~every).tolist() == [-1]
    rows = weighted_vote(answers.repeat(2, 1), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]]), every.repeat(2, 1))
    assert rows.tolist() == [0, 3]


def test_refusals():
    with pytest.raises(ConfigError, match="one draw"):
        best_of_n_bound(0)
    with pytest.raises(ConfigError, match="one draw"):
        best_of_n_policy(P, RISING, 0)
    with pytest.raises(ShapeError, match="one of each"):
        best_of_n_kl(P, RISING[:3], 2)
    for n in (0, 4):
        with pytest.raises(ConfigError, match="between 1"):
            best_of_n_value(torch.zeros(1, 3), torch.zeros(1, 3), n)
        with pytest.raises(ConfigError, match="between 1"):
            majority_at_k(torch.zeros(1, 3), torch.zeros(1), torch.ones(1, 3).bool(), n)
    with pytest.raises(ConfigError, match="share, first"):
        majority_at_k(torch.zeros(1, 3), torch.zeros(1), torch.ones(1, 3).bool(), 1, ties="last")
    for right, n, k in (([1, 5], 4, 1), ([1, -1], 4, 1), ([1, 1], torch.tensor([5, 4]), 5), ([1], 4, 0)):
        for estimate in (unbiased_pass_at_k, pass_hat_k):
            with pytest.raises(DataError, match="expected"):
                estimate(torch.tensor(right), n, k)
