"""Where two runs part: the first setting, row of data, sampled token and metric in which they differ.

Rows come from rows.jsonl, tokens from samples.jsonl, which holds a few trajectories per step: the first difference that
it shows may not be the first there was. Everything is compared exactly, to the last digit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from posttrain.pages import folder
from posttrain.pages.compare import differing, sides
from posttrain.pages.samples import Decode, decoder

BEFORE = 40
"""Characters of text that are shown before a differing token."""


@dataclass(frozen=True)
class Finding:
    """What a comparison of one kind found."""

    what: str
    """setting, data, samples or metrics."""
    step: int | None
    """The first step that differs; None where none does, or for settings."""
    text: str
    differs: bool


def findings(a: Path, b: Path) -> list[Finding]:
    """Settings, data, samples and metrics, in the order in which one causes the next."""
    return [_settings(a, b), _rows(a, b), _samples(a, b), _metrics(a, b)]


def _settings(a: Path, b: Path) -> Finding:
    both = sides([a, b])
    rows = differing(both)
    if both[0].method != both[1].method:
        text = f"method: {both[0].method} against {both[1].method}"
        return Finding("setting", None, text + f"; {len(rows)} settings differ", True)
    if not rows:
        return Finding("setting", None, "all settings are the same", False)
    (key, (mine, other)), *more = rows.items()
    text = f"{key}: {mine or '(none)'} against {other or '(none)'}"
    if more:
        text += f"; {len(more)} more: " + ", ".join(key for key, _ in more[:6]) + (", ..." if len(more) > 6 else "")
    return Finding("setting", None, text, True)


def _rows(a: Path, b: Path) -> Finding:
    steps = 0
    for mine, other in _paired(a, b, "rows.jsonl"):
        steps += 1
        for place, (x, y) in enumerate(zip_longest(mine["rows"], other["rows"], fillvalue="nothing"), 1):
            if x != y:
                text = f"step {mine['step']}, row {place} of {len(mine['rows'])}: {x} against {y}"
                return Finding("data", mine["step"], text, True)
    if not steps:
        return Finding("data", None, "no rows are recorded in both", False)
    return Finding("data", None, f"the same rows in the {steps} batches that both have", False)


def _metrics(a: Path, b: Path) -> Finding:
    steps = 0
    for mine, other in _paired(a, b, "metrics.jsonl"):
        steps += 1
        names = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
        if names:
            said = [f"{name} {_value(mine.get(name))} against {_value(other.get(name))}" for name in names]
            more = f"; {len(said) - 3} more" if len(said) > 3 else ""
            return Finding("metrics", mine["step"], f"step {mine['step']}: " + "; ".join(said[:3]) + more, True)
    return _same("metrics", a, b, "metrics.jsonl", f"the same in the {steps} steps that both have")


def _samples(a: Path, b: Path) -> Finding:
    decode, count, places = decoder(a) or decoder(b), 0, {}
    for mine, other in _paired(a, b, "samples.jsonl"):
        count += 1
        places[mine["step"]] = places.get(mine["step"], 0) + 1
        if mine != other:
            where = f"step {mine['step']}, sample {places[mine['step']]}"
            if mine["step"] != other["step"]:
                text = f"{where}: the other run has a sample of step {other['step']} there"
            else:
                text = f"{where}{_named(mine)}: {_parted(mine, other, decode)}"
            return Finding("samples", mine["step"], text, True)
    if not count:
        return Finding("samples", None, "no samples are recorded in both", False)
    return _same("samples", a, b, "samples.jsonl", f"the same in all {count} that both have")


def _same(what: str, a: Path, b: Path, name: str, text: str) -> Finding:
    lengths = [max((row["step"] for row in folder.lines(run, name)), default=-1) + 1 for run in (a, b)]
    if lengths[0] != lengths[1]:
        text += f"; one goes on to step {max(lengths) - 1}, the other to step {min(lengths) - 1}"
    return Finding(what, None, text, False)


def _paired(a: Path, b: Path, name: str) -> Iterator[tuple[dict, dict]]:
    return zip(folder.lines(a, name), folder.lines(b, name), strict=False)


def _named(record: Mapping[str, Any]) -> str:
    return f" ({record['task']})" if "task" in record else ""


def _parted(mine: Mapping[str, Any], other: Mapping[str, Any], decode: Decode | None) -> str:
    """Where two samples part: a token, what is said of a token, or any other entry."""
    if mine.get("task") != other.get("task"):
        return f"another task, {mine.get('task')} against {other.get('task')}"
    streams = list(zip_longest(_streams(mine), _streams(other), fillvalue=("", {})))
    for (name, x), (_, y) in streams:
        for t, (one, two) in enumerate(zip_longest(x.get("tokens", ()), y.get("tokens", ()))):
            if one != two:
                return f"{name}token {t}: {_token(one, decode)} against {_token(two, decode)}{_context(x, t, decode)}"
    for key in ("mask", "logp", "advantage"):
        for (name, x), (_, y) in streams:
            for t, (one, two) in enumerate(zip_longest(x.get(key, ()), y.get(key, ()))):
                if one != two:
                    return f"{name}the same tokens, but {key} of token {t}: {_value(one)} against {_value(two)}"
    for key in {**mine, **other}:
        if mine.get(key) != other.get(key):
            return f"{key}: {_brief(mine.get(key))} against {_brief(other.get(key))}"
    return "the same"


def _streams(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The token streams of a sample, whatever method wrote it."""
    if "segments" in record:
        several = len(record["segments"]) > 1
        return [(f"part {i + 1}, " if several else "", s) for i, s in enumerate(record["segments"])]
    if "answers" in record:
        return [(f"answer {i + 1}, ", s) for i, s in enumerate(record["answers"])]
    if "chosen" in record:
        return [(f"{name}, ", record[name]) for name in ("chosen", "rejected")]
    return [("", record)]


def _token(one: int | None, decode: Decode | None) -> str:
    if one is None:
        return "the end"
    return f"id {one}" if decode is None else f"{decode([one])!r} (id {one})"


def _context(stream: Mapping[str, Any], t: int, decode: Decode | None) -> str:
    if decode is None or not t:
        return ""
    return f', after "{decode(stream["tokens"][:t])[-BEFORE:]}"'


def _value(x: Any) -> str:
    return "nothing" if x is None else repr(x) if isinstance(x, float) else str(x)


def _brief(x: Any, most: int = 80) -> str:
    text = _value(x)
    return text if len(text) <= most else text[: most - 3] + "..."
