"""Holding a study that ran against what is recorded of it: as recorded, moved, new; and one random cell, repeated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import fmean, stdev
from typing import Any, Literal

from posttrain import rng
from posttrain.lab.digest import SURE, load, outdated
from posttrain.lab.menu import Entry
from posttrain.lab.study import TIME, t_quantile

Verdict = Literal["as recorded", "moved", "new", "a time"]


@dataclass(frozen=True)
class Row:
    """One figure of a study beside its record."""

    figure: Mapping[str, Any]
    """As in the digest."""
    recorded: Mapping[str, Any] | None
    verdict: Verdict

    @property
    def shows(self) -> str:
        """Whether the claim shows, and whether it did."""
        now = "seen" if self.figure["seen"] else "not seen"
        return now if self.recorded is None or self.recorded["seen"] == self.figure["seen"] else f"{now} any more"


def judge(digest: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> list[Row]:
    """Each figure of a study: `moved` where `after` is further from the record than the record's tolerance.

    recorded: None where nothing is recorded, or of other settings. A figure without a tolerance has moved where it is
    not equal to six digits.
    """
    known = {f["what"]: f for f in recorded["figures"]} if recorded else {}
    rows = []
    for figure in digest["figures"]:
        old = known.get(figure["what"])
        verdict: Verdict = "new"
        if figure["what"] == TIME:
            verdict = "a time"
        elif old is not None:
            off = abs(figure["after"] - old["after"])
            verdict = "as recorded" if off <= (old["tolerance"] or 1e-6 * abs(old["after"])) else "moved"
        rows.append(Row(figure, old, verdict))
    return rows


def pick(entries: Sequence[Entry], day: date, most_seconds: float = 600.0) -> tuple[Entry, str, int] | None:
    """(study, arm, seed) of one recorded cell, drawn by the day; None where none is recorded as it is written now.

    most_seconds: cells that took longer are left to `make studies`.
    """
    cells = []
    for entry in entries:
        digest = load(entry.study.name)
        if digest is None or outdated(entry.study, digest):
            continue
        for arm, by_seed in digest["cells"].items():
            cells += [(entry, arm, int(seed)) for seed, c in by_seed.items() if c["seconds"] <= most_seconds]
    return rng.python(day.toordinal(), "cell").choice(cells) if cells else None


@dataclass(frozen=True)
class Again:
    """One figure of a repeated cell."""

    name: str
    now: float
    then: float
    low: float
    """Of the interval in which 99 % of further seeds of the arm lie, by the recorded ones."""
    high: float

    @property
    def inside(self) -> bool:
        """Whether it repeats."""
        slack = 1e-5 * max(abs(self.then), 1e-6)
        return self.low - slack <= self.now <= self.high + slack


def compare(figures: Mapping[str, Any], digest: Mapping[str, Any], arm: str, seed: int) -> list[Again]:
    """Figures of a repeated cell beside the recorded ones; of curves, their means.

        recorded mean ± t · s · √(1 + 1/n),   the prediction interval of one more seed

    A seed that repeats bit for bit is at `then`. With one seed the interval is that point.
    """
    rows, cells = [], digest["cells"][arm]
    for name, value in figures.items():
        if value == [] or name == TIME:
            continue
        values = [_mean(c["figures"][name]) for c in cells.values()]
        n, middle = len(values), fmean(values)
        half = t_quantile(n - 1, SURE) * stdev(values) * math.sqrt(1 + 1 / n) if n > 1 else 0.0
        then = _mean(cells[str(seed)]["figures"][name])
        rows.append(Again(name, _mean(value), then, min(middle - half, then), max(middle + half, then)))
    return rows


def _mean(value: Any) -> float:
    return fmean(value) if isinstance(value, list) else value
