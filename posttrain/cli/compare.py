"""What methods do to the same eight answers, as a picture: in the terminal, and as one HTML file that needs no network.

`panels` turns objectives into numbers and words once, and both pictures only lay them out. The pull at a token is
-∂L/∂log π (`objectives.pull`), times the number of tokens of the step, so that a token of advantage 1 under the plain
average over tokens reads 1. A pull is drawn against the largest of its own panel, since the learning rate, and Adam
anyway, takes care of the scale.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import torch
from rich.console import Console
from rich.text import Text

from posttrain.assets.two_prompts import ANSWERS, LONGEST, PROMPTS, step
from posttrain.cli.formula import equation
from posttrain.cli.methods import differing
from posttrain.objectives.objective import Objective
from posttrain.objectives.pull import Pull, token_pull

BARS = "▁▂▃▄▅▆▇█"
KEY = ("A number is the pull at a token, + to make it likelier, - rarer; 1 is a token of advantage 1 under the plain "
       "average over all tokens. A bar is drawn against the largest of its panel. stop: a clip, a gate or a mask acts. "
       "0: no advantage. –: the prompt is left out.")  # fmt: skip
WIDTH = 100
SETS = 2
"""Answers in a set, where an objective counts the best of sets."""
SWITCHES = (".kind", ".where", "proximal.estimator")
"""Fields that decide what the others of their record mean."""
UP, DOWN = "#2f7fd6", "#c2630a"
"""Blue and orange, told apart by everybody, and legible on black and on white."""


@dataclass(frozen=True)
class Cell:
    """One token under one objective."""

    word: str
    pull: float
    """In units of a token of advantage 1 under the average over all tokens."""
    share: float
    """Of the largest pull of the panel, from -1 to 1."""
    state: str
    """"pull"; "stopped" (by a clip, a gate or a mask, though it has an advantage); "equal" (no advantage, no pull);
    "left out" (its prompt)."""
    advantage: float
    ratio: float
    """π/π_old of the token."""

    @property
    def text(self) -> str:
        """The pull for a narrow cell."""
        return signed(self.pull) if self.state == "pull" else {"stopped": "stop", "equal": "0"}.get(self.state, "–")


@dataclass(frozen=True)
class Row:
    """One answer under one objective."""

    prompt: int
    verdict: str
    cells: tuple[Cell, ...]

    @property
    def quiet(self) -> bool:
        """Whether nothing happens to this answer, and nothing was kept from happening."""
        return all(cell.state in ("equal", "left out") for cell in self.cells)


@dataclass(frozen=True)
class Panel:
    """One objective."""

    name: str
    equation: tuple[str, ...]
    difference: str
    """In which fields it differs from the first; empty for the first."""
    facts: tuple[str, ...]
    """What the numbers show, a sentence each."""
    rows: tuple[Row, ...]
    largest: float


def signed(x: float) -> str:
    """Five characters: two digits after the point, or three where they would be zero."""
    return f"{x:+.2f}" if abs(x) >= 0.005 else f"{x:+.3f}".replace("0.", ".", 1)


def panels(objectives: Mapping[str, Objective]) -> list[Panel]:
    """One panel for each objective, in their order; the first is what the others are compared with."""
    fitted = {name: _fitted(o) for name, o in objectives.items()}
    rows, found = step(), []
    pulls = {name: token_pull(o, rows) for name, (o, _) in fitted.items()}
    first = next(iter(objectives))
    for name, (objective, note) in fitted.items():
        difference = "" if name == first else differs(objective, fitted[first][0])
        facts = _facts(name, pulls[name], rows.mask, None if name == first else (first, pulls[first])) + note
        drawn, largest = _draw(pulls[name], rows.mask, (rows.logp - rows.old_logp).exp())
        found.append(Panel(name, tuple(equation(objective)), difference, tuple(facts), drawn, largest))
    return found


def differs(objective: Objective, first: Objective) -> str:
    """The choices in which an objective differs from the first: "average.kind token (not sequence), clip.high ..."."""
    rows, said = differing({"this": objective, "first": first}), []
    switched = {key.split(".")[0]: mine for key, (mine, _) in rows.items() if key.endswith(SWITCHES)}
    for key, (mine, other) in rows.items():
        if key.endswith(SWITCHES) or key.split(".")[0] not in switched:
            said.append(f"{key} {mine}" + (f" (not {other})" if other != "none" or key.endswith(SWITCHES) else ""))
        elif mine != "none" and switched[key.split(".")[0]] not in ("none", "off", "all"):
            said.append(f"{key} {mine}")  # of a choice that the first does not make, so there is nothing to compare
    return ", ".join(said)


def _fitted(objective: Objective) -> tuple[Objective, list[str]]:
    """The objective with what its preset leaves to the run, as these answers ask for, and a sentence about it."""
    if objective.average.kind == "constant":
        fitted = replace(objective, average=replace(objective.average, horizon=LONGEST))
        return fitted, [f"Its horizon is {LONGEST} here, the longest answer allowed."]
    if objective.k is not None and objective.k > SETS:
        return replace(objective, k=SETS), [f"Its sets have {SETS} answers here, of four."]
    return objective, []


def _draw(pull: Pull, mask: torch.Tensor, ratio: torch.Tensor) -> tuple[tuple[Row, ...], float]:
    whole = (pull.whole * mask.sum()).tolist()
    largest = max(abs(x) for row in whole for x in row)
    rows = []
    for i, answer in enumerate(ANSWERS):
        cells = []
        for t, word in enumerate(answer.words.split(), 1):
            state = _state(*(float(x[i, t]) for x in (pull.whole, pull.gain, pull.advantage, pull.weight)))
            cells.append(Cell(word, whole[i][t], whole[i][t] / (largest or 1.0), state, float(pull.advantage[i, t]),
                              float(ratio[i, t])))  # fmt: skip
        rows.append(Row(answer.prompt, "right" if answer.reward else "wrong", tuple(cells)))
    return tuple(rows), largest


def _state(whole: float, gain: float, advantage: float, weight: float) -> str:
    if weight == 0:
        return "left out"
    if advantage != 0 and gain == 0:
        return "stopped"
    return "equal" if whole == 0 else "pull"


# -- words ------------------------------------------------------------------------------------------------------------


def _facts(name: str, pull: Pull, mask: torch.Tensor, first: tuple[str, Pull] | None) -> list[str]:
    """What can be read off the numbers of a panel, and how it compares with the first one."""
    long = torch.tensor([len(a.words.split()) == LONGEST for a in ANSWERS])
    mine, facts = _share(pull, long), []
    if not pull.whole.any():
        return [f"{name} pulls at no token here."]
    who = f"the {_count(int(long.sum()), 'longest answer')}"
    if first is None:
        facts.append(f"{who[0].upper()}{who[1:]} get {mine:.0%} of all pull.")
    else:
        theirs = _share(first[1], long)
        times = f"{mine / theirs:.1f} times what {first[0]} gives them" if theirs else f"{first[0]} gives them none"
        times = f"as much as {first[0]} gives them" if theirs and 0.95 < mine / theirs < 1.05 else times
        facts.append(f"{name} gives {who} {mine:.0%} of all pull, {times}.")
    stopped = int(((pull.gain == 0) & (pull.advantage != 0) & (pull.weight > 0) & mask).sum())
    facts.append(f"It stops {_count(stopped, 'token')} that had an advantage." if stopped else "It stops no token.")
    if bool((pull.weight > 0).any()) and _is_even(pull, mask):
        facts.append("All tokens of an answer are pulled alike.")
    out = [i for i in range(len(PROMPTS)) if not any(pull.weight[n].any() for n, a in enumerate(ANSWERS)
                                                     if a.prompt == i)]  # fmt: skip
    if out:
        facts.append("It leaves out prompt " + " and ".join(str(i + 1) for i in out) + ", whose answers are all equal.")
    leashed = int(((pull.advantage == 0) & (pull.whole != 0)).sum())
    if leashed:
        facts.append(f"{_count(leashed, 'token')} without any advantage {'are' if leashed > 1 else 'is'} moved by the "
                     "leash or the penalty alone.")  # fmt: skip
    return facts


def _share(pull: Pull, rows: torch.Tensor) -> float:
    total = float(pull.whole.abs().sum())
    return float(pull.whole[rows].abs().sum()) / total if total else 0.0


def _is_even(pull: Pull, mask: torch.Tensor) -> bool:
    """Whether the tokens of every answer get one and the same pull; false if they do so only by getting none."""
    spread = [row[m].max() - row[m].min() for row, m in zip(pull.whole, mask, strict=True)]
    size = float(pull.whole.abs().max())
    return size > 0 and all(float(s) < 1e-9 * size for s in spread)


def _count(n: int, noun: str) -> str:
    words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
    return f"{words.get(n, n)} {noun}{'' if n == 1 else 's'}"


# -- pictures ---------------------------------------------------------------------------------------------------------


def show(console: Console, found: Sequence[Panel]) -> None:
    """Print the answers, and then every panel with one bar and one number per token."""
    for number, row in enumerate(found[0].rows, 1):
        if number == 1 or row.prompt != found[0].rows[number - 2].prompt:
            console.print(Text(PROMPTS[row.prompt], "italic"))
        console.print(_line(f"{number} {row.verdict}", [f" {c.word}" for c in row.cells]))
        console.print(_line("  π/π_old" if number == 1 else "", [f" {c.ratio:.2f}" for c in row.cells], "dim"))
    for panel in found:
        console.print(Text(f"\n{panel.name}", "bold").append(f"   largest pull {panel.largest:.2f}", "not bold dim"))
        _paragraphs(console, [panel.equation[0], "    ".join(panel.equation[1:])])
        _paragraphs(console, [f"differs in {panel.difference}"] if panel.difference else [], "dim")
        for number, row in enumerate(panel.rows, 1):
            console.print(
                _line(f"{number} {row.verdict}", [_bar(c) for c in row.cells], [_colour(c) for c in row.cells])
            )
        _paragraphs(console, [" ".join(panel.facts)])
    console.print()
    _paragraphs(console, [KEY], "dim")


def _paragraphs(console: Console, texts: Sequence[str], style: str = "") -> None:
    for text in texts:
        for line in textwrap.wrap(text, min(console.width, WIDTH) - 2, break_long_words=False):
            console.print(Text(f"  {line}", style))


def _line(label: str, cells: Sequence[str], styles: Sequence[str] | str = "") -> Text:
    """A row: label, and cells of seven columns."""
    styles = [styles] * len(cells) if isinstance(styles, str) else styles
    text = Text(f"  {label:<9}", no_wrap=True)
    for cell, style in zip(cells, styles, strict=True):
        text.append(f"{cell:<7}", style)
    text.rstrip()
    return text


def _bar(cell: Cell) -> str:
    if cell.state != "pull":
        return f" {cell.text}"
    return BARS[max(0, math.ceil(len(BARS) * abs(cell.share)) - 1)] + cell.text


def _colour(cell: Cell) -> str:
    if cell.state != "pull":
        return "dim"
    return UP if cell.pull > 0 else DOWN


def render(found: Sequence[Panel], fields: Mapping[str, Sequence[str]], command: str) -> str:
    """The comparison as one HTML page. fields: field -> its value in each objective. command: how it was made."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["signed"] = lambda x: signed(x).replace("-", "−")
    return page.get_template("compare.html.jinja").render(
        panels=found, fields=fields, command=command, prompts=PROMPTS, answers=ANSWERS
    )
