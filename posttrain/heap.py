"""What the C library does with memory that was freed: keeps it for the next step, or gives it back to the system."""

import contextlib
import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed() -> None:
    """Let the C library keep the memory that a step has freed for the next one.

    glibc returns the end of its heap after every backward pass, and the probabilities of every token that is drawn, and
    has it cleared page by page in the next: 7 % of the time of a training step on a model of 2.8 M parameters. Peaks
    stay as they were: blocks above 32 MiB, the most that glibc itself comes to, are returned as before. Left alone are
    other C libraries, and who has set glibc's variables.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    _call("mallopt", _MMAP_THRESHOLD, 32 << 20)
    _call("mallopt", _TRIM_THRESHOLD, -1)


def give_back() -> None:
    """Return what is kept and not used to the system, before somebody asks how much is free."""
    _call("malloc_trim", 0)


def _call(name: str, *values: int) -> None:
    """Call a function of glibc on its allocator, where this is glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none that can be asked
        getattr(ctypes.CDLL(None), name)(*values)
