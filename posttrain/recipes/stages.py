"""Stages of a recipe: each is a run of one method in a folder of its own, which is trained, resumed, or reused."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.train.run import Result, Run


def stage(folder: Path, method: ModuleType, cfg: Any) -> Result:
    """The result of `method.train(cfg)` in `folder`: at once where it is finished, from its last checkpoint where not.

    Raises ConfigError, with the differences, if the folder was made with another config.
    """
    with Run.open(folder, cfg, command=f"posttrain train {method.__name__.rpartition('.')[2]} --out {folder}") as run:
        return method.train(cfg, run)


def seconds(folder: Path) -> float:
    """Time that the steps of a run took, over all its sittings."""
    lines = (folder / "timing.jsonl").read_text().splitlines()
    return sum(json.loads(line)["seconds"] for line in lines)


def curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric of a run."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row[metric]) for row in rows if metric in row]


def checks(folder: Path) -> list[dict[str, Any]]:
    """The last word of each invariant of a run; one that ever failed stays failed."""
    last: dict[str, dict[str, Any]] = {}
    path = folder / "invariants.jsonl"
    for row in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        if row["check"] not in last or last[row["check"]]["ok"]:
            last[row["check"]] = {"run": folder.name, **row}
    return list(last.values())
