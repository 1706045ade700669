"""Which sequences share a row of fixed length: packing, computed on lengths alone.

Rows that are mostly padding waste most of a step on a model that wants rectangles. Three ways out, in order of how much
they respect the data: `best_fit` keeps every sequence in one piece and drops what exceeds a row; `best_fit_split` cuts
only what exceeds a row; `wrapped` cuts wherever a row happens to end, and wastes nothing. Section 05 of the book shows
the price: a cut sequence is trained without its beginning. Sequences in one row must not see one another (positions
begin again at 0, attention stays inside: `Decoder.rows`). Our own learner lays rows end to end without padding and
needs none of this; trainers that want rectangles, and files of rows of one length, do.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.errors import ConfigError, DataError


class Piece(NamedTuple):
    """A part of a sequence: its tokens from `start` up to, and not including, `stop`."""

    sequence: int
    """Index into the lengths that were given."""
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens in the piece."""
        return self.stop - self.start


Row = list[Piece]


def best_fit(lengths: Sequence[int], row_length: int) -> list[Row]:
    """Rows of whole sequences by best-fit decreasing; of a sequence longer than a row the beginning is kept.

        longest first, each into the fullest row that still has room for it, else into a new row

    Packing without truncation is NP-hard; this heuristic needs at most 11/9 of the fewest rows, plus 4 (Johnson 1973).
    For language models: Ding et al. 2024 (arXiv 2404.10830).

    lengths: tokens of each sequence, at least 1. row_length: room in a row.
    Returns the rows in the order they were opened, each at most row_length tokens. Among equally full rows the one that
    has been so longest is taken. DataError for an empty sequence.

    Lengths 6, 5, 4, 3 in rows of 10 give the rows (6, 4) and (5, 3). Section 05.
    """
    _check(lengths, row_length)
    return _best_fit([Piece(i, 0, min(n, row_length)) for i, n in enumerate(lengths)], row_length)


def best_fit_split(lengths: Sequence[int], row_length: int) -> list[Row]:
    """Rows by best-fit decreasing, where a sequence longer than a row is first cut into pieces of a row's length.

        n tokens become ⌊n / L⌋ pieces of L tokens and one of the rest

    Ding et al. 2024 (arXiv 2404.10830), "Fewer Truncations Improve Language Modeling".

    lengths, row_length: as in `best_fit`. Returns rows as there. No token is lost.

    A sequence of 13 in rows of 10 becomes pieces of 10 and 3. Section 05.
    """
    _check(lengths, row_length)
    return _best_fit([piece for i, n in enumerate(lengths) for piece in _cut(i, n, row_length)], row_length)


def wrapped(lengths: Sequence[int], row_length: int) -> list[Row]:
    """Rows cut from all sequences laid end to end: every row is full but the last, and sequences break anywhere.

        row r holds tokens r·L to (r + 1)·L - 1 of the concatenation

    How base models are pre-trained, and what Ding et al. 2024 (arXiv 2404.10830) compare with.

    lengths, row_length: as in `best_fit`. Returns rows as there. No token is lost.

    Lengths 6, 5, 4 in rows of 10 give (6, and 4 of the 5) and (1 of the 5, then 4). Section 05.
    """
    _check(lengths, row_length)
    rows: list[Row] = []
    room = 0
    for i, n in enumerate(lengths):
        start = 0
        while start < n:
            if not room:
                rows.append([])
                room = row_length
            stop = min(n, start + room)
            rows[-1].append(Piece(i, start, stop))
            room -= stop - start
            start = stop
    return rows


def _best_fit(pieces: list[Piece], row_length: int) -> list[Row]:
    rows: list[Row] = []
    waiting: dict[int, deque[Row]] = {}  # room left -> rows with that room, the oldest first
    rooms: list[int] = []  # the keys of `waiting`, sorted
    for piece in sorted(pieces, key=lambda p: p.length, reverse=True):  # stable: equal lengths stay in order
        at = bisect_left(rooms, piece.length)
        if at == len(rooms):
            row, room = [], row_length
            rows.append(row)
        else:
            room = rooms[at]
            row = waiting[room].popleft()
            if not waiting[room]:
                del waiting[room], rooms[at]
        row.append(piece)
        room -= piece.length
        if room:
            if room not in waiting:
                waiting[room] = deque()
                insort(rooms, room)
            waiting[room].append(row)
    return rows


def _cut(sequence: int, tokens: int, length: int) -> list[Piece]:
    return [Piece(sequence, at, min(at + length, tokens)) for at in range(0, tokens, length)]


def _check(lengths: Sequence[int], row_length: int) -> None:
    if row_length < 1:
        raise ConfigError(f"row_length = {row_length}: a row needs room for at least one token.")
    for i, n in enumerate(lengths):
        if n < 1:
            raise DataError(f"sequence {i} has {n} tokens: there is nothing to pack. Leave empty sequences out.")
