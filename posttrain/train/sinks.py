"""Where a run's lines go: the files of its folder, and mirrors elsewhere.

The files in `FILES` are part of what a run repeats: when it resumes, they are cut back to what they held at its last
checkpoint. Everything else that is appended (log.txt) only grows.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import RunError
from posttrain.train import checkpoint
from posttrain.train.folder import size
from posttrain.train.mirrors import Mirror, open_mirror

FILES = ("metrics.jsonl", "samples.jsonl", "rows.jsonl", "timing.jsonl", "invariants.jsonl")


class Sinks:
    """The open files and mirrors of one run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._handles: dict[str, Any] = {}
        self._mirrors: dict[str, Mirror] = {}
        self._tried: set[str] = set()
        self._say: Callable[[str], None] = print

    def append(self, name: str, record: Mapping[str, Any] | str) -> None:
        """One line of text, or one record as a line of JSON. Raises RunError on a full disk."""
        line = record if isinstance(record, str) else json.dumps(record, ensure_ascii=False, allow_nan=False)
        try:
            if name not in self._handles:
                self._handles[name] = open(self.folder / name, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            self._handles[name].write(line + "\n")
            self._handles[name].flush()
        except OSError as error:
            raise checkpoint.full_disk(error, f"writing {self.folder / name}", self.folder) or error from error

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, all of them on the disk."""
        for handle in self._handles.values():
            os.fsync(handle.fileno())
        return {name: size(self.folder / name) for name in FILES}

    def cut_back(self, sizes: Mapping[str, int], latest: Path | None, *, finished: bool) -> None:
        """Bring the files to the sizes that they had when the checkpoint `latest` was written.

        finished: the run has its last checks after that, which stay. Raises RunError if a file has become shorter.
        """
        for name in FILES:
            path, wanted = self.folder / name, sizes.get(name, 0)
            if size(path) < wanted:
                raise RunError(
                    f"{path} has {size(path)} bytes but had {wanted} when {latest} was written: it was "
                    "edited. Restore it, or start into a new folder (--out)."
                )
            if path.exists() and not finished:
                os.truncate(path, wanted)

    def open_mirrors(self, names: Sequence[str], settings: str, done: int, say: Callable[[str], None]) -> None:
        """Begin to mirror metrics; what was begun before goes on.

        settings: the config as text. done: steps that are complete. say: what to do with a complaint.
        """
        self._say = say
        for name in dict.fromkeys(names):
            if name in self._tried:
                continue
            self._tried.add(name)
            with self._never_stopping(name):
                self._mirrors[name] = open_mirror(name, self.folder, settings, done)

    def mirror(self, step: int, values: Mapping[str, float]) -> None:
        """Send a step's metrics to every mirror that still works."""
        for name in list(self._mirrors):
            with self._never_stopping(name):
                self._mirrors[name].log(step, values)

    def close(self) -> None:
        """Close files and mirrors."""
        for name in list(self._mirrors):
            with self._never_stopping(name):
                self._mirrors.pop(name).close()
        for handle in self._handles.values():
            with contextlib.suppress(OSError):
                handle.close()
        self._handles.clear()

    @contextlib.contextmanager
    def _never_stopping(self, name: str):
        """A mirror is somebody else's code, perhaps over a network: whatever it raises ends the mirror, not the run."""
        try:
            yield
        except Exception as error:
            self._mirrors.pop(name, None)
            self._say(f"the mirror {name} failed and is left out from here on: {type(error).__name__}: {error}")
