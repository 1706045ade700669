"""`posttrain methods`: the policy-gradient presets as a table, and how some differ: in choices, in deeds, in a race."""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from posttrain.cli.options import parse
from posttrain.errors import UsageError, nearest
from posttrain.schema import leaves, show

_USAGE = "posttrain methods [list | compare NAME NAME ... | race NAME NAME ...] [--html FILE]"
_COLUMNS = ("method", "advantage", "ratio", "clip", "average", "KL")
_SHOWN = (
    "advantage",
    "ratio",
    "clip.kind",
    "clip.low",
    "clip.high",
    "average.kind",
    "kl.where",
    "kl.estimator",
    "kl.beta",
)
"""Fields that the columns show."""
_WIDTH = 100
_KEY = (
    "KL: where it is charged, how it is estimated, its weight. Below each row stand its paper and what else it "
    "changes. `posttrain methods compare NAME NAME` shows what methods do to the same answers; `posttrain methods "
    "race NAME NAME` trains them on one task; `posttrain train group --preset NAME` trains with one (train ppo, if it "
    "needs a critic)."
)
_SIDE_BY_SIDE = 6
"""More objectives than this are not put beside each other."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Lists all methods, or compares some: in which choices they differ, and how hard each pulls at every token of the
    same eight answers, hand-made so that lengths, clipping and a prompt without any signal show."""

    names: tuple[str, ...] = ("grpo", "dr_grpo", "dapo", "gspo")
    """Presets to compare; the first is what the others are compared with."""
    html: Path | None = None
    """Write the comparison into this file as well, as one page that needs no network."""


def main(words: Sequence[str]) -> None:
    """List presets, compare them, or race them."""
    what = words[0] if words and not words[0].startswith("-") else "list"
    if what not in ("list", "compare", "race"):
        raise UsageError(f'posttrain methods "{what}": {nearest(what, ("list", "compare", "race"))} Write: {_USAGE}')
    if what == "race":
        from posttrain.cli import race  # needs torch

        race.main(words[1:])
        return
    options = parse(Options, words[1:] if words[:1] == [what] else words, _USAGE, ("names",) * (what == "compare"))
    from posttrain.objectives.presets import PRESETS  # needs torch

    if what == "list":
        if options != Options():
            raise UsageError(f"the list of all methods has no options. To compare some, write: {_USAGE}")
        print("\n".join(listing(PRESETS)))
        return
    names = list(dict.fromkeys(name.replace("-", "_").lower() for name in options.names))
    for name in names:
        if name not in PRESETS:
            raise UsageError(f'there is no method "{name}". {nearest(name, PRESETS)}')
    _compare({name: PRESETS[name] for name in names}, options.html)


def _compare(objectives: dict[str, Any], html: Path | None) -> None:
    from posttrain.cli.compare import panels, render
    from posttrain.cli.compare import show as draw
    from posttrain.train.checkpoint import write_text

    console, fields, found = Console(highlight=False, soft_wrap=True), differing(objectives), panels(objectives)
    if html is not None:  # before anything is printed, perhaps into a pipe that closes
        html.parent.mkdir(parents=True, exist_ok=True)
        command = f"posttrain methods compare {' '.join(objectives)} --html {os.fspath(html)}"
        write_text(html, render(found, fields, command))
    if 1 < len(objectives) <= _SIDE_BY_SIDE:
        table = Table("", *objectives, box=None, header_style="bold")
        for key, values in fields.items():
            table.add_row(key, *values)
        console.print(table)
        console.print()
    draw(console, found)
    if html is not None:
        console.print(f"\nwrote {html}")


def listing(objectives: Mapping[str, Any]) -> Iterator[str]:
    """Two lines for each method: the choices on the main axes, and its paper with whatever else it changes."""
    from posttrain.cli.formula import papers

    rows: list[tuple[str, ...]] = [_COLUMNS, *((name, *_choices(o)) for name, o in objectives.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    cited = papers()
    for row in rows:
        yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        if row is not rows[0]:
            more = "; ".join(x for x in (cited.get(row[0], ""), *_others(objectives[row[0]])) if x)
            yield from textwrap.wrap(more, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    yield ""
    yield from textwrap.wrap(_KEY, _WIDTH)


def _choices(o: Any) -> tuple[str, ...]:
    """The main axes in a few characters each."""
    clip = [o.clip.kind]
    if o.clip.kind in ("min", "weight", "geometric"):
        clip += [_short(o.clip.low), _short(o.clip.high)]
    kl = "" if o.kl.where == "none" else f"{o.kl.where} {o.kl.estimator} {_short(o.kl.beta)}"
    return o.advantage, o.ratio, " ".join(clip), o.average.kind, kl


def _short(x: float | None) -> str:
    """A number without zeros that say nothing: .2, 3e-4, -."""
    if x is None:
        return "-"
    return min(f"{x:g}".removeprefix("0"), f"{x:.1e}".replace("e-0", "e-").replace(".0e", "e"), key=len) or "0"


def _others(o: Any) -> Iterator[str]:
    """What a method changes beyond the columns, axis by axis: "mismatch mask, low 0.5, high 5"."""
    axes: dict[str, list[str]] = {}
    for key, (value, _) in differing({"this": o, "default": type(o)()}).items():
        if key not in _SHOWN:
            axis, _, part = key.partition(".")
            axes.setdefault(axis, []).append(value if part in ("", "kind", "estimator") else f"{part} {value}")
    yield from (f"{axis} {', '.join(values)}" for axis, values in axes.items())


def differing(objectives: dict) -> dict[str, list[str]]:
    """Dotted field -> its value in each objective, for the fields whose values are not all equal."""
    (kind,) = {type(o) for o in objectives.values()}
    rows = {}
    for key, _, _ in leaves(kind):
        values = []
        for value in objectives.values():
            for name in key.split("."):
                value = getattr(value, name)
            values.append(show(value).strip('"'))
        if len(set(values)) > 1:
            rows[key] = values
    return rows
