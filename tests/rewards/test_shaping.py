"""Rewards for form: the papers' numbers, the edges of each piece, plain recounts."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.rewards.shaping import (
    cosine_length,
    kimi_length,
    repetition,
    replace_truncated,
    soft_overlong,
    stop_properly,
)


def test_soft_overlong_in_its_three_pieces():
    assert soft_overlong(18432, max_len=20480, buffer=4096) == -0.5
    found = [soft_overlong(n, max_len=100, buffer=20) for n in (0, 80, 81, 90, 100, 101, 500)]
    assert found == [0, 0, -0.05, -0.5, -1, -1, -1]
    assert [soft_overlong(n, max_len=10, buffer=10) for n in (0, 5, 10)] == [0, -0.5, -1]


def test_repetition_counts_what_came_before():
    assert repetition([4] * 5, n=2) == -0.75
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(-0.25)  # four trigrams, one twice
    assert repetition([1, 2, 3, 1, 2, 3], n=1, penalty=-2.0) == -1
    assert repetition([1, 2, 3], n=3) == 0 and repetition([1, 1], n=3) == 0 and repetition([]) == 0


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 3), max_size=12), n=st.integers(1, 4))
def test_repetition_against_a_recount(ids, n):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids)) if i + n <= len(ids)]
    seen_before = sum(g in grams[:i] for i, g in enumerate(grams))
    assert repetition(ids, n=n, penalty=-0.5) == pytest.approx(-0.5 * seen_before / max(len(grams), 1))


def test_answers_that_were_cut():
    assert stop_properly(1.0, True, scale=0.3) == 0.3 and stop_properly(1.0, False, scale=0.3) == 1
    assert stop_properly(-2.0, True, scale=0.5) == -1
    assert replace_truncated(1.0, True, value=-0.5) == -0.5 and replace_truncated(1.0, False, value=-0.5) == 1


def test_cosine_length():
    assert [cosine_length(n, True, max_len=10) for n in (0, 5, 10)] == pytest.approx([1, 0.75, 0.5])
    assert [cosine_length(n, False, max_len=10) for n in (0, 5, 10)] == pytest.approx([-1, -0.75, -0.5])
    assert cosine_length(11, True, max_len=10, exceeded=-3.0) == -3
    found = cosine_length(2, True, max_len=8, right_range=(2.0, 1.0))
    assert found == pytest.approx(1 + 0.5 * (1 + math.cos(math.pi / 4)))
    assert cosine_length(0, False, max_len=8, wrong_range=(-7.0, 0.0)) == -7


def test_kimi_length():
    assert kimi_length([10, 20, 30], [True] * 3) == [0.5, 0, -0.5]
    assert kimi_length([10, 20, 30], [False] * 3) == [0, 0, -0.5]
    assert kimi_length([30, 10, 15], [True, False, True]) == pytest.approx([-0.5, 0, 0.25])
    assert kimi_length([7, 7], [True, False]) == [0, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: soft_overlong(3, max_len=10, buffer=0),
        lambda: soft_overlong(3, max_len=10, buffer=11),
        lambda: repetition([1, 2], n=0),
        lambda: repetition([1, 2], penalty=0.1),
        lambda: stop_properly(1.0, True, scale=-0.1),
        lambda: stop_properly(1.0, True, scale=1.1),
        lambda: cosine_length(1, True, max_len=0),
    ],
)
def test_refusals(call):
    with pytest.raises(ConfigError):
        call()
