"""What memory this machine has, and what is said where it does not suffice. Imports torch only when asked.

A GPU refuses an allocation, and so does a CPU asked for more than the system promises; but a Linux system that has
promised too much ends the process without a word. Hence `free` beside the errors: what is asked for is compared before.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from posttrain import heap
from posttrain.errors import OutOfMemory

_CGROUP = Path("/sys/fs/cgroup")
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class Machine(NamedTuple):
    """The memory that training uses, in bytes."""

    name: str
    total: int
    free: int
    """What this process can still get."""


def machine(device: str | None = None) -> Machine | None:
    """The memory of a kind of device: "cuda" or "cpu"; default: of the GPU where there is one. None: not known here."""
    import torch

    if device == "cuda" or (device is None and torch.cuda.is_available()):
        free, total = torch.cuda.mem_get_info()
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return Machine(torch.cuda.get_device_name(), total, free + idle)
    heap.give_back()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _without_proc()
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    total, free = table["MemTotal"], table.get("MemAvailable", table["MemFree"]) + table.get("SwapFree", 0)
    limit = _cgroup_limit()
    if limit is not None and limit[0] < total:
        total, free = limit[0], min(free, limit[1])
    return Machine("RAM", total, free)


def _without_proc() -> Machine | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return Machine("RAM", total, total)


def _cgroup_limit() -> tuple[int, int] | None:
    """Bytes that this container may have, and how many of them are left; pages of files can be dropped, so are left."""
    try:
        groups = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, kinds, path in groups:
        if kinds in ("", "memory"):  # version 2 has one tree, version 1 one for each kind of resource
            root = _CGROUP / kinds
            place = root / path.strip("/")
            found += [_limit_of(folder) for folder in (place, *place.parents) if folder.is_relative_to(root)]
    return min((pair for pair in found if pair is not None), default=None)


def _limit_of(folder: Path) -> tuple[int, int] | None:
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            most, now = (int((folder / name).read_text()) for name in (limit, used))  # "max", no number: none is set
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        files = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        return most, most - now + files
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that there is no memory left."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextlib.contextmanager
def told(what: Callable[[], str]) -> Iterator[None]:
    """Within it, an error of lacking memory becomes OutOfMemory. what: how large the work was, made only then."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise out_of_memory(error, what()) from error


def lacking_memory(error: BaseException, folder: Path) -> OutOfMemory | None:
    """OutOfMemory for an error that nobody has told what it was about, in the run of a folder; None for any other."""
    if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
        return None
    return out_of_memory(error, f"`posttrain plan {folder}` shows what needs how much, and what to set.")


def out_of_memory(error: BaseException, what: str) -> OutOfMemory:
    """The error to raise. what: how large the work was and what to set, in sentences."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rpartition("] . ")[2]
    return OutOfMemory(f"not enough memory. {what} What was checkpointed is intact. (The system said: {reason})")


def amount(n: float) -> str:
    """Bytes for people: 345 MiB, 2.31 GiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(n) >= size:
            return f"{n / size:.3g} {unit}" if abs(n) < 1000 * size else f"{n / size:,.0f} {unit}"
    return f"{n:.0f} B"
