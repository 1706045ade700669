"""Running what is missing of some studies: each cell (study, arm, seed) in a single-thread process of its own.

A finished cell stays in runs/lab/<study>/<arm>-<seed>-<key>/, where the key is a hash of the package's version, the
study's name and version, and the arm's settings; it is not run again. The code is not in the key: a comment would make
hours of runs void. Each cell records a digest of all code of the package but the command line, the lab's engine and
other studies; `fresh` takes only cells that this very code made. A cell that was interrupted goes on in its folder; one
that failed leaves log.txt and begins anew the next time; the others go on.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import posttrain
from posttrain.errors import RunError
from posttrain.lab.cell import SKIPPED
from posttrain.lab.menu import Entry
from posttrain.lab.study import Cells, Study
from posttrain.train import checkpoint
from posttrain.train.folder import lock_folder

ROOT = Path("runs/lab")
PACKAGE = Path(posttrain.__file__).parent
_CHANGES_NO_FIGURE = ("cell.py", "cells.py", "digest.py", "menu.py", "page.py", "verdict.py")
_MAKES_NO_RUN = ("cli", "exercises", "live")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of one arm."""

    entry: Entry
    arm: str
    seed: int
    root: Path = ROOT

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of its arm."""
        return self.entry.study.arms[self.arm]

    @property
    def folder(self) -> Path:
        """Where its figures are, once it ran."""
        study, arm = self.entry.study, re.sub(r"\W+", "-", self.arm).strip("-")
        key = short_hash([posttrain.__version__, study.name, study.version, self.arm, self.settings])
        return self.root / study.name / f"{arm}-{self.seed}-{key}"

    @property
    def record(self) -> dict[str, Any] | None:
        """What it measured, with seconds and origin; None before."""
        path = self.folder / "cell.json"
        return json.loads(path.read_text()) if path.exists() else None

    def __str__(self) -> str:
        return f"{self.entry.study.name}  {self.arm}  seed {self.seed}"


@dataclass
class Ran:
    """What became of the cells that were asked for."""

    failed: dict[Cell, Path] = field(default_factory=dict)
    """Cell -> its log."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Study -> why it cannot run here."""


def cells_of(entry: Entry, seeds: Sequence[int], root: Path = ROOT) -> list[Cell]:
    """All cells of a study, the arms of one seed after another."""
    return [Cell(entry, arm, seed, root) for seed in seeds for arm in entry.study.arms]


def figures_of(cells: Sequence[Cell]) -> Cells:
    """What finished cells measured, as `Study.read` takes it."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        found.setdefault(cell.arm, {})[cell.seed] = cell.record["figures"]
    return found


def missing(cells: Sequence[Cell], fresh: bool) -> list[Cell]:
    """The cells that must run. fresh: also those that another state of the code made."""
    found = []
    for cell in cells:
        record = cell.record
        lacks = record is None or (cell.entry.study.page is not None and "page" not in record)
        if lacks or (fresh and record["code"] != code_of(cell.entry)):
            found.append(cell)
    return found


def run_cells(
    cells: Sequence[Cell],
    *,
    processes: int,
    expected: Callable[[Cell], float | None] = lambda cell: None,
    say: Callable[[str], None] = print,
    done: Callable[[Cell], None] = lambda cell: None,
) -> Ran:
    """Run all these cells, so many at a time; what there was of them is deleted, but for an interrupted one's folder.

    expected: seconds that a cell took before, for the time that is left. done: told of every cell that has its figures.
    """
    ran, waiting, running = Ran(), list(cells), {}
    clock = Clock(len(cells), processes, expected)
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                cell = waiting.pop(0)
                running[start(cell)] = cell, time.monotonic()
            time.sleep(0.05)
            for process in [p for p in running if p.poll() is not None]:
                cell, began = running.pop(process)
                took = time.monotonic() - began
                if process.returncode == 0:
                    clock.took(cell, took)
                    done(cell)
                    say(f"{clock}  {cell}: {took:.0f} s; {clock.left([*waiting, *(c for c, _ in running.values())])}")
                elif process.returncode == SKIPPED:
                    name, why = cell.entry.study.name, (cell.folder / "missing.txt").read_text()
                    waiting = [c for c in waiting if c.entry.study.name != name]
                    if name not in ran.skipped:
                        say(f"{name} is passed over: {why}")
                    ran.skipped[name] = why
                else:
                    clock.took(cell, took)
                    ran.failed[cell] = cell.folder / "log.txt"
                    (cell.folder / "failed").touch()
                    say(f"{clock}  {cell} failed after {took:.0f} s: {last_line(cell)}\n    {cell.folder / 'log.txt'}")
    finally:
        stop(list(running))
    return ran


def start(cell: Cell) -> subprocess.Popen:
    """Begin a cell, or go on with an interrupted one."""
    folder, code = cell.folder, code_of(cell.entry)
    told = folder / "code"
    if (folder / "failed").exists() or (folder / "cell.json").exists() or not told.exists() or told.read_text() != code:
        _remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(folder / "settings.json", json.dumps(cell.settings))
    checkpoint.write_text(told, code)
    words = ["-m", "posttrain.lab.cell", cell.entry.module, cell.entry.study.name, cell.seed, folder]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with open(folder / "log.txt", "a") as log:  # Ctrl-C is ours alone, hence the session of its own
        return subprocess.Popen(
            [sys.executable, *map(str, words)], env=os.environ | one, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _remove(folder: Path) -> None:
    """Delete a cell that no other command is running; where one is, the new process will say so."""
    if folder.exists():
        with contextlib.suppress(RunError):
            os.close(lock_folder(folder))
            shutil.rmtree(folder, ignore_errors=True)


def stop(running: Sequence[subprocess.Popen]) -> None:
    """Let processes write their checkpoints and end; the slow ones are ended after a minute."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + 60
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


class Clock:
    """How many cells are done, and how long the others may take."""

    def __init__(self, cells: int, processes: int, expected: Callable[[Cell], float | None]):
        self.cells, self.processes, self.expected = cells, processes, expected
        self.seen: dict[str, list[float]] = {}
        self.done = 0

    def took(self, cell: Cell, seconds: float) -> None:
        """A cell is done."""
        self.done += 1
        self.seen.setdefault(cell.entry.study.name, []).append(seconds)

    def left(self, cells: Sequence[Cell]) -> str:
        """In words: by what cells of the study took now, or when they were recorded, or what all took."""
        everything = [x for values in self.seen.values() for x in values]
        total = 0.0
        for cell in cells:
            same = self.seen.get(cell.entry.study.name) or everything
            total += self.expected(cell) or sum(same) / len(same)
        return f"about {total / self.processes / 60:.0f} min left" if cells else "that was the last"

    def __str__(self) -> str:
        return f"[{self.done}/{self.cells}]"


def last_line(cell: Cell) -> str:
    """Of its log: mostly the error."""
    lines = (cell.folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


@cache
def code_of(entry: Entry) -> str:
    """A digest of the code that may change a figure of a study."""
    digest = hashlib.sha256()
    own = entry.module.rpartition(".")[2]
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] in _MAKES_NO_RUN or (parts[0] == "lab" and parts[-1] in _CHANGES_NO_FIGURE):
            continue
        if parts[0] == "lab" and len(parts) > 2 and path.stem != own:
            continue
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def config_hash(study: Study) -> str:
    """A short name of what a study does: its name, version, and all arms' settings."""
    return short_hash([study.name, study.version, study.arms])


def short_hash(value: Any) -> str:
    """Eight digits of plain data."""
    text = json.dumps(value, sort_keys=True, default=dict)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
