"""Reads demonstrations, preferences, prompts and verdicts from files, from the embedded world and from the hub.

A source is read whole, every row checked, before a run begins: a bad row in hour three is worse than one in second
three. The order in which records are used is a pure function of (seed, cursor), so a resumed run neither repeats nor
skips a row and no iterator has state. `formats.py` knows the layouts of rows.
"""

import glob
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.data.formats import NEEDS, READERS, Columns, Kind, column_problem
from posttrain.data.messages import kind_of
from posttrain.errors import ConfigError, DataError, missing_extra, nearest
from posttrain.rng import epoch_item

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
Numbered = tuple[str, Any]
"""Where a row stands ("a.jsonl, line 3") and the row, or the DataError that reading it gave."""


@dataclass(frozen=True)
class Source:
    """What was read."""

    records: tuple[Any, ...]
    """Example, Text, Pair, Task, Judged or Ranking, as the kind asks, in file order."""
    skipped: tuple[str, ...]
    """Rows that did not fit: "file, line: reason" each."""
    path: str
    """The name it was read by."""
    columns_seen: tuple[str, ...]
    """Every column that occurred."""


def read(
    name: str | Path,
    kind: Kind,
    *,
    columns: Columns | None = None,
    on_bad_row: Literal["stop", "skip"] = "stop",
    limit: int | None = None,
    seed: int = 0,
    builtin: Callable[[str, Kind, int, int], Sequence[Any]] | None = None,
) -> Source:
    """All records of one source.

    name: a file (.jsonl, .json, each also with .gz, .parquet), a pattern such as "data/*.jsonl", "builtin:NAME" for
        the embedded world, or "hf:NAME[@CONFIG][:SPLIT]" for a dataset of the Hugging Face hub (split "train").
    kind: "sft" gives Example or Text, "text" Text, "preference" Pair, "prompt" Task, "judged" Judged,
        "ranking" Ranking.
    columns: which column holds what, where names are unusual.
    on_bad_row: "stop" raises after reading everything, with the number of bad rows and the first five. "skip" leaves
        them out and lists them in `Source.skipped`.
    limit: stop after so many records; also how many builtin records are made (2,000 by default).
    seed: for builtin records, which are generated.
    builtin: another resolver of builtin names: (name, kind, n, seed) -> records.

    Raises DataError for a missing or empty file, wrong columns, bad rows; MissingExtra for Parquet or the hub without
    their packages; ConfigError for an unknown kind or name.
    """
    name, columns = str(name), columns or Columns()
    if kind not in NEEDS:
        raise ConfigError(f'there is no kind of data "{kind}". {nearest(kind, NEEDS)}')
    if on_bad_row not in ("stop", "skip"):
        raise ConfigError(f'on_bad_row = "{on_bad_row}" is not one of "stop", "skip"')
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit}: at least one record is needed")
    if name.startswith("builtin:"):
        records = (builtin or world)(name.removeprefix("builtin:"), kind, limit or 2000, seed)
        return Source(tuple(records), (), name, ())
    rows = hub_rows(name.removeprefix("hf:")) if name.startswith("hf:") else local_rows(name)
    return _convert(rows, name, kind, columns, on_bad_row, limit)


def _convert(
    rows: Iterator[Numbered], name: str, kind: Kind, columns: Columns, on_bad_row: str, limit: int | None
) -> Source:
    """Rows as records; a row that does not fit is counted with its reason."""
    records, bad, seen = [], [], {}
    for where, row in rows:
        if isinstance(row, dict) and not seen and (problem := column_problem(kind, columns, row)):
            raise DataError(f"{name}: {problem}")  # the first row speaks for the file
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(f"the row is {kind_of(row)}, not an object with columns")
            seen |= dict.fromkeys(row)
            records.append(READERS[kind](row, columns, where))
        except DataError as error:
            bad.append(f"{where}: {error}")
        if len(records) == limit:
            break
    if bad and (on_bad_row == "stop" or not records):
        shown = "".join(f"\n  {line}" for line in bad[:5]) + (f"\n  and {len(bad) - 5} more" if len(bad) > 5 else "")
        advice = 'Correct them, or set on_bad_row = "skip" to leave them out.' if records else "Is it the right file?"
        count = f"{len(bad)} of {len(bad) + len(records)}"
        raise DataError(f'{name}: {count} rows are not of kind "{kind}":{shown}\n{advice}')
    if not records:
        raise DataError(f"{name} has no rows. Was it written completely?")
    return Source(tuple(records), tuple(bad), name, tuple(seen))


# --- where rows come from ---


def world(name: str, kind: Kind, n: int, seed: int) -> list[Any]:
    """n records of the embedded world: the one place where builtin names become data.

    name: a menu word; for prompts several joined by "+" take turns, and ":test" at the end asks for what is held out.
    """
    from posttrain.assets.world import corpus, demos, people, summaries
    from posttrain.data import tasks
    from posttrain.records import Text

    name, _, split = name.partition(":")
    if split not in ("", "train", "test") or (split == "test" and kind != "prompt"):
        raise ConfigError(f'builtin:{name}:{split}: the splits are "train" and "test", and only prompts have them')
    who = people.HELD_OUT if split == "test" else people.SEEN
    menu: dict[tuple[str, str], Callable[[], list[Any]]] = {
        ("sft", "demonstrations"): lambda: demos.demonstrations(n, seed),
        ("sft", "summaries"): lambda: summaries.demonstrations(n, seed),
        ("text", "corpus"): lambda: [Text(corpus.document(i, seed)) for i in range(n)],
        ("preference", "preferences"): lambda: demos.preferences(n, seed),
        ("judged", "verdicts"): lambda: demos.verdicts(n, seed),
        ("ranking", "rankings"): lambda: demos.rankings(n, seed),
        ("prompt", "about"): lambda: demos.about_prompts(who, n, seed),
        ("prompt", "summaries"): lambda: summaries.tasks(n, seed, split or "train"),
        **{("prompt", t): (lambda t=t: tasks.tasks(t, n, seed, split or "train")) for t in tasks.NAMES},
    }
    made = []
    for part in name.split("+"):
        if (kind, part) not in menu:
            known = [word for of, word in menu if of == kind]
            raise ConfigError(f'there is no builtin data "{part}" of kind "{kind}". {nearest(part, known or ["none"])}')
        made.append(menu[kind, part]())
    return [record for turn in zip(*made, strict=False) for record in turn][:n]


def hub_rows(name: str) -> Iterator[Numbered]:
    """Rows of a dataset of the Hugging Face hub, NAME[@CONFIG][:SPLIT], through the `datasets` package."""
    try:
        import datasets
    except ImportError:
        raise missing_extra(
            "reading datasets from the hub", "data", "download the file and give its path instead"
        ) from None
    name, _, split = name.partition(":")
    name, _, config = name.partition("@")
    try:
        found = datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError) as error:
        raise DataError(f"hf:{name} cannot be loaded: {error}. Name it as hf:NAME[@CONFIG][:SPLIT]") from error
    for i, row in enumerate(found):
        yield f"hf:{name}, row {i}", row


def local_rows(name: str) -> Iterator[Numbered]:
    """Rows of all files that a path or a pattern names, files in sorted order."""
    path = Path(name).expanduser()
    if path.is_dir():
        held = sorted({p.suffix for p in path.iterdir() if p.is_file()}) or ["nothing"]
        raise DataError(f"{name} is a folder (with {', '.join(held)}). Name a file or a pattern like {name}/*.jsonl")
    paths = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not paths:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"{path.parent} holds: {', '.join(sorted(near)[:8])}." if near else f"{path.parent} is empty or absent."
        raise DataError(f"{name} does not exist. {hint}")
    for path in paths:
        yield from file_rows(path)


def file_rows(path: Path) -> Iterator[Numbered]:
    """Rows of one file. The suffix says the format; a .json file may hold an array or one object per line."""
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path} is of no format read here ({', '.join(SUFFIXES)}). Convert it to .jsonl")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}. Download it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}). Convert its encoding") from error
    if ".jsonl" not in path.suffixes and text.lstrip()[:1] == "[":
        yield from _array_rows(text, path)
    else:
        yield from _line_rows(text, path)


def _line_rows(text: str, path: Path) -> Iterator[Numbered]:
    for number, line in enumerate(io.StringIO(text), start=1):  # splits at newlines only: JSON may hold U+2028
        if line.strip():
            where = f"{path.name}, line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                yield where, DataError(f"not valid JSON ({error.msg} at column {error.colno})")


def _array_rows(text: str, path: Path) -> Iterator[Numbered]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. The file may be cut"
        ) from error
    for i, row in enumerate(rows, start=1):
        yield f"{path.name}, row {i}", row


def _parquet_rows(path: Path) -> Iterator[Numbered]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("reading Parquet files", "data", "convert the file to .jsonl") from None
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for i, row in enumerate(rows, start=1):
            yield f"{path.name}, row {i}", row
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}. Download it again") from error


# --- the order of use ---


def take(records: Sequence[Any], cursor: int, count: int, seed: int, stream: str = "data") -> list[Any]:
    """The `count` records at `cursor` of an endless sequence of shuffled epochs: a pure function of its arguments."""
    if not records:
        raise DataError("there are no records to take from")
    return [records[epoch_item(cursor + i, len(records), seed, stream)] for i in range(count)]


def batches(
    records: Sequence[Any], size: int, seed: int, start: int = 0, stream: str = "data"
) -> Iterator[tuple[int, list[Any]]]:
    """Endless (cursor after the batch, batch); a run that saved the cursor goes on with `start`."""
    for cursor in itertools.count(start, size):
        yield cursor + size, take(records, cursor, size, seed, stream)
