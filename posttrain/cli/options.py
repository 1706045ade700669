"""Options of a verb are a frozen dataclass, as every configuration is: the same flags, checks, messages and help."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from shutil import get_terminal_size
from typing import Any, TypeVar

from posttrain import config
from posttrain.schema import default, docs, hints, leaves, show, type_text

T = TypeVar("T")


def parse(cls: type[T], words: Sequence[str], usage: str, positional: Sequence[str] = ()) -> T:
    """The options of a verb from its words. With --help among them, prints the help and leaves with exit code 0.

    usage: how the command is written, such as "posttrain chat RUN [options]". positional: fields given without a flag.
    """
    if wants_help(words):
        print(help_text(cls, usage, positional=positional))
        raise SystemExit(0)
    return config.load(cls, None, words, positional)


def wants_help(words: Sequence[str]) -> bool:
    """Whether --help or -h is among the words."""
    return "--help" in words or "-h" in words


def help_text(
    cls: type, usage: str, more: Mapping[str, str] | None = None, *, about: str = "", positional: Sequence[str] = ()
) -> str:
    """All fields of a config class with types, defaults and documentation.

    more: further flags with their text. about: what stands under the first line as it is, instead of the class's
    documentation. positional: fields that need no flag.
    """
    width = min(get_terminal_size().columns, 110)
    lines = [usage, "", *(about.splitlines() or textwrap.wrap(" ".join((cls.__doc__ or "").split()), width)), ""]
    for flag, text in (more or {}).items():
        lines += [f"  {flag}", *_indented(text, width)]
    for field_name, table in getattr(cls, "PRESETS", {}).items():
        lines += ["  --preset  " + " | ".join(table)]
        lines += _indented(f"Values for all of {field_name}; other flags then change parts of them.", width)
    for key, field, owner in leaves(cls):
        kind, value = type_text(hints(owner)[field.name]), default(field)
        value = _instance_default(cls, key, value)
        flag = f"  --{key.replace('_', '-')}  {kind}" + (" (required)" if value is MISSING else f" = {_short(value)}")
        lines.append(flag + ("; the flag may be left out" if key in positional else ""))
        lines += _indented(docs(owner).get(field.name, ""), width)
    return "\n".join(lines)


def _instance_default(cls: type, key: str, value: Any) -> Any:
    """The default of a nested field as the outer class sets it: `optim: Optim = Optim(lr=1e-3)`."""
    names = key.split(".")
    outer = next((default(f) for f in cls.__dataclass_fields__.values() if f.name == names[0]), MISSING)
    for name in names[1:]:
        if outer is MISSING or outer is None:
            return value
        outer = getattr(outer, name)
    return outer


def _short(value: Any) -> str:
    return (", ".join(map(show, value)) or "(none)") if isinstance(value, tuple) else show(value)


def _indented(text: str, width: int) -> Iterator[str]:
    return iter(textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      "))
