"""`posttrain methods`: the policy-gradient presets, and how some of them differ, axis by axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from posttrain.cli.options import parse
from posttrain.errors import UsageError, nearest
from posttrain.schema import leaves, show

_USAGE = "posttrain methods [list | compare NAME NAME ...]"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """A table of the fields in which methods differ."""

    names: tuple[str, ...] = ()
    """Presets; none: all of them."""


def main(words: Sequence[str]) -> None:
    """List presets, or compare them."""
    what = words[0] if words and not words[0].startswith("-") else "list"
    if what not in ("list", "compare"):
        raise UsageError(f'posttrain methods "{what}": {nearest(what, ("list", "compare"))} Write: {_USAGE}')
    options = parse(Compare, words[1:] if words[:1] == [what] else words, _USAGE, ("names",))
    from posttrain.objectives.presets import PRESETS  # needs torch

    if what == "list":
        print("\n".join(PRESETS))
        return
    names = [name.replace("-", "_").lower() for name in options.names] or list(PRESETS)
    for name in names:
        if name not in PRESETS:
            raise UsageError(f'there is no method "{name}". {nearest(name, PRESETS)}')
    rows = differing({name: PRESETS[name] for name in names})
    table = Table("", *names, box=None, header_style="bold")
    for key, values in rows.items():
        table.add_row(key, *values)
    Console(highlight=False, soft_wrap=True).print(table)


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
