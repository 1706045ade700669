"""The one run that may be under way, as a process of its own, and what it has said so far."""

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import RunError
from posttrain.live.experiments import EXPERIMENTS, Value

TAIL = 2000
"""Characters of what a process said last, told where it ends badly."""


@dataclass(eq=False)
class Live:
    """A run that was started, and its events."""

    id: str
    experiment: str
    settings: Mapping[str, Value]
    process: subprocess.Popen
    events: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    """Why it was stopped, if it was."""
    news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def over(self) -> bool:
        """Whether no event will follow."""
        return bool(self.events) and self.events[-1]["kind"] == "end"

    def tell(self, event: dict[str, Any]) -> None:
        """Add an event, and wake those who wait for it."""
        with self.news:
            if not self.over:
                self.events.append(event)
            self.news.notify_all()

    def follow(self, patience: float) -> Iterator[tuple[int, dict[str, Any]] | None]:
        """All events with their numbers, as they come; None after so many seconds without one."""
        at = 0
        while True:
            with self.news:
                if at >= len(self.events):
                    self.news.wait(patience)
                found = self.events[at:]
            yield from enumerate(found, at) if found else (None,)
            at += len(found)
            if found and found[-1]["kind"] == "end":
                return


class Runs:
    """Starts one run at a time; the last one's events stay until the next begins."""

    def __init__(self) -> None:
        self.last: Live | None = None
        self._lock = threading.Lock()

    def start(self, name: str, settings: Mapping[str, Value]) -> Live:
        """Begin an experiment with settings that were checked. Raises RunError while another one runs."""
        with self._lock:
            if self.last and not self.last.over:
                raise RunError(f"{self.last.experiment} is running: one run at a time. Stop it first.")
            folder = tempfile.TemporaryDirectory(prefix="posttrain-live-")
            log = tempfile.TemporaryFile("w+")  # noqa: SIM115
            command = [sys.executable, "-m", "posttrain.live.run", name, folder.name]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            live = self.last = Live(secrets.token_hex(8), name, settings, process)
        threading.Thread(target=_read, args=(live, folder, log), daemon=True).start()
        return live

    def stop(self, why: str = "stopped") -> None:
        """End the run that is under way, if there is one."""
        live = self.last
        if live and not live.over:
            live.stopped = why
            end(live.process)


def end(process: subprocess.Popen) -> None:
    """Ask a process to end, and end it."""
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(live: Live, folder: tempfile.TemporaryDirectory, log: Any) -> None:
    """Pass on what a process says until it ends, for as long as it may take."""

    def late() -> None:
        live.stopped = f"it was stopped after {limit} seconds"
        end(live.process)

    limit = EXPERIMENTS[live.experiment].seconds
    clock = threading.Timer(limit, late)
    clock.start()
    with folder, log:
        for line in live.process.stdout:
            event = json.loads(line)
            if event["kind"] != "end" or not live.stopped:
                live.tell(event)
        live.process.wait()
        clock.cancel()
        for pipe in (live.process.stdin, live.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        if live.stopped:
            live.tell({"kind": "end", "state": "stopped", "why": live.stopped})
        log.seek(0)
        live.tell(
            {"kind": "end", "state": "failed", "why": log.read()[-TAIL:] or f"exit code {live.process.returncode}"}
        )
