"""From a data setting to rows that are ready to train on: read, rendered, checked, split into training and held-out.

Everything is rendered before the first step, so a row that does not fit is reported at once, with its place. Which row
a step takes is a pure function of (seed, step): there is no iterator state to lose.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from posttrain import rng
from posttrain.chat.render import prompt, render, render_answer, render_pair, render_text
from posttrain.data.formats import Columns, Kind
from posttrain.data.sources import Source, read
from posttrain.errors import ConfigError, DataError
from posttrain.models.load import Loaded
from posttrain.records import Judged, Message, Pair, Ranking, Segment, Task, Text

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where rows come from, and what is done with those that do not fit."""

    path: str
    """A file (.jsonl, .json, .jsonl.gz, .parquet), a pattern, "builtin:NAME" or "hf:NAME"."""
    kind: Literal["auto", "text"] = "auto"
    """auto: what the method needs, by its columns. text: plain documents, every token learned, no template."""
    limit: int | None = None
    """Read at most this many rows; for builtin data, make this many."""
    eval_path: str | None = None
    """A second source for evaluation."""
    eval_rows: int = 0
    """Without `eval_path`: hold out this many rows of `path` (builtin tasks: of their test split) to evaluate. Where
    that would leave less than half of a file's rows to train on, a fifth of them is held out instead."""
    max_len: int | None = None
    """Cut rows to this many tokens. None: the model's context. What was cut is counted and shown."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """stop: a row that does not fit ends the program with its place. skip: it is left out, counted and listed."""
    columns: Columns = Columns()
    """Column names, where they are unusual."""

    def __post_init__(self):
        if self.eval_rows < 0:
            raise ConfigError(f"data.eval_rows = {self.eval_rows} cannot be negative; 0 holds out none")
        if self.max_len is not None and self.max_len < 2:
            raise ConfigError(f"data.max_len = {self.max_len}: a row needs a token of context and one to learn")


@dataclass(frozen=True)
class Rows:
    """Rows ready for use."""

    train: list[Any]
    held: list[Any]
    path: str
    skipped: tuple[str, ...] = ()
    """Rows left out, with place and reason."""
    truncated: int = 0
    """Rows that lost tokens to `max_len`."""
    longest: int = 0
    """Tokens of the longest row."""
    fewer: int = 0
    """How many rows were to be held out, where they are too few for it."""


@dataclass(frozen=True)
class PairRow:
    """A rendered pair."""

    index: int
    pair: tuple[Segment, Segment]
    margin: float | None = None


@dataclass(frozen=True)
class RankingRow:
    """Rendered answers to one prompt, the best first."""

    index: int
    answers: tuple[Segment, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class VerdictRow:
    """A rendered answer with a verdict, and beside it the answer to another prompt, on which nothing was said."""

    index: int
    pair: tuple[Segment, Segment]
    """The answer, and under the same prompt that of another row."""
    good: bool


def demonstrations(data: Data, loaded: Loaded) -> Rows:
    """Segments of demonstrations (or documents), for cross-entropy."""

    def segments(record, where: str) -> list[Segment]:
        length = room(data, loaded)
        if isinstance(record, Text):
            return [render_text(record.text, loaded.tokenizer, max_len=length, where=where)]
        return render(record.messages, loaded.template, loaded.tokenizer, max_len=length, where=where)

    kind: Kind = "text" if data.kind == "text" else "sft"
    train, held, notes = _rendered(data, kind, segments)
    flat = [s for row in train for s in row]
    return _rows(data, flat, [s for row in held for s in row], notes, flat)


def pairs(data: Data, loaded: Loaded) -> Rows:
    """Rendered pairs, for preference losses and reward models."""

    def one(record: Pair, where: str) -> PairRow:
        length = room(data, loaded)
        return PairRow(
            -1, render_pair(record, loaded.template, loaded.tokenizer, max_len=length, where=where), record.margin
        )

    train, held, notes = _rendered(data, "preference", one)
    numbered = [PairRow(i, row.pair, row.margin) for i, row in enumerate(train + held)]
    train, held = numbered[: len(train)], numbered[len(train) :]
    return _rows(data, train, held, notes, [s for row in train for s in row.pair])


def rankings(data: Data, loaded: Loaded) -> Rows:
    """Rendered rankings, for losses on more than two answers."""

    def one(record: Ranking, where: str) -> RankingRow:
        place = {"max_len": room(data, loaded), "where": where}
        order = sorted(range(len(record.scores)), key=lambda i: -record.scores[i])
        said = (render_answer(record.prompt, (record.answers[i],), loaded.template, loaded.tokenizer, **place)
                for i in order)  # fmt: skip
        return RankingRow(-1, tuple(said), tuple(record.scores[i] for i in order))

    train, held, notes = _rendered(data, "ranking", one)
    numbered = [RankingRow(i, row.answers, row.scores) for i, row in enumerate(train + held)]
    train, held = numbered[: len(train)], numbered[len(train) :]
    return _rows(data, train, held, notes, [s for row in train for s in row.answers])


def verdicts(data: Data, loaded: Loaded) -> Rows:
    """Rendered answers with a verdict each, for unpaired losses.

    Each row also gets the answer of the next row that has another prompt, which is what KTO measures its drift on.
    Raises DataError where all rows ask the same.
    """

    def answer(prompt: Sequence[Message], said: Sequence[Message], where: str) -> Segment:
        length = room(data, loaded)
        return render_answer(prompt, said, loaded.template, loaded.tokenizer, max_len=length, where=where)

    def one(record: Judged, where: str) -> tuple[Judged, Segment]:
        return record, answer(record.prompt, record.answer, where)

    def numbered(rows: list[tuple[Judged, Segment]], first: int) -> list[VerdictRow]:
        found = []
        for i, (record, segment) in enumerate(rows):
            order = (rows[(i + k) % len(rows)][0] for k in range(1, len(rows)))
            other = next((r for r in order if r.prompt != record.prompt), None)
            if other is None:
                raise DataError(f"{data.path}: all {len(rows)} rows ask the same, so that no answer belongs to another "
                                "prompt, which unpaired losses measure their drift on")  # fmt: skip
            pair = segment, answer(record.prompt, other.answer, f"row {i + 1} with the answer of another")
            found.append(VerdictRow(first + i, pair, record.good))
        return found

    train, held, notes = _rendered(data, "judged", one)
    rows, held = numbered(train, 0), numbered(held, len(train)) if held else []
    return _rows(data, rows, held, notes, [row.pair[0] for row in rows])


def tasks(data: Data, loaded: Loaded) -> Rows:
    """Tasks whose prompts leave room for an answer, for rollouts."""
    lengths: list[int] = []

    def one(record: Task, where: str) -> Task:
        size, limit = len(prompt(record.prompt, loaded.template, loaded.tokenizer)), room(data, loaded)
        if size >= limit:
            raise DataError(f"{where}: the prompt has {size} tokens and leaves no room for an answer within {limit}")
        lengths.append(size)
        return record

    train, held, notes = _rendered(data, "prompt", one)
    return Rows(train, held, data.path, tuple(notes), 0, max(lengths), fewer(data, held))


def room(data: Data, loaded: Loaded) -> int:
    """Tokens that a row may have."""
    if data.max_len is not None and data.max_len > loaded.context:
        raise ConfigError(
            f"data.max_len = {data.max_len} exceeds the model's context of {loaded.context} tokens, beyond which it "
            "was never trained. Leave data.max_len out, or take another model."
        )
    return data.max_len or loaded.context


def pick(rows: Sequence[Row], step: int, n: int, seed: int) -> list[Row]:
    """The n rows of a step, from endless shuffled epochs: a pure function of its arguments."""
    return [rows[rng.epoch_item(step * n + i, len(rows), seed, "data")] for i in range(n)]


def steps_for(cfg: Any, rows: int) -> int:
    """Optimizer steps of a config with `steps`, `epochs` and `batch_size`."""
    if cfg.steps is not None:
        return cfg.steps
    return max(1, math.ceil(cfg.epochs * rows / cfg.batch_size))


def report(rows: Rows) -> str:
    """What was read, with everything that was left out or cut: the first half of a sentence."""
    text = f"{len(rows.train)} rows of {rows.path}, the longest of {rows.longest} tokens"
    text += f", {len(rows.held)} held out" if rows.held or rows.fewer else ""
    text += f" (a fifth: {rows.fewer} are too many to spare)" if rows.fewer else ""
    text += f"; {rows.truncated} cut to fit" if rows.truncated else ""
    if rows.skipped:
        text += f"; {len(rows.skipped)} left out: " + "; ".join(rows.skipped[:3])
        text += "; ..." if len(rows.skipped) > 3 else ""
    return text


def _rendered(data: Data, kind: Kind, make) -> tuple[list, list, list[str]]:
    """Training and held-out rows of a setting, and what was left out."""
    notes: list[str] = []

    def all_of(source: Source) -> list:
        notes.extend(source.skipped)
        made = []
        for i, record in enumerate(source.records):
            where = getattr(record, "meta", {}).get("where", f"{source.path}, record {i + 1}")
            try:
                made.append(make(record, where))
            except DataError as error:
                if data.on_bad_row == "stop":
                    raise DataError(f'{error}. Set data.on_bad_row = "skip" to leave such rows out.') from None
                notes.append(str(error))
        return made

    def source(path: str, limit: int | None) -> Source:
        return read(path, kind, columns=data.columns, on_bad_row=data.on_bad_row, limit=limit)

    limit = None if data.limit is None else data.limit + (0 if data.eval_path else data.eval_rows)
    if data.eval_path:
        train, held = all_of(source(data.path, limit)), all_of(source(data.eval_path, data.eval_rows or None))
    elif data.eval_rows and kind == "prompt" and data.path.startswith("builtin:"):
        train, held = all_of(source(data.path, data.limit)), all_of(source(f"{data.path}:test", data.eval_rows))
    else:
        rows = all_of(source(data.path, limit))
        cut = len(rows) - spared(data.eval_rows, len(rows))
        train, held = rows[:cut], rows[cut:]
    if not train:
        raise DataError(
            f"{data.path}: no row is left to train on ({len(notes)} left out, {len(held)} held out)"
            + (f". The first: {notes[0]}" if notes else "")
        )
    return train, held, notes


def spared(asked: int, rows: int) -> int:
    """How many of a file's rows are held out: as many as asked for, or a fifth where half would not be left."""
    return asked if asked <= rows / 2 else rows // 5


def fewer(data: Data, held: Sequence[Any]) -> int:
    """How many rows of a file were to be held out, where they are fewer; 0 where they are as many."""
    apart = data.eval_path is not None or data.path.startswith("builtin:")
    return data.eval_rows if not apart and len(held) < data.eval_rows else 0


def _rows(data: Data, train: list, held: list, notes: list[str], segments: Sequence[Segment]) -> Rows:
    truncated = sum(s.truncated > 0 for s in segments)
    longest = max(len(s.tokens) for s in segments)
    return Rows(train, held, data.path, tuple(notes), truncated, longest, fewer(data, held))
