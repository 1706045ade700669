"""The processes that are timed, seen from compare.py: how they are started, and what they are asked."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import inputs
import peers

HERE = Path(__file__).parent


class Failed(Exception):
    """A worker ended before it was told to, or two sides do different things."""


def command(side: str, key: dict, setting: str, *, steps: int, warmup: int, seed: int, probe: bool = False) -> list:
    """The command of one side ("ours", "theirs", "floor") for a job, as key says; "processes": ours, one per thread."""
    job, size = key["job"], key["size"]
    told = [job, "--threads", key["threads"], "--steps", steps, "--warmup", warmup, "--seed", seed]
    told += ["--device", key["device"], "--precision", key["precision"], *(["--probe"] if probe else [])]
    if side == "processes":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", key["threads"]]
        return [*torchrun, HERE / "ours.py", *told[:1], size, *told[1:]]
    if side != "theirs":
        plain = ["--plain"] if setting == "plain" else []
        return [sys.executable, HERE / f"{side}.py", *told[:1], size, *told[1:], *plain]
    files = ["--model", inputs.model_folder(size, scalar=job == "rm")]
    files += ["--data", inputs.data_files(size, job, steps, seed)[1], "--scratch", inputs.SCRATCH / "trl"]
    what = ["--what", json.dumps(dataclasses.asdict(inputs.JOBS[job])), "--setting", json.dumps(peers.of(job)[setting])]
    return [peers.python(job), HERE / "theirs.py", *told, *files, *what]


class Worker:
    """One process that takes steps when it is told to."""

    def __init__(self, command: list, core: int | None = None):
        """core: the one it may run on; default: any."""
        threads = str(command[command.index("--threads") + 1])
        env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        env |= {"HF_HOME": str(inputs.SCRATCH / "hf"), "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        self.facts: dict | None = None
        self.command = [str(x) for x in command]
        self._noise = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            self.command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise
        )
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, {core})

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def hello(self) -> dict:
        """Wait until it is warm."""
        if self.facts is None:
            self.facts = self._line()["hello"]
        return self.facts

    def step(self) -> dict:
        """One step, and what it took."""
        self.hello()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._line()

    def turn(self, steps: int) -> dict:
        """So many steps in a row, and what they took together."""
        took = [self.step() for _ in range(steps)]
        sums = {name: sum(x[name] for x in took) for name in ("seconds", "tokens")}
        return took[-1] | sums | {"peak": max(x["peak"] for x in took)}

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        self._noise.close()

    def _line(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._noise.seek(0)
        tail = "".join(self._noise.readlines()[-12:]).strip()
        raise Failed(f"{' '.join(self.command[:3])} ended with code {self._process.returncode}:\n{tail}")
