"""Samples of a run for people: what was said, which tokens were learned and how much, what graders said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.errors import ModelError
from posttrain.models.tokenizers import Tokenizer
from posttrain.pages.words import number
from posttrain.train.folder import found

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Token:
    """One token of a sample."""

    text: str
    learned: bool
    share: float | None
    """Its advantage as a share of the largest of the sample, from -1 to 1; None where there is none."""
    title: str
    """Its numbers in words."""


@dataclass(frozen=True)
class Strip:
    """A stream of tokens, with its name if the sample has several."""

    name: str
    tokens: list[Token]
    text: str
    """Where tokens cannot be read: the text as it is known."""


@dataclass(frozen=True)
class Sample:
    """One line of samples.jsonl."""

    head: str
    """Which task, how it ended."""
    verdict: str
    """Score, parts and reasons; empty where nothing was graded."""
    good: bool | None
    strips: list[Strip]
    curves: dict[str, list[tuple[int, float]]]
    """Of a control task: what was paid and credited, step by step."""


def decoder(run: Path) -> Decode | None:
    """How a run's tokens read, by the tokenizer of its last checkpoint; None where it has none."""
    for folder in reversed(found(run / "checkpoints")):
        try:
            return Tokenizer.load(folder).decode
        except ModelError:
            return None
    return None


def read(record: Mapping[str, Any], decode: Decode | None) -> Sample:
    """A line of samples.jsonl, whatever method wrote it."""
    if "segments" in record:
        return _episode(record, decode)
    if "paid" in record:
        return _steps(record)
    streams = {name: record[name] for name in ("chosen", "rejected") if name in record}
    for i, answer in enumerate(record.get("answers", ())):
        streams[f"answer {i + 1}, score {number(record['scores'][i])}"] = answer
    if not streams and "tokens" in record:
        streams = {"": record}
    said = {True: "good", False: "bad", None: ""}[record.get("good")]
    margin = record.get("margin")
    verdict = said or (f"margin {number(margin)}" if margin is not None else "")
    strips = [_strip(name, s, decode, s.get("text", "")) for name, s in streams.items()]
    if not strips:
        strips = [Strip("", [], ", ".join(f"{k}: {v}" for k, v in record.items() if k != "step"))]
    return Sample("", verdict, record.get("good"), strips, {})


def _episode(record: Mapping[str, Any], decode: Decode | None) -> Sample:
    score = record.get("score") or {}
    value, why = score.get("value"), score.get("why") or record.get("error", "")
    parts = score.get("parts") or {}
    verdict = "not scored" if value is None else f"score {number(value)}"
    if len(parts) > 1:
        verdict += " (" + ", ".join(f"{k} {number(v)}" for k, v in parts.items()) + ")"
    if record.get("rewards"):
        verdict += "; along the way " + ", ".join(f"{number(v)} at token {t}" for _, t, v in record["rewards"])
    several = len(record["segments"]) > 1
    spoken = "\n".join(f"{m['role']}: {m['content']}" for m in record["messages"])
    strips = [
        _strip(f"part {i + 1}" if several else "", s, decode, spoken if i == 0 else "")
        for i, s in enumerate(record["segments"])
    ]
    head = f"{record['task']}, {record['length']} tokens, ended by {record['stop']}"
    good = None if value is None else value > 0
    return Sample(head, f"{verdict}: {why}" if why else verdict, good, strips or [Strip("", [], spoken)], {})


def _strip(name: str, segment: Mapping[str, Any], decode: Decode | None, text: str) -> Strip:
    if decode is None or "tokens" not in segment:
        return Strip(name, [], text)
    advantage, logp = segment.get("advantage"), segment.get("logp") or ()
    largest = max(map(abs, advantage or ()), default=0.0) or 1.0
    tokens = []
    for t, (one, mark) in enumerate(zip(segment["tokens"], segment["mask"], strict=True)):
        learned, said = mark == "x", []
        if learned and advantage is not None and t < len(advantage):
            said.append(f"advantage {number(advantage[t])}")
        if t < len(logp) and logp[t] is not None:
            said.append(f"log-probability {number(logp[t])}")
        share = advantage[t] / largest if learned and advantage is not None and t < len(advantage) else None
        before = segment["tokens"][max(t - 1, 0) : t]  # some tokenizers write a space only where something goes before
        piece = decode([*before, one]).removeprefix(decode(before))
        tokens.append(Token(piece, learned, share, ", ".join(said)))
    return Strip(name, tokens, text)


def _steps(record: Mapping[str, Any]) -> Sample:
    paid, ended = record["paid"], record["ended"]
    head = f"{len(paid)} steps, paid {number(sum(paid))}, {'ended' if ended else 'cut off, goes on'}"
    curves = {name: list(enumerate(record[name])) for name in ("rewards", "advantages")}
    return Sample(head, "", None, [], curves)


def plain(sample: Sample, width: int = 100) -> str:
    """A sample for a terminal: head, verdict, the text, and the mean advantage of what was learned."""
    lines = [": ".join(part for part in (sample.head, sample.verdict) if part)]
    for strip in sample.strips:
        text = "".join(t.text for t in strip.tokens) or strip.text
        learned = "".join(t.text for t in strip.tokens if t.learned)
        lines.append((f"{strip.name}: " if strip.name else "") + (text if len(text) < 4 * width else f"...{learned}"))
    for name, points in sample.curves.items():
        lines.append(f"{name}: mean {number(fmean(y for _, y in points))}" if points else name)
    return "\n".join(lines)
