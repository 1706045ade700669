"""Packing: hand-made rows, and what every packing must keep, on random lengths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import ConfigError, DataError
from posttrain.packing import Piece, best_fit, best_fit_split, wrapped

LENGTHS = st.lists(st.integers(1, 25), max_size=40)
ROOM = st.integers(1, 12)


def sizes(rows):
    return [[p.length for p in row] for row in rows]


def test_hand_made_rows():
    assert sizes(best_fit([6, 5, 4, 3], 10)) == [[6, 4], [5, 3]]
    assert sizes(wrapped([6, 5, 4], 10)) == [[6, 4], [1, 4]]
    assert best_fit_split([13], 10) == [[Piece(0, 0, 10)], [Piece(0, 10, 13)]]
    assert best_fit([13], 10) == [[Piece(0, 0, 10)]]
    assert wrapped([13], 10) == best_fit_split([13], 10)


def test_the_fullest_row_with_room_is_taken_and_of_equals_the_oldest():
    """5, 6 and 7 tokens stand in rows of 10: a sequence of 3 fits best beside 7, then 4 beside 6, 5 beside 5."""
    assert sizes(best_fit([7, 6, 5, 3], 10)) == [[7, 3], [6], [5]]
    assert sizes(best_fit([7, 6, 5, 4, 3], 10)) == [[7, 3], [6, 4], [5]]
    assert best_fit([8, 8, 2], 10) == [[Piece(0, 0, 8), Piece(2, 0, 2)], [Piece(1, 0, 8)]]
    assert best_fit([6, 7, 1, 1], 8) == [[Piece(1, 0, 7), Piece(2, 0, 1)], [Piece(0, 0, 6), Piece(3, 0, 1)]]


def test_equal_lengths_keep_their_order():
    assert [row[0].sequence for row in best_fit([4, 4, 4], 4)] == [0, 1, 2]


def test_nothing_gives_no_rows():
    assert best_fit([], 4) == best_fit_split([], 4) == wrapped([], 4) == []


@given(LENGTHS, ROOM)
def test_no_row_is_overfull_and_none_is_empty(lengths, room):
    for pack in (best_fit, best_fit_split, wrapped):
        assert all(0 < sum(row) <= room for row in sizes(pack(lengths, room)))


@given(LENGTHS, ROOM)
def test_best_fit_keeps_the_beginning_of_every_sequence_whole(lengths, room):
    pieces = sorted(p for row in best_fit(lengths, room) for p in row)
    assert pieces == [Piece(i, 0, min(n, room)) for i, n in enumerate(lengths)]


@given(LENGTHS, ROOM)
def test_split_and_wrapped_lose_no_token(lengths, room):
    for pack in (best_fit_split, wrapped):
        tokens = sorted((p.sequence, t) for row in pack(lengths, room) for p in row for t in range(p.start, p.stop))
        assert tokens == [(i, t) for i, n in enumerate(lengths) for t in range(n)]


@given(LENGTHS, ROOM)
def test_only_what_exceeds_a_row_is_split(lengths, room):
    count = [0] * len(lengths)
    for row in best_fit_split(lengths, room):
        for p in row:
            count[p.sequence] += 1
            assert p.start % room == 0
    assert count == [math.ceil(n / room) for n in lengths]


@given(LENGTHS, ROOM)
def test_wrapped_rows_are_full_but_the_last_and_in_order(lengths, room):
    rows = wrapped(lengths, room)
    assert [sum(row) for row in sizes(rows)][:-1] == [room] * (len(rows) - 1)
    order = [p for row in rows for p in row]
    assert order == sorted(order)


@given(LENGTHS, ROOM)
def test_best_fit_against_a_search_through_all_rows(lengths, room):
    """The rule, said slowly: rows are scanned for the least room that suffices, the one that waited longest first."""
    rows = []  # [room left, when it came to that, pieces]
    for time, (i, n) in enumerate(sorted(enumerate(min(n, room) for n in lengths), key=lambda x: -x[1])):
        fitting = [row for row in rows if row[0] >= n]
        row = min(fitting, key=lambda r: r[:2]) if fitting else None
        if row is None:
            row = [room, 0, []]
            rows.append(row)
        row[0], row[1] = row[0] - n, time
        row[2].append(Piece(i, 0, n))
    assert best_fit(lengths, room) == [row[2] for row in rows]


def test_refusals():
    for pack in (best_fit, best_fit_split, wrapped):
        with pytest.raises(ConfigError, match="at least one token"):
            pack([3], 0)
        with pytest.raises(DataError, match="sequence 1 has 0 tokens"):
            pack([3, 0], 4)
