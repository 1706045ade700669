"""What a study is: a claim, arms that differ in their settings, seeds, and how the figures of the runs are read.

A study names no process, folder or file: `posttrain.lab.cells` runs it, `posttrain.lab.digest` writes down what it saw.
The helpers are what a reader of few seeds needs: intervals from Student's t, over seeds, paired where two arms share
them.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Cells = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Arm -> seed -> figures: what `Study.measure` returned."""


@dataclass
class Figure:
    """One thing that a study was to show, as a number with its interval."""

    what: str
    """What is measured, in a few words; it names the figure in its study."""
    before: float
    """At the start, without the method, or in the arm that is compared with."""
    after: float
    """At the end, with it."""
    low: float
    """Lower end of the 95 % interval over seeds, usually of after - before."""
    high: float
    """Upper end."""
    seen: bool
    """Whether the claim shows: the interval leaves out 0, or a stated threshold."""
    text: str
    """The finding in one sentence, with its numbers."""


TIME = "seconds"
"""A figure of this name is a time. It is shown and never compared: another day the machine is busier."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms times seeds of short runs, and what they are to show."""

    name: str
    """Of its digest's file; no other study has it."""
    claim: str
    """One sentence: what must be seen."""
    source: str
    """The paper that says so."""
    arms: Mapping[str, Mapping[str, Any]]
    """Arm -> its settings, plain JSON: all that arms differ in."""
    seeds: tuple[int, ...]
    """The same in every arm. Settings were not chosen on them."""
    measure: Callable[[Mapping[str, Any], int, Path], Mapping[str, Any]]
    """(settings, seed, empty folder) -> figures: numbers, or lists of numbers for curves. Runs in a process of its own.

    Under "page" it may return more, any plain JSON: what a widget of the book shows. It is no figure.
    The folder is the same one if the process was stopped in the middle, so that a run in it resumes. A MissingExtra
    means that the study cannot run here, and is passed over with its message.
    """
    read: Callable[[Cells], list[Figure]]
    """All cells -> figures. Called again with each seed left out in turn, for the deviation between seeds."""
    version: int = 1
    """Raise it when `measure` comes to mean something else, so that old cells and digests no longer count."""
    sections: tuple[str, ...] = ()
    """Sections of the book that show it, as two digits: `posttrain lab 14` runs those of section 14."""
    page: Callable[[Mapping[str, Mapping[int, Any]]], Any] | None = None
    """Arm -> seed -> what `measure` returned under "page"; to what a widget of the book reads (`lab.page`)."""

    def __post_init__(self):
        if not self.name.isidentifier():
            raise ValueError(f"a study's name is a file's name and a word on the command line, not \"{self.name}\"")
        if not self.arms or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"study {self.name}: arms = {list(self.arms)}, seeds = {self.seeds}: one of each, all distinct"
            )
        if not all(len(number) == 2 and number.isdigit() for number in self.sections):
            raise ValueError(f'study {self.name}: sections = {self.sections}: two digits each, ("02", "14")')
        if json.loads(json.dumps(_plain(self.arms))) != _plain(self.arms):
            raise ValueError(f"study {self.name}: settings must be plain JSON (lists, no tuples; text as keys)")


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of a figure over seeds: Student's t interval for the mean.

        mean ± t · s / √n,   s² = Σ (x - mean)² / (n - 1),   t: `t_quantile(n - 1, confidence)`

    Student 1908. Of 1, 2, 3: 2, from -0.484 to 4.484. A single value says nothing of others: its interval is infinite.
    """
    if not values:
        raise ValueError("an interval needs one value at least")
    mean, n = fmean(values), len(values)
    if n == 1:
        return mean, -math.inf, math.inf
    half = t_quantile(n - 1, confidence) * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def paired(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean of ours - theirs, low, high) where both lists go through the same seeds in the same order.

    The interval of the differences: what a seed does to both sides (its data, its start) drops out.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values: pairs need the same seeds on both sides")
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence)


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """t with P(|T| < t) = confidence for Student's T, by bisection. 12.706 at 1 degree, 4.303 at 2, 2.776 at 4."""
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"{degrees} degrees of freedom, confidence {confidence}: at least 1, and between 0 and 1")
    low, high = 0.0, math.pi / 2  # in θ = atan(t / √degrees)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, degrees) < confidence else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _between(theta: float, degrees: int) -> float:
    """P(|T| < √degrees · tan θ): the finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    cos, odd, term, total = math.cos(theta), degrees % 2, 0.0, 0.0
    for i in range(odd, degrees, 2):
        term = cos**i if i < 2 else term * cos * cos * (i - 1) / i
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def _plain(value: Any) -> Any:
    """Mappings as dicts, all the way down."""
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value
