import math
import random
from math import comb

import pytest

from posttrain.evals.stats import Interval, bootstrap, paired, wilson, win_rate


def test_wilson_solves_its_equation():
    """The ends are where |p̂ - p| = z √(p(1-p)/n), which is what the interval means."""
    for right, n in ((3, 10), (50, 60), (1, 200)):
        found = wilson(right, n)
        for p in (found.low, found.high):
            assert abs(right / n - p) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / n), rel=1e-12)


def test_wilson_at_the_ends():
    z2 = 1.959963984540054**2
    assert wilson(0, 12) == Interval(0.0, 0.0, pytest.approx(z2 / (12 + z2)))
    assert wilson(12, 12) == Interval(1.0, pytest.approx(12 / (12 + z2)), 1.0)


def test_wilson_covers_the_truth_as_often_as_it_says():
    """Exact coverage, by summing the binomial law: near 95 % on average over p (Brown, Cai and DasGupta 2001)."""
    n, covered = 30, []
    ends = [wilson(k, n) for k in range(n + 1)]
    for i in range(1, 100):
        p = i / 100
        covered.append(
            sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if ends[k].low <= p <= ends[k].high)
        )
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.83


def test_the_bootstrap_agrees_with_the_normal_law_for_many_values():
    draw = random.Random(0)
    x = [draw.gauss(3, 2) for _ in range(2000)]
    mean = sum(x) / len(x)
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) / len(x))
    found = bootstrap(x, resamples=1000)
    assert found.value == pytest.approx(mean)
    # a quantile of 1000 draws has a standard error of √(0.025 · 0.975 / 1000) / φ(1.96) = 0.084 sd; four of them
    assert found.low == pytest.approx(mean - half, abs=4 * 0.084 * half / 1.96)
    assert found.high == pytest.approx(mean + half, abs=4 * 0.084 * half / 1.96)


def test_the_bootstrap_is_deterministic_and_moves_with_its_seed():
    x = [0.0, 1.0, 1.0, 0.0, 1.0, 0.25, 0.5]
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1)
    assert {bootstrap(x, seed=s, resamples=50).low for s in range(5)} != {bootstrap(x, seed=0, resamples=50).low}
    assert bootstrap([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_pairing_sees_a_small_change_that_two_intervals_miss():
    draw = random.Random(1)
    hard = [draw.random() for _ in range(200)]
    theirs, ours = hard, [h + 0.02 + draw.gauss(0, 0.02) for h in hard]
    found = paired(ours, theirs)
    assert 0 < found.low < 0.02 < found.high < 0.03
    assert bootstrap(ours).low < bootstrap(theirs).high
    assert paired(theirs, ours).value == pytest.approx(-found.value)


def test_win_rate_counts_a_tie_as_half_a_win():
    assert win_rate(30, 0, 20) == wilson(30, 50)
    assert win_rate(20, 20, 10) == wilson(30, 50)
    found = win_rate(3, 1, 4)
    assert found.value == 3.5 / 8
    for p in (found.low, found.high):  # the ends solve Wilson's equation
        assert abs(3.5 / 8 - p) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / 8), rel=1e-12)
    mirrored = win_rate(4, 1, 3)
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))
    assert str(win_rate(300, 0, 200)) == "0.600 [0.556, 0.642]"


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
        lambda: wilson(1, 2, confidence=95),
        lambda: bootstrap([]),
        lambda: paired([1.0], [1.0, 2.0]),
        lambda: win_rate(0, 0, 0),
        lambda: win_rate(3, 0, -1),
    ],
)
def test_numbers_that_make_no_sense_are_refused(call):
    with pytest.raises(ValueError, match="expected|confidence|needs"):
        call()
