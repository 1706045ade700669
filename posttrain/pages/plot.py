"""Curves as SVG: one or several lines over the same axes, with round ticks, and the numbers behind them.

A vertical axis begins at 0 unless that would flatten the curve; the labels say where it begins. A long curve is thinned
to the lowest and the highest of every few points, so that no spike is lost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.pages.words import number
from posttrain.train.metrics import Metric, lookup

ROWS = 40
"""Rows of numbers under a curve; a longer one is thinned, since metrics.jsonl holds all of them."""
POINTS = 600
"""Points of a line that are drawn at most."""

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    hue: int | None
    """Of its colour, in degrees; None: the page's accent."""
    path: str
    """In SVG's commands."""
    points: list[tuple[float, float, str, str]]
    """x and y in units of the box, and both in words."""
    behind: list[str]
    """Paths of thin lines behind it, such as single seeds behind their mean."""


@dataclass(frozen=True)
class Plot:
    """Lines, ready to be drawn in a box of `size` units."""

    title: str
    run: str
    metric: str
    entry: Metric | None
    """The glossary's row; None for a name that it does not hold."""
    size: tuple[float, float]
    frame: tuple[float, float, float, float]
    """Left, top, right, bottom of the plotting area."""
    lines: list[Line]
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    every: int
    """The table below shows every so many points."""
    table: list[tuple[str, list[str]]]
    """x, and each line's value there."""

    @property
    def summary(self) -> str:
        """The curve in words, for those who do not see it."""
        said = (f"{line.name + ' ' if line.name else ''}from {line.points[0][3]} at {self.x_label} {line.points[0][2]} "
                f"to {line.points[-1][3]} at {self.x_label} {line.points[-1][2]}" for line in self.lines)  # fmt: skip
        return "; ".join(said)

    @property
    def data(self) -> list[tuple[str, list]]:
        """What the page's script reads."""
        return [(line.name, line.points) for line in self.lines]


def draw(curve: Mapping[str, Any], size: tuple[float, float] = (320, 176)) -> Plot | None:
    """A curve as SVG paths with ticks; None when it has no finite point.

    curve: "points", pairs of (x, value), or "lines", name -> points; and "metric", "title", "run", "x" (a label,
        default: step), "behind" (name -> several lines of points, drawn thin), "box" (left, right, low, high of the
        axes, default: what the points need).
    """
    given: Mapping[str, Points] = curve.get("lines") or {"": curve.get("points") or ()}
    raw = {name: [(x, y) for x, y in points if y is not None and math.isfinite(y)] for name, points in given.items()}
    raw = {name: points for name, points in raw.items() if points}
    if not raw:
        return None
    x_label, behind = curve.get("x", "step"), curve.get("behind") or {}
    left, top, right, bottom = frame = (46, 10, size[0] - 10, size[1] - 32)
    x_low, x_high, y_low, y_high = curve.get("box") or _box(
        [*raw.values(), *(p for many in behind.values() for p in many)]
    )

    def x(value: float) -> float:
        return round(left + (right - left) * ((value - x_low) / (x_high - x_low) if x_high > x_low else 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_low) / (y_high - y_low), 1)

    lines = []
    for i, name in enumerate(raw):
        points = [(x(a), y(b), number(a) if a % 1 else str(int(a)), number(b)) for a, b in thinned(raw[name])]
        hue = round(360 * i / len(raw) + 175) % 360 if len(raw) > 1 else None
        others = [_path([(x(a), y(b)) for a, b in thinned(one)]) for one in behind.get(name, ())]
        lines.append(Line(name, hue, _path(points), points, others))
    metric = str(curve.get("metric", ""))
    xs = sorted({a for points in raw.values() for a, _ in points})
    every = math.ceil(len(xs) / ROWS)
    return Plot(
        title=curve.get("title") or metric,
        run=curve.get("run", ""),
        metric=metric,
        entry=_entry(metric),
        size=size,
        frame=frame,
        lines=lines,
        x_label=x_label,
        x_ticks=[(x(value), number(value)) for value in ticks(x_low, x_high, whole=x_label == "step")],
        y_ticks=[(y(value), number(value)) for value in ticks(y_low, y_high)],
        every=every,
        table=_table(raw, xs[::every]),
    )


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most about `most` of the points: of every few the lowest and the highest, and the first and the last."""
    if len(points) <= most:
        return list(points)
    width, found = math.ceil(2 * len(points) / most), [points[0]]
    for i in range(1, len(points) - 1, width):
        part = range(i, min(i + width, len(points) - 1))
        ends = {min(part, key=lambda k: points[k][1]), max(part, key=lambda k: points[k][1])}
        found += [points[k] for k in sorted(ends)]
    return [*found, points[-1]]


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """A few round numbers from low to high. whole: no fractions."""
    if high <= low:
        return [low]
    gap = max(_gap(low, high), 1) if whole else _gap(low, high)
    first, last = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [round(k * gap, 12) for k in range(first, last + 1)]


def _path(points: Sequence[tuple]) -> str:
    return "M" + "L".join(f"{a} {b}" for a, b, *_ in points)


def _box(raw: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float, float, float]:
    xs, ys = ([p[k] for points in raw for p in points] for k in (0, 1))
    low, high = _range(min(ys), max(ys))
    gap = _gap(low, high)
    return min(xs), max(xs), gap * math.floor(low / gap + 1e-9), gap * math.ceil(high / gap - 1e-9)


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


def _table(raw: Mapping[str, Sequence[tuple[float, float]]], xs: Sequence[float]) -> list[tuple[str, list[str]]]:
    columns = [dict(points) for points in raw.values()]
    return [(number(x) if x % 1 else str(int(x)), [number(c[x]) if x in c else "" for c in columns]) for x in xs]


def _entry(metric: str) -> Metric | None:
    try:
        return lookup(metric)
    except KeyError:
        return None
