"""Configurations: frozen dataclasses, filled from a TOML file and then from the command line, and nothing else.

A field's type is its schema, and the string below it is its documentation. Every problem of a configuration is
reported at once, unknown keys with the nearest known one. What was resolved is written into the run as TOML and reads
back to an equal object. A class may declare `PRESETS: ClassVar = {field: {name: value}}`; `--preset name` (or
`preset = "name"` in the file) replaces that field first, and other keys then change parts of it.

TOML has no null: the word "none" stands for it where a field may be None.
"""

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from posttrain.errors import ConfigError, nearest
from posttrain.schema import (
    BOOLS,
    Bad,
    convert,
    dataclass_in,
    default,
    docs,
    first_sentence,
    hints,
    kind_of,
    leaves,
    plain,
    show,
    type_text,
)

T = TypeVar("T")
_USER_FILE = re.compile(r"(.+\.py):\w+")


@dataclass(frozen=True)
class _Given:
    """A value as the user wrote it."""

    value: Any
    text: bool
    """From the command line, where everything is text; else typed by TOML."""


def load(
    cls: type[T], path: Path | str | None = None, overrides: Sequence[str] = (), positional: Sequence[str] = ()
) -> T:
    """An instance of the config class: its defaults, then a preset, then the TOML file, then the overrides.

    overrides: command-line words such as ["--optim.lr", "1e-4", "--objective.clip.high=0.3", "--no-shuffle"]; dashes
        and underscores are the same, `-n 8` is `--n 8`. `--config FILE` among them names the TOML file.
    positional: fields that words without a flag fill, in this order; the last takes all the rest if it is a tuple.

    Raises ConfigError naming every unknown key, every value that does not fit and every refusal of a class at once.
    """
    problems: list[str] = []
    flags, path = _words(cls, overrides, path, list(positional), problems)
    tree: dict[str, Any] = {}
    preset = None
    for keys, given, origin in (*_from_file(cls, path, problems), *flags):
        if keys == ("preset",) and hasattr(cls, "PRESETS"):
            preset = str(given.value)
        elif kind_of(cls, keys) is None:
            problems.append(_unknown(cls, keys, origin))
        else:
            _put(tree, keys, given)
    base = _preset_fields(cls, preset, problems) if preset is not None else {}
    made = _build(cls, tree, base, (), problems)
    if problems:
        raise ConfigError(_together(problems))
    return made


def _words(
    cls: type, words: Sequence[str], path: Path | str | None, positional: list[str], problems: list[str]
) -> tuple[list, Any]:
    """Command-line words as (keys, given, origin), and the TOML file that they or the caller name."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--\w|-[a-z](=|$)", word):
            problems += _place(cls, word, positional, found)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        keys = _keys(name)
        kind = kind_of(cls, keys)
        off = _keys(name[3:]) if name.startswith("no-") else keys
        if equals:
            given = _Given(value, True)
        elif kind is None and kind_of(cls, off) is bool:
            keys, given = off, _Given(False, False)
        elif kind is bool and (not rest or rest[0].lower() not in BOOLS):
            given = _Given(True, False)
        elif rest and not rest[0].startswith("--"):
            given = _Given(rest.pop(0), True)
        else:
            problems.append(_unknown(cls, keys, word) if kind is None else f"{word} needs a value")
            continue
        if keys == ("config",) and kind is None:
            path = given.value
        else:
            found.append((keys, given, word.partition("=")[0]))
    return found, path


def _place(cls: type, word: str, positional: list[str], found: list) -> list[str]:
    """Give a word without a flag to the next positional field; the problem, if there is none."""
    if not positional:
        return [f'"{word}" is not a flag: write --field value or --field=value']
    name = positional[0]
    if get_origin(hints(cls)[name]) is tuple:
        earlier = [given.value for keys, given, _ in found if keys == (name,)]
        found.append(((name,), _Given([*(earlier[-1] if earlier else []), word], False), name))
    else:
        found.append(((positional.pop(0),), _Given(word, True), name))
    return []


def _from_file(cls: type, path: Path | str | None, problems: list[str]) -> list:
    """The TOML file's values as (keys, given, origin)."""
    if path is None:
        return []
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"cannot read the config file {path}: {error.strerror}")
        return []
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path} is not valid TOML: {error}")
        return []

    def walk(table: Mapping, prefix: tuple[str, ...]) -> Iterator:
        for name, value in table.items():
            keys = (*prefix, name.replace("-", "_"))
            if isinstance(value, dict) and dataclass_in(kind_of(cls, keys)):
                yield from walk(value, keys)
            else:
                yield keys, _Given(value, False), f"{'.'.join(keys)} (in {path})"

    return list(walk(table, ()))


def _keys(name: str) -> tuple[str, ...]:
    return tuple(name.replace("-", "_").split("."))


def _put(tree: dict, keys: tuple[str, ...], given: _Given) -> None:
    """Later wins; a whole value replaces parts that were given before it, and the other way round."""
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = given


def _preset_fields(cls: type, name: str, problems: list[str]) -> dict[str, Any]:
    """The fields that a preset replaces."""
    wanted = name.lower().replace("-", "_")
    found, known = {}, []
    for field_name, table in cls.PRESETS.items():
        for key, value in table.items():
            known.append(key)
            if key.lower().replace("-", "_") == wanted:
                found[field_name] = value
    if not found:
        problems.append(f'preset = "{name}" does not exist. {nearest(wanted, known)}')
    return found


# -- building ----------------------------------------------------------------------------------------------------------


def _build(cls: type, tree: Mapping, base: Mapping[str, Any], path: tuple[str, ...], problems: list[str]) -> Any:
    """An instance of `cls` from what was given, over `base`, over defaults. Problems are collected; None if any."""
    values, before = {}, len(problems)
    for f in fields(cls):
        if not f.init:
            continue
        key = ".".join((*path, f.name))
        kind, given = hints(cls)[f.name], tree.get(f.name)
        fallback = base[f.name] if f.name in base else default(f)
        inner = dataclass_in(kind)
        if given is None and fallback is MISSING:
            problems.append(f"{key} is required. {first_sentence(docs(cls).get(f.name, ''))}".rstrip())
        elif given is None:
            values[f.name] = fallback
        elif inner and isinstance(given, dict):
            below = {x.name: getattr(fallback, x.name) for x in fields(inner)} if isinstance(fallback, inner) else {}
            values[f.name] = _build(inner, given, below, (*path, f.name), problems)
        else:
            values[f.name] = _convert_field(key, kind, given, problems)
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ConfigError as error:
        problems += [_placed(line, path, cls) for line in re.split(r"\n(?!\s)", str(error))]
        return None


def _convert_field(key: str, kind: Any, given: _Given | dict, problems: list[str]) -> Any:
    if isinstance(given, dict):  # a mapping, given key by key
        part = get_args(plain(kind))[1]
        return {k: _convert_field(f"{key}.{k}", part, g, problems) for k, g in given.items()}
    try:
        return convert(kind, given.value, text=given.text)
    except Bad as bad:
        problems.append(f"{key} = {show(given.value)} {bad}")
    except ConfigError as error:
        problems.append(f"{key}: {error}")
    return None


# -- messages ----------------------------------------------------------------------------------------------------------


def _unknown(cls: type, keys: tuple[str, ...], origin: str) -> str:
    """There is no such field: name the nearest, by the whole key or by its last part (`lr` -> optim.lr)."""
    known = [key for key, _, _ in leaves(cls)] + (["preset"] if hasattr(cls, "PRESETS") else [])
    same_ending = [key for key in known if key.rpartition(".")[2] == keys[-1]]
    hint = f'Did you mean "{same_ending[0]}"?' if same_ending else nearest(".".join(keys), known)
    return f"{origin}: there is no such field. {hint}"


def _placed(line: str, path: tuple[str, ...], cls: type) -> str:
    """A refusal of a class, with the full key in front where the class, which knows only its own, did not say it."""
    if not path or line.startswith(".".join(path) + "."):
        return line
    first = re.match(r"\w+", line)
    if line.startswith(path[-1] + "."):
        return ".".join((*path[:-1], line))
    if first and first[0] in {f.name for f in fields(cls)}:
        return ".".join((*path, line))
    return f"{'.'.join(path)}: {line}"


def _together(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems in the configuration:\n" + "\n".join(f"  - {p}" for p in problems)


# -- writing and comparing ---------------------------------------------------------------------------------------------


def to_toml(cfg: Any) -> str:
    """The configuration as TOML with each field's documentation above it. `load` reads it back to an equal object.

    cfg: an instance, or a config class, whose required fields are then left as commented lines.
    """
    cls = cfg if isinstance(cfg, type) else type(cfg)
    lines = _comment((cls.__doc__ or "").split("\n\n")[0])
    return "\n".join([*lines, "", *_table(cls, cfg, "")]).rstrip() + "\n"


def _table(cls: type, cfg: Any, prefix: str) -> list[str]:
    """One TOML table: plain keys first, since everything after a header belongs to it, then the inner tables."""
    lines, later = [], []
    for f in (f for f in fields(cls) if f.init):
        value = default(f) if isinstance(cfg, type) else getattr(cfg, f.name)
        note = docs(cls).get(f.name, "")
        if is_dataclass(value) and not isinstance(value, type):
            key = prefix + f.name
            later += ["", *_comment(note), f"[{key}]", *_table(type(value), value, key + ".")]
            continue
        choices = type_text(hints(cls)[f.name])
        lines += _comment(note) + ([f"# {choices}"] if " | " in choices else [])
        lines.append(f"# {f.name} =    (required)" if value is MISSING else f"{f.name} = {_toml(value)}")
    return lines + later


def _toml(value: Any) -> str:
    """One value in TOML; None is the word "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return _toml(value.value)
    if isinstance(value, (str, Path)):
        return _quoted(str(value))
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes, and the one character that JSON lets pass and TOML does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> list[str]:
    paragraphs = [textwrap.wrap(part, 110) for part in text.split("\n\n") if part.strip()]
    return [f"# {line}".rstrip() for i, part in enumerate(paragraphs) for line in ([""] * (i > 0) + part)]


@dataclass(frozen=True)
class Difference:
    """One field in which two configurations differ."""

    key: str
    old: Any
    new: Any
    may_change: bool
    """The field is declared with metadata {"may_change": True}: a run may go on with the new value."""

    def __str__(self) -> str:
        return f"{self.key}: {show(self.old)} → {show(self.new)}"


def diff(old: Any, new: Any) -> list[Difference]:
    """The leaf fields in which two configurations of one class differ, with whether a run may go on regardless."""
    return list(_differences(old, new, "", False))


def _differences(old: Any, new: Any, prefix: str, free: bool) -> Iterator[Difference]:
    for f in fields(old):
        a, b, may = getattr(old, f.name), getattr(new, f.name), free or bool(f.metadata.get("may_change"))
        if is_dataclass(a) and type(a) is type(b):
            yield from _differences(a, b, f"{prefix}{f.name}.", may)
        elif a != b:
            yield Difference(prefix + f.name, a, b, may)


def user_files(cfg: Any) -> Iterator[str]:
    """The files named by the config as `file.py:function`: a user's own reward, source or loss."""
    if is_dataclass(cfg):
        cfg = [getattr(cfg, f.name) for f in fields(cfg)]
    if isinstance(cfg, Mapping):
        cfg = list(cfg.values())
    if isinstance(cfg, str):
        match = _USER_FILE.fullmatch(cfg)
        yield from [match[1]] if match else []
    elif isinstance(cfg, (list, tuple)):
        for part in cfg:
            yield from user_files(part)
