"""Advantages from a group's rewards: against loops over its members, and what their expectation must be."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives.advantages import (
    center,
    group_std,
    leave_one_out,
    length_weighted,
    mean_ratio,
    mixed,
    pass_at_k,
    pass_at_k_zscore,
    zscore,
)

NAN = math.nan
REWARD = [0.3, 1.7, NAN, 0.9, 0.2, 1.1, NAN, 0.6, 1.9, 0.4, 0.7, NAN]
GROUP = [4, 1, 4, 4, 1, 9, 7, 1, 4, 2, 2, 2]  # four, three, a lone one, none at all, two of three
LENGTH = [3, 1, 5, 2, 4, 6, 2, 7, 1, 2, 5, 3]


def by_loop(formula, reward=REWARD, group=GROUP, length=LENGTH):
    """formula(r, rewards of its group, its place among them, their lengths), for every answer that has company."""
    out = []
    for r, g in zip(reward, group, strict=True):
        if math.isnan(r):
            out.append(0.0)
            continue
        rows = [j for j, h in enumerate(group) if h == g and not math.isnan(reward[j])]
        members, lengths = [reward[j] for j in rows], [length[j] for j in rows]
        out.append(formula(r, members, members.index(r), lengths) if len(members) > 1 else 0.0)
    return torch.tensor(out)


def others(members, i):
    return statistics.fmean(members[:i] + members[i + 1 :])


CASES = {
    "center": (center, lambda r, m, i, n: r - statistics.fmean(m)),
    "zscore": (zscore, lambda r, m, i, n: (r - statistics.fmean(m)) / (statistics.stdev(m) + 1e-4)),
    "zscore, population": (
        lambda r, g: zscore(r, g, eps=0.3, ddof=0),
        lambda r, m, i, n: (r - statistics.fmean(m)) / (statistics.pstdev(m) + 0.3),
    ),
    "leave_one_out": (leave_one_out, lambda r, m, i, n: r - others(m, i)),
    "mean_ratio": (mean_ratio, lambda r, m, i, n: (r - statistics.fmean(m)) / (statistics.fmean(m) + 1e-6)),
    "length_weighted": (
        lambda r, g: length_weighted(r, g, torch.tensor(LENGTH)),
        lambda r, m, i, n: r - sum(a * b for a, b in zip(m, n, strict=True)) / sum(n),
    ),
    "group_std": (group_std, lambda r, m, i, n: statistics.stdev(m)),
    "group_std, population": (lambda r, g: group_std(r, g, ddof=0), lambda r, m, i, n: statistics.pstdev(m)),
    "best of the group": (
        pass_at_k,
        lambda r, m, i, n: sorted(m)[-1] - sorted(m)[-2] if r == max(m) else 0.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_answer_against_a_loop(name):
    ours, formula = CASES[name]
    reward, group = torch.tensor(REWARD), torch.tensor(GROUP)
    found, scored = ours(reward, group), ~reward.isnan()
    expected = by_loop(formula)
    if name.startswith("group_std"):  # of the group, so an answer without a reward has one too
        found, expected = found[scored], expected[scored]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    assert reward.isnan().sum() == 3  # the input is not written to


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("length", "group_std"))])
def test_an_answer_without_reward_is_as_good_as_never_sampled(name):
    ours, _ = CASES[name]
    reward, group = torch.tensor(REWARD), torch.tensor(GROUP)
    kept = ~reward.isnan()
    torch.testing.assert_close(ours(reward, group)[kept], ours(reward[kept], group[kept]), atol=0, rtol=0)
    assert not ours(reward, group)[~kept].any()


def test_worked_numbers():
    """The group of card 23: two of eight are right."""
    reward, group = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0]), torch.zeros(8, dtype=torch.long)
    expected = [
        (center(reward, group), 0.75, -0.25),
        (zscore(reward, group), 1.6198, -0.5399),
        (zscore(reward, group, eps=0, ddof=0), 1.7321, -0.5774),
        (leave_one_out(reward, group), 0.8571, -0.2857),
        (mean_ratio(reward, group), 3.0, -1.0),
        (group_std(reward, group), 0.4629, 0.4629),
        (group_std(reward, group, ddof=0), 0.4330, 0.4330),
    ]
    for found, right, wrong in expected:
        assert abs(found[0] - right) < 1e-4 and abs(found[1] - wrong) < 1e-4
    two = torch.tensor([1.0, 0.0]), torch.tensor([5, 5]), torch.tensor([1, 3])
    assert length_weighted(*two).tolist() == [0.75, -0.25]


@pytest.mark.parametrize("p", [0.05, 0.25, 0.5, 0.75, 0.95])
def test_zscore_of_right_and_wrong_in_closed_form(p):
    reward = (torch.arange(20) < 20 * p).double()
    found = zscore(reward, torch.zeros(20, dtype=torch.long), eps=0, ddof=0)
    torch.testing.assert_close(found[0], torch.tensor(math.sqrt((1 - p) / p)))
    torch.testing.assert_close(found[-1], torch.tensor(-math.sqrt(p / (1 - p))))


rewards = st.lists(st.floats(0, 2, allow_nan=False), min_size=2, max_size=8)


@settings(max_examples=30, deadline=None)
@given(rewards, st.floats(-5, 5), st.floats(0.5, 4))
def test_identities(values, shift, scale):
    reward, group = torch.tensor(values), torch.zeros(len(values), dtype=torch.long)
    n = len(values)
    centered = center(reward, group)
    torch.testing.assert_close(leave_one_out(reward, group), n / (n - 1) * centered)
    torch.testing.assert_close(center(reward + shift, group), centered, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(
        length_weighted(reward, group, torch.full((n,), 7)), centered, atol=1e-12, rtol=1e-9
    )  # equal lengths
    assert abs(centered.sum()) < 1e-12
    if reward.std() > 0.01:
        a, b = zscore(reward, group, eps=1e-12), zscore(scale * reward + shift, group, eps=1e-12)
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("f", [center, zscore, leave_one_out, mean_ratio, pass_at_k, group_std])
def test_equal_rewards_and_lone_answers_give_exactly_zero(f):
    reward = torch.tensor([0.1, 0.1, 0.1, 0.7], dtype=torch.float32)  # 0.1 · 3 / 3 is not 0.1 in float32
    assert not f(reward, torch.tensor([0, 0, 0, 1])).any()
    assert f(reward, torch.tensor([0, 0, 0, 1])).dtype == torch.float32
    assert not length_weighted(reward, torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1, 7, 0])).any()


def test_mixed_finds_groups_with_a_signal():
    group = torch.tensor([3, 3, 8, 8, 8, 5, 6, 6])
    reward = torch.tensor([1.0, 0, 1, 1, NAN, 1, 0, NAN])
    assert mixed(reward, group).tolist() == [True, True, False, False, False, False, False, False]
    assert mixed(torch.tensor([1.0, NAN, 0]), torch.zeros(3, dtype=torch.long)).tolist() == [True, False, True]


def test_a_group_without_success_has_no_mean_ratio():
    reward, group = torch.tensor([0.0, 0, 1, 0]), torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(mean_ratio(reward, group), torch.tensor([0.0, 0, 1, -1]), atol=1e-5, rtol=0)
    with pytest.raises(DataError, match="got the reward -1.0.*success rate"):
        mean_ratio(torch.tensor([1.0, NAN, -1.0]), torch.tensor([0, 0, 0]))


def test_answers_without_tokens_have_no_say_in_a_length_weighted_baseline():
    reward, group = torch.tensor([1.0, 0, 5]), torch.zeros(3, dtype=torch.long)
    assert length_weighted(reward, group, torch.tensor([1, 3, 0])).tolist() == [0.75, -0.25, 4.75]
    assert length_weighted(reward, group, torch.tensor([1, 0, 0])).tolist() == [0, -1, 4]
    assert length_weighted(reward, group, torch.tensor([0, 0, 0])).isfinite().all()
    with pytest.raises(ShapeError):
        length_weighted(reward, group, torch.tensor([1, 3]))


# --- sets of k ---


def gain(reward, i, k):
    """E over sets of k - 1 others of what answer i adds to their best, by listing the sets."""
    rest = [r for j, r in enumerate(reward) if j != i]
    sets = list(itertools.combinations(rest, k - 1))
    return statistics.fmean(max(reward[i] - max(s), 0) for s in sets)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_pass_at_k_against_all_sets(k):
    rewards = torch.randn(5).tolist(), torch.tensor([1.0, 0, 1, 0, 0]).tolist(), [0.5, 0.5, 0.2, 0.5, 0.1]
    reward = torch.tensor(sum(map(list, zip(*rewards, strict=True)), []))  # three groups, interleaved
    found = pass_at_k(reward, torch.tensor([3, 1, 2] * 5), k=k)
    for g, values in enumerate(rewards):
        expected = torch.tensor([gain(values, i, k) for i in range(5)])
        torch.testing.assert_close(found[g::3], expected, atol=1e-12, rtol=1e-12)


def test_pass_at_k_worked_numbers():
    group = torch.zeros(3, dtype=torch.long)
    for reward, expected in [((1, 0, 0), (1, 0, 0)), ((1, 1, 0), (0.5, 0.5, 0)), ((3, 1, 0), (2.5, 0.5, 0))]:
        assert pass_at_k(torch.tensor(reward).double(), group, k=2).tolist() == list(expected)
    assert pass_at_k(torch.tensor([3.0, 1, 0]), group).tolist() == [2, 0, 0]
    assert not pass_at_k(torch.tensor([3.0, 1, NAN]), group, k=3).any()  # two rewards are no set of three
    assert pass_at_k(torch.tensor([3.0, 1, NAN]), group).tolist() == [2, 0, 0]
    with pytest.raises(ConfigError, match="k = 1"):
        pass_at_k(torch.tensor([3.0, 1, 0]), group, k=1)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("right", [1, 2, 3])
def test_pass_at_k_zscore_against_all_sets(k, right):
    reward = (torch.arange(5) < right).double()
    sets = list(itertools.combinations(range(5), k))
    best = [max(float(reward[i]) for i in s) for s in sets]
    mean, std = statistics.fmean(best), statistics.pstdev(best)
    expected = [
        statistics.fmean((b - mean) / std for s, b in zip(sets, best, strict=True) if i in s) if std else 0.0
        for i in range(5)
    ]
    order = torch.randperm(5)
    group = torch.tensor([0] * 5 + [1] * 5)
    found = pass_at_k_zscore(torch.cat([reward[order], torch.ones(5)]), group, k=k)
    torch.testing.assert_close(found[:5], torch.tensor(expected)[order], atol=1e-12, rtol=1e-12)
    assert abs(found.sum()) < 1e-12 and not found[5:].any()


def test_pass_at_k_zscore_worked_numbers_and_limits():
    reward, group = torch.tensor([1.0, 0, NAN, 0, 0]), torch.zeros(5, dtype=torch.long)
    kept = torch.tensor([0, 1, 3, 4])
    one = pass_at_k_zscore(reward, group, k=1)
    torch.testing.assert_close(one[kept], zscore(reward[kept], group[kept], eps=0, ddof=0))
    torch.testing.assert_close(pass_at_k_zscore(reward, group, k=2)[:2], torch.tensor([1, -1 / 3]))
    assert one[2] == 0 and not pass_at_k_zscore(reward, group, k=5).any()
    assert torch.equal(pass_at_k_zscore(reward.float(), group, k=1), one.float())
    assert not pass_at_k_zscore(torch.zeros(5), group, k=2).any()
    with pytest.raises(DataError, match="got the reward 0.5"):
        pass_at_k_zscore(torch.tensor([1.0, 0.5]), torch.tensor([0, 0]), k=1)
    with pytest.raises(ConfigError, match="k = 0"):
        pass_at_k_zscore(reward, group, k=0)


def expected_gradient(estimator, n, p):
    """E[ Σ_i A_i d log π(y_i)/dp ] / n for n coins that show 1 with chance p, over all outcomes."""
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=n):
        y = torch.tensor(outcome)
        chance = float((p**y * (1 - p) ** (1 - y)).prod())
        score = y / p - (1 - y) / (1 - p)
        total += chance * float((estimator(y, torch.zeros(n, dtype=torch.long)) * score).mean())
    return total


@pytest.mark.parametrize("p", [0.1, 0.4, 0.8])
def test_expected_gradients(p):
    """What each estimator ascends, exactly: the reward, that shrunk, log p (almost), and pass@k."""
    n = 5
    assert math.isclose(expected_gradient(leave_one_out, n, p), 1.0)
    assert math.isclose(expected_gradient(center, n, p), (n - 1) / n)
    truncated = sum((1 - p) ** j for j in range(n - 1))  # MaxRL: log p's series up to order n - 1
    assert math.isclose(expected_gradient(lambda r, g: mean_ratio(r, g, eps=1e-12), n, p), truncated, rel_tol=1e-9)
    for k in (2, 3, 5):
        ascended = expected_gradient(lambda r, g, k=k: pass_at_k(r, g, k=k), n, p)
        assert math.isclose(ascended, (1 - p) ** (k - 1))  # d/dp (1 - (1-p)^k) is k times this
