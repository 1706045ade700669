"""What a config class says about itself: its fields, their types and documentation, and how a value becomes a type.

`config.py` builds on this. A field may be bool, int, float, str, Path, an enum, a Literal, a tuple or list, a mapping
with text keys, another dataclass, or one of these or None.
"""

import ast
import functools
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from posttrain.errors import ConfigError, nearest


class Bad(Exception):
    """Why one value does not fit: the tail of the sentence `key = value ...`."""


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> type, with annotations written as text resolved."""
    return get_type_hints(cls)


def plain(kind: Any) -> Any:
    """X of `X | None`, else the type itself."""
    if get_origin(kind) in (Union, UnionType):
        others = [a for a in get_args(kind) if a is not NoneType]
        return others[0] if len(others) == 1 else kind
    return kind


def dataclass_in(kind: Any) -> type | None:
    """The dataclass that a field holds, optional or not."""
    kind = plain(kind)
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def kind_of(cls: type, keys: Sequence[str]) -> Any:
    """The type of the field at a dotted key, through nested classes and mappings; None if there is no such field."""
    if keys[0] not in {f.name for f in fields(cls) if f.init}:
        return None
    kind = hints(cls)[keys[0]]
    if len(keys) == 1:
        return kind
    inner = dataclass_in(kind)
    if inner:
        return kind_of(inner, keys[1:])
    mapping = get_origin(plain(kind)) in (dict, Mapping) and len(keys) == 2
    return get_args(plain(kind))[1] if mapping else None


def default(f: Field) -> Any:
    """The default of a field, MISSING where it is required."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Field, type]]:
    """(dotted key, field, owning class) of every leaf field, in order of declaration."""
    for f in fields(cls):
        inner = dataclass_in(hints(cls)[f.name])
        if inner:
            yield from leaves(inner, f"{prefix}{f.name}.")
        elif f.init:
            yield prefix + f.name, f, cls


@functools.cache
def docs(cls: type) -> dict[str, str]:
    """The string below each field, inherited ones included; read from the source, since Python drops it."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        except (OSError, TypeError, SyntaxError):  # made in a notebook or a REPL: no source, no documentation
            continue
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def first_sentence(text: str) -> str:
    """The start of a field's documentation, for one line of an error or a table."""
    return re.split(r"(?<=[.:])\s", text.replace("\n", " "), maxsplit=1)[0]


def type_text(kind: Any) -> str:
    """A type for people: `number`, `"a" | "b"`, `list of text`, with `| none` where the field may be None."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join([type_text(a) for a in args if a is not NoneType] + ["none"] * (NoneType in args))
    if origin is Literal:
        return " | ".join(map(show, args))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(show(member.value) for member in kind)
    if origin in (tuple, list):
        return "list of " + type_text(args[0])
    if origin in (dict, Mapping):
        return f"table of {type_text(args[1])}"
    names = {bool: "true | false", int: "whole number", float: "number", str: "text", Path: "path", Any: "anything"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


# -- values ------------------------------------------------------------------------------------------------------------


BOOLS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


def convert(kind: Any, value: Any, *, text: bool) -> Any:
    """`value` as the type `kind`; text means that it comes from the command line and everything is a string."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _convert_union(args, value, text)
    if origin is Literal:
        return _choose(args, value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_choose([member.value for member in kind], value))
    if kind is bool:
        if isinstance(value, bool) or (text and str(value).lower() in BOOLS):
            return value if isinstance(value, bool) else BOOLS[value.lower()]
        raise Bad("is not true or false")
    if kind in (int, float):
        return _number(kind, value, text)
    if kind is str or (isinstance(kind, type) and issubclass(kind, Path)):
        if isinstance(value, str):
            return kind(value)
        raise Bad("is not text; put it in quotes")
    if origin in (tuple, list):
        return _sequence(origin, args, value, text)
    if origin in (dict, Mapping) or is_dataclass(kind):
        table = _inline(value) if text else value
        if not isinstance(table, dict):
            raise Bad("is not a table of keys and values")
        if is_dataclass(kind):
            return _from_table(kind, table)
        return {str(k): convert(args[1], v, text=False) for k, v in table.items()}
    raise AssertionError(f"config fields cannot have the type {kind}")


def _convert_union(args: tuple, value: Any, text: bool) -> Any:
    if NoneType in args and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    others = sorted((a for a in args if a is not NoneType), key=lambda a: a is str)  # text fits everything: last
    reasons = []
    for kind in others:
        try:
            return convert(kind, value, text=text)
        except Bad as bad:
            reasons.append(str(bad))
    raise Bad(", and ".join(reasons) + (' (or "none")' if NoneType in args else ""))


def _choose(choices: Sequence, value: Any) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice) or isinstance(value, str) and str(choice) == value:
            return choice
    listed = ", ".join(show(c) for c in choices)
    hint = nearest(str(value), map(str, choices))
    raise Bad(f"is not one of {listed}." + (f" {hint}" if hint.startswith("Did") else ""))


def _number(kind: type, value: Any, text: bool) -> Any:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or text):
        raise Bad(f"is not {'a whole number' if kind is int else 'a number'}")
    try:
        if kind is float:
            return float(value)
        exact = int(value) if not text or re.fullmatch(r"[+-]?[\d_]+", value) else int(float(value))
        if float(exact) == float(value):  # 1e4 is a whole number, 0.5 is not
            return exact
    except (ValueError, OverflowError):
        pass
    raise Bad(f"is not {'a whole number' if kind is int else 'a number'}")


def _sequence(origin: type, args: tuple, value: Any, text: bool) -> Any:
    if text and value.strip().startswith("["):
        value, text = _inline(value), False
    elif text:
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, (list, tuple)):
        raise Bad("is not a list")
    if origin is list or args[-1] is Ellipsis:
        kinds = (args[0],) * len(value)
    elif len(args) != len(value):
        raise Bad(f"needs exactly {len(args)} entries")
    else:
        kinds = args
    return origin(convert(kind, v, text=text) for kind, v in zip(kinds, value, strict=True))


def _inline(text: Any) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        raise Bad("cannot be read; write it as in TOML, such as [1, 2] or {a = 1}") from None


def _from_table(cls: type, table: Mapping) -> Any:
    """A dataclass inside a list or a union, from a whole table."""
    values, problems = {}, []
    for name, value in table.items():
        key = name.replace("-", "_")
        try:
            values[key] = convert(hints(cls)[key], value, text=False)
        except KeyError:
            problems.append(f"there is no field {name}. {nearest(key, hints(cls))}")
        except Bad as bad:
            problems.append(f"{name} = {show(value)} {bad}")
    problems += [f"{f.name} is required" for f in fields(cls) if default(f) is MISSING and f.name not in values]
    if not problems:
        try:
            return cls(**values)
        except ConfigError as error:
            problems.append(str(error))
    raise Bad("does not fit: " + "; ".join(problems))


def show(value: Any) -> str:
    """A value as it is written in messages: text in quotes, true and false, none."""
    if isinstance(value, (str, Path)):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
