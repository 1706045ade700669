"""How a worker process is timed: it waits for a word, takes one step, and says what it took, as one JSON line.

Both sides use this file, each in its own environment; it needs the standard library and torch. A worker warms up, then
waits before every timed step, so that two libraries take turns on an otherwise idle machine:

    <- {"hello": ...}                  after imports, model and warm-up: resident memory, parameters, one-time costs
    -> go
    <- {"step": 2, "seconds": 1.9, "tokens": 1931, "peak": ..., "loss": ...}
    -> stop                            (or the end of the input)
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Updates:
    """Counts optimizer steps in this process."""

    def __init__(self):
        self.of: dict[int, int] = {}
        register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer, *_) -> None:
        self.of[id(optimizer)] = self.of.get(id(optimizer), 0) + 1

    @property
    def most(self) -> int:
        """Of the busiest optimizer: policy and critic may have one each, or one together."""
        return max(self.of.values(), default=0)


class Pace:
    """Talks to compare.py on what was standard output; whatever else prints there goes to standard error."""

    def __init__(self, warmup: int, device: str):
        """Call it when everything is imported and no model is loaded yet: what is resident now is nobody's fault."""
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.warmup, self.device = warmup, device
        self.updates = Updates()
        torch.mm(torch.ones(64, 64), torch.ones(64, 64)).sum()  # thread pools and kernels have their memory
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports torch's compiler, on either side
        self.facts: dict = {"imported": resident(device)}
        self._said_hello = False
        self._began = 0.0

    def say(self, **line) -> None:
        """One line for compare.py."""
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def told(self) -> bool:
        """Wait for the word; False where there is none any more."""
        return sys.stdin.readline().strip() == "go"

    def begin(self, step: int) -> None:
        """Before a step. After the warm-up it waits for the word, and ends the process where there is none."""
        if step >= self.warmup:
            if not self._said_hello:
                self.say(hello=self.facts)
                self._said_hello = True
            if not self.told():
                raise SystemExit(0)
            forget_peak(self.device)
        synchronize(self.device)
        self._began = time.perf_counter()

    def end(self, step: int, tokens: int, **more) -> None:
        """After a step over so many tokens. more: what else to say; its `seconds` count instead of the clock's."""
        synchronize(self.device)
        seconds = time.perf_counter() - self._began
        if step >= self.warmup:
            self.say(**{"step": step, "seconds": seconds, "tokens": tokens, "peak": peak(self.device)} | more)


def read_plan(path: Path) -> list[dict]:
    """Of each step the number of tokens in its rows, and the rows as ids; see inputs.py."""
    return json.loads(Path(path).read_text())


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def resident(device: str) -> int:
    """Bytes in use now: of the GPU's allocator, else of this process."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return _status("VmRSS")


def peak(device: str) -> int:
    """Bytes in use at the highest point since `forget_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def forget_peak(device: str) -> None:
    """Let the highest point begin again from what is in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole process
        pass


def _status(name: str) -> int:
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(name + ":"))
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used * (1 if sys.platform == "darwin" else 1024)
