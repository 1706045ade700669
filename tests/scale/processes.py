"""Several processes as torchrun would start them, from a fork server that has torch loaded and has computed nothing."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "tokenizers", "torch._dynamo", "posttrain.algorithms.ppo", "posttrain.algorithms.sft",
     "posttrain.algorithms.preference", "posttrain.scale.distributed"]
)  # fmt: skip
_STORES: list[TCPStore] = []
PATIENCE = 120
"""Seconds after which a process counts as hung."""


def start(n: int, work: Callable, *args, log: Path | None = None) -> list[BaseProcess]:
    """n processes in which work(*args) runs; what the r-th writes goes to `log`.r, or nowhere."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives them, as torchrun's does
    _STORES.append(store)
    found = [_CONTEXT.Process(target=_enter, args=(r, n, store.port, log, work, args), daemon=True) for r in range(n)]
    for process in found:
        process.start()
    return found


def codes(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit codes, once all have ended; None for one that hangs, which is killed."""
    for process in processes:
        process.join(PATIENCE)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def run(n: int, work: Callable, *args, log: Path | None = None) -> list[int | None]:
    """Start n processes, wait for them, and return their exit codes."""
    return codes(start(n, work, *args, log=log))


def written(log: Path, rank: int) -> str:
    """What a process wrote."""
    return Path(f"{log}.{rank}").read_text()


def _enter(rank: int, n: int, port: int, log: Path | None, work: Callable, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "COLUMNS": "2000",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    handle = os.open(f"{log}.{rank}" if log else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    with contextlib.suppress(BrokenPipeError):
        work(*args)
    sys.stdout.flush()
