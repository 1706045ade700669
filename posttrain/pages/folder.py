"""What is in a run folder, for people: its lines, the last word of its checks, its config as text and as keys."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError, nearest
from posttrain.train.metrics import HEADLINE, METRICS


def check_run(folder: Path) -> None:
    """Raises UsageError, with what is there instead, if the folder is no run."""
    if not (folder / "config.toml").exists():
        beside = [p.parent.name for p in folder.parent.glob("*/config.toml")] if folder.parent.is_dir() else []
        hint = nearest(folder.name, beside) if beside else "`posttrain runs list` shows what there is."
        raise UsageError(f"{folder} is not a run folder (it has no config.toml). {hint}")


def lines(run: Path, name: str) -> Iterator[dict[str, Any]]:
    """The whole lines of one of a run's files; the last may be half written, and a file may be missing."""
    return map(json.loads, _raw(run, name))


def _raw(run: Path, name: str) -> Iterator[str]:
    path = run / name
    if path.exists():
        with open(path, encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))


def table(run: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run, {} where there is none."""
    path = run / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def text(run: Path, name: str) -> str:
    """A text file of a run, empty where there is none."""
    path = run / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value): those worth a glance first, then as in the glossary."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in lines(run, "metrics.jsonl"):
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, []).append((row["step"], value))
    order = {name: i for i, name in enumerate(dict.fromkeys((*HEADLINE, *METRICS)))}
    return dict(sorted(found.items(), key=lambda entry: (order.get(entry[0], len(order)), entry[0])))


def curve(run: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric of a run."""
    return [(row["step"], row[metric]) for row in lines(run, "metrics.jsonl") if metric in row]


def seconds(run: Path) -> float:
    """Time that the steps of a run took, over all its sittings."""
    return sum(row["seconds"] for row in lines(run, "timing.jsonl"))


def checks(run: Path) -> list[dict[str, Any]]:
    """The last word of each invariant of a run; one that ever failed stays failed."""
    last: dict[str, dict[str, Any]] = {}
    for row in lines(run, "invariants.jsonl"):
        if row["check"] not in last or last[row["check"]]["ok"]:
            last[row["check"]] = {"run": run.name, **row}
    return list(last.values())


def samples(run: Path, first: bool = False) -> list[dict[str, Any]]:
    """The samples of the last step that has any, or of the first."""
    found: list[str] = []
    for line in _raw(run, "samples.jsonl"):
        if found and line.partition(",")[0] != found[0].partition(",")[0]:  # {"step": 7, ...: parsed only if wanted
            if first:
                break
            found = []
        found.append(line)
    return [json.loads(line) for line in found]


def settings(run: Path) -> dict[str, Any]:
    """Dotted key -> value of a run's config, in its order."""
    return dict(flat(tomllib.loads(text(run, "config.toml"))))


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def method_of(run: Path) -> str:
    """The method that a run used."""
    return table(run, "meta.json").get("method", "?")
