"""One experiment in this process: `python -m posttrain.live.run NAME FOLDER`, settings on the first line of the input.

Writes one JSON object a line: {"kind": "step", "step", "metrics", "samples"} for every step, then {"kind": "end"}; what
the run says besides goes to the error stream. It ends when its input ends, so that no run survives who asked for it.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.live.experiments import EXPERIMENTS, Experiment

TEXT = 600
"""Characters of an answer in an event."""


def main(words: list[str]) -> int:
    """Run it; the exit code."""
    experiment, folder = EXPERIMENTS[words[0]], Path(words[1])
    settings = experiment.read(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, daemon=True).start()
    out, lock = sys.stdout, threading.Lock()

    def tell(**event: Any) -> None:
        with lock:
            print(json.dumps(event), file=out, flush=True)

    from posttrain.recipes.stages import stage

    with contextlib.redirect_stdout(sys.stderr):
        try:
            method, cfg = experiment.run(settings, folder)
            done = threading.Event()
            answers = min(cfg.run.samples, cfg.prompts * cfg.group_size)
            follower = threading.Thread(target=follow, args=(experiment, folder / "run", answers, done, tell))
            follower.start()
            try:
                stage(folder / "run", method, cfg)
            finally:
                done.set()
                follower.join()
        except PosttrainError as error:
            tell(kind="end", state="failed", why=str(error))
            return 1
    tell(kind="end", state="done")
    return 0


def _end_with_input() -> None:
    """Nothing more is read; an end means that the server is gone."""
    sys.stdin.read()
    os._exit(1)


def follow(
    experiment: Experiment, folder: Path, answers: int, done: threading.Event, tell: Callable[..., None]
) -> None:
    """Tell every step of a run as soon as its metrics and so many answers are written, until the run is done."""
    metrics, samples = Lines(folder / "metrics.jsonl"), Lines(folder / "samples.jsonl")
    steps: list[dict[str, Any]] = []
    written: dict[int, list[dict[str, Any]]] = {}
    while True:
        last = done.is_set()
        steps += metrics.new()
        for line in samples.new():
            written.setdefault(line["step"], []).append(line)
        while steps and (last or len(steps) > 1 or len(written.get(steps[0]["step"], ())) >= answers):
            line = steps.pop(0)
            found = written.pop(line["step"], [])
            kept = {name: line[name] for name in experiment.metrics if name in line} | experiment.also(line, found)
            tell(kind="step", step=line["step"], metrics=kept, samples=[shown(x) for x in found[: experiment.samples]])
        if last:
            return
        time.sleep(0.1)


def shown(line: dict[str, Any]) -> dict[str, Any]:
    """A line of samples.jsonl, as much of it as a page shows."""
    prompt, answer = (line["messages"][i]["content"][:TEXT] for i in (-2, -1))
    reward = (line.get("score") or {}).get("value")
    return {"task": line["task"], "prompt": prompt, "answer": answer, "stop": line["stop"], "reward": reward,
            "length": line["length"]}  # fmt: skip


class Lines:
    """A file of JSON lines that grows; it need not be there yet."""

    def __init__(self, path: Path):
        self.path, self.at = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """What was added since the last call, whole lines only."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.at += len(whole)
        yield from map(json.loads, whole.splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
