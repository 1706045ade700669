"""What a run folder is, seen from outside: is it one, who holds it, how does its config differ, what came of it.

Low in the layers and without torch: whoever takes a model by name must be able to look into a run.
"""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.errors import ConfigError, RunError, UsageError


@dataclass(frozen=True)
class Result:
    """What a finished run left behind, as in its result.json."""

    folder: Path
    steps: int
    metrics: Mapping[str, float]
    """The last line of metrics.jsonl, and what `finish` was given on top."""
    checkpoint: Path | None
    """The last checkpoint: a model folder."""
    best: Path | None = None
    """The best one, where `run.best` names a metric."""

    @property
    def model(self) -> Path | None:
        """The model to go on with: the best checkpoint where one was asked for, else the last."""
        return self.best or self.checkpoint


def read_result(folder: Path | str) -> Result | None:
    """The result of a complete run folder, or None where result.json is missing."""
    folder = Path(folder)
    path = folder / "result.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    last, best = raw["checkpoint"], raw["best"]
    return Result(folder, raw["steps"], raw["metrics"], last and folder / last, best and folder / best)


def found(root: Path) -> list[Path]:
    """All whole checkpoints in a run's `checkpoints`, oldest first; unfinished drafts do not count."""
    return sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name) and p.is_dir())


def size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def refuse_foreign(folder: Path) -> None:
    """A folder without config.toml must be empty, but for what a kill during creation may leave."""
    foreign = [p.name for p in folder.iterdir() if p.name not in ("meta.json", ".lock", "code") and p.suffix != ".tmp"]
    if foreign:
        raise UsageError(
            f"{folder} is not a run folder and not empty (it holds {', '.join(sorted(foreign)[:3])}). "
            "Name another folder with --out."
        )


def never_began(folder: Path) -> bool:
    """Whether a run folder holds no step: a wrong template or a bad row stopped it, and there is nothing to keep."""
    return size(folder / "metrics.jsonl") == 0 and not found(folder / "checkpoints") and read_result(folder) is None


def lock_folder(folder: Path) -> int:
    """Hold the folder against other processes; a killed holder releases it. Returns the handle to close."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunError(
            f"another process is writing to {folder}. Wait for it, stop it, or name another folder with --out."
        ) from None
    return handle


def compare(folder: Path, cfg: Any) -> list[str]:
    """Differences between the folder's config and `cfg` that may be; raises ConfigError for those that may not."""
    try:
        old = config.load(type(cfg), folder / "config.toml")
    except ConfigError as error:
        raise ConfigError(
            f"{folder} was made by another method or version, so it cannot go on:\n{error}\n"
            "Name another folder with --out."
        ) from None
    differences = config.diff(old, cfg)
    hard = [d for d in differences if not d.may_change]
    if hard:
        lines = "\n".join(f"  {d}" for d in hard)
        raise ConfigError(
            f"{folder} was made with another config (there → asked for):\n{lines}\nA run keeps its config, "
            "so that its curve means one thing. Name another folder with --out, or ask for the same."
        )
    return [str(d) for d in differences]
