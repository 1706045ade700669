"""One cell of a study, in this process: `python -m posttrain.lab.cell MODULE STUDY SEED FOLDER`; `cells` starts it.

The folder holds `settings.json`, and gets `cell.json` (the figures, and what made them), or `missing.txt` where an
optional package is lacking. `scratch/` in it is the study's own; a process that was stopped finds it as it left it.
"""

import json
import math
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import Interrupted, MissingExtra
from posttrain.lab.menu import Entry, of_module
from posttrain.train import checkpoint, provenance
from posttrain.train.folder import lock_folder

SKIPPED = 77
"""Exit code where the study cannot run here."""


def main(words: list[str]) -> int:
    """Run the cell that the words name; its exit code."""
    module, name, seed, folder = words[0], words[1], int(words[2]), Path(words[3])
    signal.signal(signal.SIGTERM, _stopped)
    entry = next(e for e in of_module(module) if e.study.name == name)
    lock = lock_folder(folder)
    try:
        run(entry, seed, folder)
    except MissingExtra as error:
        checkpoint.write_text(folder / "missing.txt", str(error))
        return SKIPPED
    finally:
        os.close(lock)
    return 0


def run(entry: Entry, seed: int, folder: Path) -> None:
    """Measure, and write `folder/cell.json`.

    Seconds are the processor's, of all processes that worked on the cell: what else the machine did is not in them.
    """
    settings = json.loads((folder / "settings.json").read_text())
    scratch, spent = folder / "scratch", folder / "spent"
    scratch.mkdir(exist_ok=True)
    before = float(spent.read_text()) if spent.exists() else 0.0
    try:
        measured = dict(entry.study.measure(settings, seed, scratch))
        page = {"page": plain(measured.pop("page"))} if "page" in measured else {}
        figures = checked(measured)
    finally:
        checkpoint.write_text(spent, f"{before + processor_seconds():.2f}")
    record = {
        "figures": figures,
        "seconds": float(spent.read_text()),
        "code": (folder / "code").read_text(),
        "made": provenance.now(),
        "revision": provenance.revision(),
        "versions": provenance.versions(),
        **page,
    }
    checkpoint.write_text(folder / "cell.json", json.dumps(record, indent=1))
    shutil.rmtree(scratch)


def processor_seconds() -> float:
    """Of this process since it began, and of those that it started and that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def checked(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as plain floats and lists of floats. Raises ValueError for one that is no finite number."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        values = [float(x) for x in value] if isinstance(value, list | tuple) else [float(value)]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"the figure {name} = {value}: a figure is a finite number, or a list of them")
        found[name] = values if isinstance(value, list | tuple) else values[0]
    return found


def plain(value: Any) -> Any:
    """The value, if it is plain JSON. Raises ValueError where it is not."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f'what a cell returns under "page" must be plain JSON with finite numbers: {error}') from error
    return value


def _stopped(number, frame) -> None:
    raise Interrupted("stopped by SIGTERM; the same command goes on with this cell")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
