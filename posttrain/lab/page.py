"""What a widget of the book reads of a study: posttrain/lab/digests/page/<name>.json, written beside its digest.

    schema      1
    name        of the study
    hash        of its settings, as in the digest
    reader      a hash of `Study.page`, comments aside
    cells       a hash of the figures of the digest that it belongs to
    made        when the last cell ran (UTC)
    seeds       of the cells
    data        what `Study.page` returned; the book's build copies it to _static/data/<name>.json

Numbers are as `Study.page` rounded them. Compressed, the data has at most 150 kB: a page waits for it.
"""

import ast
import gzip
import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.lab import digest
from posttrain.lab.cells import Cell, config_hash, short_hash
from posttrain.lab.study import Study
from posttrain.train import checkpoint

SCHEMA = 1
MOST = 150_000
"""Bytes, compressed."""


def make(study: Study, cells: Sequence[Cell], made: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a study whose cells have all run; made: their digest. Raises what `Study.page` raises."""
    pages: dict[str, dict[int, Any]] = {}
    for cell in cells:
        pages.setdefault(cell.arm, {})[cell.seed] = cell.record["page"]
    found = {
        "schema": SCHEMA,
        "name": study.name,
        "hash": config_hash(study),
        "reader": reader_hash(study),
        "cells": cells_hash(made),
        "made": made["provenance"]["made"],
        "seeds": made["seeds"],
        "data": study.page(pages),
    }
    size = len(gzip.compress(text_of(found).encode()))
    if size > MOST:
        raise ValueError(
            f"the data of its widget has {size / 1000:.0f} kB compressed, {MOST // 1000} at most: round it"
        )
    return found


def outdated(study: Study, found: Mapping[str, Any] | None, recorded: Mapping[str, Any]) -> str | None:
    """Why data is not what this study and its recorded digest would give; None if it is."""
    if found is None:
        return "the data of its widget is missing"
    if found["hash"] != config_hash(study):
        return "the data of its widget is of other settings"
    if found["reader"] != reader_hash(study):
        return "the function that makes the data of its widget has changed"
    if found["cells"] != cells_hash(recorded):
        return "the data of its widget is of other cells than its digest"
    return None


def reader_hash(study: Study) -> str:
    """Of what `Study.page` does, by its syntax: comments and line breaks are left out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(study.page)))
    return short_hash(ast.dump(tree))


def cells_hash(recorded: Mapping[str, Any]) -> str:
    """Of the figures of all cells of a digest; their seconds are left out."""
    return short_hash({arm: {s: c["figures"] for s, c in by.items()} for arm, by in recorded["cells"].items()})


def text_of(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def path_of(name: str, folder: Path | None = None) -> Path:
    """Where the data of a study is; folder: of the digests."""
    return (folder or digest.FOLDER) / "page" / f"{name}.json"


def load(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The recorded data of a study, None where there is none."""
    path = path_of(name, folder)
    return json.loads(path.read_text()) if path.exists() else None


def write(found: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Record it."""
    path = path_of(found["name"], folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(path, text_of(found) + "\n")
    return path
