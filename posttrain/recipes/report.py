"""The report of a pipeline as one HTML page: what each stage changed, in numbers, in words and side by side.

`write_report` takes JSON-ready data and makes a single file that needs no network: styles, pictures and the little
script are inside. This module turns numbers into words, intervals and curves; `report.html.jinja` only lays them out.
Whatever a model wrote is escaped, and the page's own policy lets no script run but the one it was made with. The
explanations under the curves are the glossary's (`train/metrics.py`). A missing part leaves its section out.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from posttrain.train.metrics import Metric, lookup

ROWS = 40
"""Rows of numbers under a curve; a longer one is thinned, since metrics.jsonl holds all of them."""


@dataclass(frozen=True)
class Column:
    """One measure of the stage table."""

    key: str
    label: str
    meaning: str
    share: bool = True
    """A share between 0 and 1 with an interval and a bar; otherwise a number, with an interval or without."""
    digits: int = 0
    """Digits after the point of a plain number."""
    draw: bool = False
    """0.5 is a draw, and is marked."""


COLUMNS = (
    Column("well_formed", "Well formed", "answers that are one at all: finished, on one line, in known sentences"),
    Column("win_rate_base", "Over base", "how often gold prefers the answer to the base's; 50% is a draw", draw=True),
    Column("win_rate", "Over SFT", "how often gold prefers the answer to the SFT model's; 50% is a draw", draw=True),
    Column("greedy", "Solved", "tasks solved by the first line, the likeliest token taken each time"),
    Column("pass_at_8", "Pass@8", "tasks with at least one right answer among eight sampled ones"),
    Column(
        "kl_from_sft",
        "KL",
        "kl(stage ‖ SFT) in nats per answer: how far it moved from the SFT model",
        share=False,
        digits=2,
    ),
    Column("length", "Length", "mean tokens per answer", share=False, digits=1),
    Column("seconds", "Seconds", "time it took to train the stage", share=False),
)
"""The measures of the demo; a report may bring its own (`data["columns"]`, rows of `Column`)."""


@dataclass(frozen=True)
class Claim:
    """One part of the headline: what happened to a measure."""

    to: str
    """The stage that it is told of."""
    key: str
    words: str
    start: str | None = None
    """The stage before: "words from a to b". None: the words hold a place for the figure, {}."""
    digits: int | None = None
    """Digits of a plain number; None for a share."""


STORY = (
    Claim("sft", "well_formed", "demonstrations took well-formed answers", "base"),
    Claim("dpo", "win_rate", "preferences brought a win rate of {} against the SFT model"),
    Claim("grpo", "greedy", "rewards took solved tasks", "sft"),
)
"""The headline of the demo; a report may bring its own (`data["story"]`, rows of `Claim`)."""


@dataclass(frozen=True)
class Plot:
    """One curve, ready to be drawn in a box of `size` units."""

    title: str
    run: str
    metric: str
    entry: Metric | None
    """The glossary's row; None for a name that it does not hold."""
    size: tuple[float, float]
    frame: tuple[float, float, float, float]
    """Left, top, right, bottom of the plotting area."""
    line: str
    """The path, in SVG's commands."""
    points: list[tuple[float, float, str, str]]
    """x and y in units of the box, and step and value in words."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    every: int
    """The table below shows every so many points."""


def write_report(data: Mapping[str, Any], path: Path) -> None:
    """Write the report as one self-contained HTML file; folders in between are made.

    data: what `recipes/gather.py` puts together: title, command, seed, seconds, versions, peak_memory_mb, stages,
        columns, story, reward_model, samples, curves, checks, notes. Each may be missing, None or empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(data), encoding="utf-8", newline="\n")


def render(data: Mapping[str, Any]) -> str:
    """The page as text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(share=share, number=number, duration=duration, interval=interval, sha256=_sha256)
    stages = data.get("stages") or []
    checks = sorted(data.get("checks") or [], key=lambda check: bool(check.get("ok")))
    table = tuple(Column(**c) for c in data.get("columns") or ()) or COLUMNS
    return page.get_template("report.html.jinja").render(
        data=data,
        headline=headline(data),
        stages=stages,
        columns=[c for c in table if any(stage.get(c.key) is not None for stage in stages)],
        sizes={c.key: sizes for c in table if c.share and (sizes := _sizes(stages, c.key))},
        titles={stage.get("name"): stage.get("title") or stage.get("name") for stage in stages},
        plots=[plot for curve in data.get("curves") or [] if (plot := draw(curve))],
        checks=checks,
        failed=sum(not check.get("ok") for check in checks),
    )


# -- words ------------------------------------------------------------------------------------------------------------


def headline(data: Mapping[str, Any]) -> Markup:
    """The result in one sentence, made of the numbers that are there; empty when there are none.

    It says "from a to b", never "better", and adds when intervals overlap or when a win rate may be a draw.
    """
    stages = {stage.get("name"): stage for stage in data.get("stages") or []}
    claims = tuple(Claim(**c) for c in data.get("story") or ()) or STORY
    parts = [part for claim in claims if (part := _told(stages, claim))]
    if not parts:
        return Markup("")
    if len(parts) > 1:
        parts[-1] = "and " + parts[-1]
    text = Markup(", " if len(parts) > 2 else " ").join(parts)
    if data.get("seconds"):
        return Markup("In {}, {}.").format(duration(data["seconds"]), text)
    return text[:1].upper() + text[1:] + "."


def _told(stages: Mapping[str, Mapping], claim: Claim) -> Markup | None:
    after = stages.get(claim.to, {}).get(claim.key)
    before = stages.get(claim.start, {}).get(claim.key)
    if not after or (claim.start and not before):
        return None

    def figure(entry: Mapping) -> Markup:
        value = entry["value"]
        return Markup("<b>{}</b>").format(share(value) if claim.digits is None else number(value, claim.digits))

    def known(entry: Mapping) -> bool:
        return entry.get("low") is not None and entry.get("high") is not None

    if claim.start is None:
        draw = known(after) and claim.digits is None and after["low"] <= 0.5 <= after["high"]
        return Markup(claim.words).format(figure(after)) + (" (which may be a draw)" if draw else "")
    text = Markup("{} from {} to {}").format(claim.words, figure(before), figure(after))
    if known(before) and known(after) and before["low"] <= after["high"] and after["low"] <= before["high"]:
        text += " (their intervals overlap)"
    return text


def share(value: float) -> str:
    """A share as a percentage. Only exactly 0 and 1 read 0% and 100%."""
    percent = 100 * value
    if round(percent) in (0, 100) and value not in (0, 1):
        return f"{min(max(percent, 0.1), 99.9):.1f}%"
    return f"{percent:.0f}%"


def interval(entry: Mapping) -> str:
    """The interval of a share, "88-95%"; empty if there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{share(entry['low']).rstrip('%')}–{share(entry['high'])}"


def number(value: float, digits: int | None = None) -> str:
    """So many digits after the point, or else three significant ones; with a real minus sign."""
    text = f"{value:,.{digits or 0}f}" if digits is not None or abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """A time as people say it: "41 s", "3 min 12 s", "1 h 4 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _sizes(stages: Sequence[Mapping], key: str) -> list[int]:
    """How many answers stand behind a column: one entry if all stages have the same number."""
    return sorted({stage[key]["n"] for stage in stages if stage.get(key) and stage[key].get("n") is not None})


# -- curves -----------------------------------------------------------------------------------------------------------


def draw(curve: Mapping[str, Any], size: tuple[float, float] = (320, 176)) -> Plot | None:
    """A curve as an SVG path with ticks; None when it has no finite point."""
    raw = [(step, value) for step, value in curve.get("points") or [] if value is not None and math.isfinite(value)]
    if not raw:
        return None
    left, top, right, bottom = frame = (46, 10, size[0] - 10, size[1] - 32)
    steps, values = zip(*raw, strict=True)
    y_low, y_high = _range(min(values), max(values))
    gap = _gap(y_low, y_high)
    y_low, y_high = gap * math.floor(y_low / gap + 1e-9), gap * math.ceil(y_high / gap - 1e-9)
    x_low, x_high = min(steps), max(steps)

    def x(step: float) -> float:
        return round(left + (right - left) * ((step - x_low) / (x_high - x_low) if x_high > x_low else 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_low) / (y_high - y_low), 1)

    metric = str(curve.get("metric", ""))
    try:
        entry = lookup(metric)
    except KeyError:
        entry = None
    return Plot(
        title=curve.get("title") or metric,
        run=curve.get("run", ""),
        metric=metric,
        entry=entry,
        size=size,
        frame=frame,
        line="M" + "L".join(f"{x(step)} {y(value)}" for step, value in raw),
        points=[(x(step), y(value), str(step), number(value)) for step, value in raw],
        x_ticks=[(x(step), number(step)) for step in ticks(x_low, x_high, whole=True)],
        y_ticks=[(y(value), number(value)) for value in ticks(y_low, y_high)],
        every=math.ceil(len(raw) / ROWS),
    )


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """A few round numbers from low to high. whole: no fractions."""
    if high <= low:
        return [low]
    gap = max(_gap(low, high), 1) if whole else _gap(low, high)
    first, last = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [round(k * gap, 12) for k in range(first, last + 1)]


def _gap(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten, a fifth of the range or a little more."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _range(low: float, high: float) -> tuple[float, float]:
    """What the vertical axis covers: from 0 unless that would flatten the curve."""
    if low == high:
        return min(0, 2 * low), max(0, 2 * high) or float(low == 0)
    return (0 if 0 <= low <= 0.6 * high else low), (0 if 0.6 * low <= high <= 0 else high)


def _sha256(text: str) -> str:
    """The hash by which the page's policy knows its script."""
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
