"""Who compares two clips: a program that knows the true reward and makes mistakes, or a person at the terminal.

The port is one function. A page can serve it as well as a terminal: it is handed both clips and returns an answer.
Answers are written down the moment they are given, so that nothing is asked twice when a run resumes.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from posttrain import rng
from posttrain.control.clips import HEIGHT, beside, draw
from posttrain.errors import Interrupted, RunError, UsageError
from posttrain.train.run import Run

LABELLERS = ("synthetic", "terminal")
"""Names of `labeller`."""


@dataclass(frozen=True)
class Clip:
    """A few steps of an episode."""

    obs: Tensor
    """[K, D] in the environment's own units."""
    action: Tensor
    """[K] or [K, A] as the policy gave it."""
    reward: Tensor
    """[K] the true reward, which only a synthetic labeller may look at."""


class Labeller(Protocol):
    """Says which of two clips is better."""

    def __call__(self, number: int, first: Clip, second: Clip) -> float | None:
        """1: the first. 0: the second. 0.5: a tie. None: cannot tell, and the pair is dropped. number: of the pair."""
        ...


@dataclass(frozen=True)
class Synthetic:
    """Prefers the clip with the higher true reward, and errs at a known rate."""

    errors: float
    """Share of answers that are turned round."""
    seed: int
    tie: float = 0.0
    """Sums that differ by no more than this are a tie."""

    def __call__(self, number: int, first: Clip, second: Clip) -> float:
        """The answer to one pair; a pure function of seed and number."""
        gap = float(first.reward.double().sum() - second.reward.double().sum())
        if abs(gap) <= self.tie:
            return 0.5
        wrong = rng.python(self.seed, "labeller", number).random() < self.errors
        return float((gap > 0) != wrong)


KEYS = {"l": 1.0, "r": 0.0, "t": 0.5, "c": None}
"""What a person types: left, right, tie, can't tell."""


@dataclass(frozen=True)
class Terminal:
    """Shows both clips side by side and asks."""

    env: str
    ask: Callable[[str], str] = input
    """Asks for one line."""
    write: Callable[[str], object] = sys.stdout.write
    """Prints."""
    seconds: float = 0.08
    """Between two frames. 0: four frames of each clip below each other instead, for screens that cannot go back."""
    aside: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    """Clears the terminal of what else is drawn there while the person is asked."""

    def __call__(self, number: int, first: Clip, second: Clip) -> float | None:
        """The person's answer. Raises Interrupted on q or at the end of input; what was answered is kept."""
        with self.aside():
            return self._answer(number, first, second)

    def _answer(self, number: int, first: Clip, second: Clip) -> float | None:
        self.write(f"\nComparison {number + 1}: which clip is better?\n")
        self.play(first, second)
        while True:
            try:
                said = self.ask("[l]eft, [r]ight, [t]ie, [c]an't tell, [p]lay again, [q]uit: ").strip().lower()[:1]
            except EOFError:
                said = "q"
            if said in KEYS:
                return KEYS[said]
            if said == "p":
                self.play(first, second)
            if said == "q":
                raise Interrupted(f"stopped at comparison {number + 1}. Answers are kept: the same command goes on.")

    def play(self, first: Clip, second: Clip) -> None:
        """Both clips, frame by frame."""
        n = len(first.obs)
        shown = range(n) if self.seconds else sorted({round(i * (n - 1) / 3) for i in range(4)})
        for place, t in enumerate(shown):
            if place and self.seconds:
                time.sleep(self.seconds)
                self.write(f"\x1b[{HEIGHT + 2}A")
            frames = (draw(self.env, clip.obs[t].tolist(), clip.action[t].tolist()) for clip in (first, second))
            self.write(beside(*frames, (f"LEFT  {t + 1}/{n}", f"RIGHT  {t + 1}/{n}")) + "\n")


@dataclass
class Noted:
    """A labeller whose answers are kept in a file: what is in it is not asked again."""

    labeller: Labeller
    path: Path
    """answers.jsonl: a line per answer, with the pair's number and a digest of its clips."""

    def __post_init__(self):
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        try:
            self.known = {line["number"]: line for line in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path} holds a line that is no answer: {error}. Remove that line.") from None

    def __call__(self, number: int, first: Clip, second: Clip) -> float | None:
        """The kept answer to this very pair, else a new one. Raises RunError if the number was another pair's."""
        digest = rng.fold(0, str(first.obs.tolist()), str(second.obs.tolist()))
        if number in self.known:
            if self.known[number]["pair"] != digest:
                raise RunError(
                    f"comparison {number} of {self.path} was about other clips: the run that asked it had other "
                    "settings, another seed or another torch. Start into a new folder (--out)."
                )
            return self.known[number]["answer"]
        line = {"number": number, "pair": digest, "answer": self.labeller(number, first, second)}
        self.known[number] = line
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        return line["answer"]


def labeller(name: str, env: str, run: Run, *, errors: float) -> Labeller:
    """The labeller of that name. Raises UsageError where a person is asked for and none can answer."""
    if name == "synthetic":
        return Synthetic(errors, rng.fold(run.settings.seed, "answers"))
    if not sys.stdin.isatty():
        raise UsageError(
            'labeller = "terminal" asks a person, and there is no terminal to type in. Start it in one, or use '
            "--labeller synthetic."
        )
    person = Terminal(env, seconds=0.08 if sys.stdout.isatty() else 0.0, aside=run.aside)
    return Noted(person, run.folder / "answers.jsonl")


def unscale(obs: Tensor, scale: tuple[float, ...]) -> Tensor:
    """Observations in the environment's own units. obs: [..., D]."""
    return obs * torch.tensor(scale)
