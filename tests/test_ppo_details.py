"""The table of PPO's details names what exists: functions, config fields, tests."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from posttrain.algorithms.ppo import Config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ppo-details.md"
STATES = ("always so", "option", "not applicable")
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| detail", "| ---"))
]


def names_of(path: Path) -> set[str]:
    """Functions and methods of a file, these as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


def field_exists(key: str) -> bool:
    """Whether the config of PPO has that field."""
    at = Config()
    for name in key.split("."):
        if not dataclasses.is_dataclass(at) or name not in {f.name for f in dataclasses.fields(at)}:
            return False
        at = getattr(at, name)
    return True


def check_place(place: str) -> None:
    """A file, and the function in it where one is named."""
    file, _, name = place.partition(":")
    assert (ROOT / file).is_file(), place
    assert not name or name in names_of(ROOT / file), place


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_names_what_exists(row):
    detail, state, where = row
    assert detail and state in STATES, row
    quoted = re.findall(r"`([^`]+)`", where)
    places = [q for q in quoted if q.endswith(".py") or ".py:" in q]
    for place in places:
        check_place(place)
    for key in set(quoted) - set(places):
        assert field_exists(key), f"{key} is no field of `posttrain train ppo`"
    if state == "always so":
        assert len(places) == 1 and places[0].startswith("posttrain/") and ":" in places[0], where
    if state == "option":
        assert len(places) == 1 and places[0].startswith("tests/") and len(quoted) == 2, where
    if state == "not applicable":
        assert len(where) > 20, f"{detail}: why?"


def test_the_page_has_both_lists_and_is_linked():
    assert len(ROWS) >= 25 + 13 and sum(row[0][0].isdigit() for row in ROWS) >= 17
    assert "docs/ppo-details.md" in (ROOT / "README.md").read_text()
