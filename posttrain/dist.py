"""Several processes that train as one: which one this is, and sums and lists over all of them.

torchrun starts them and `joined` connects them. Before that, and in a process of its own, there is one process: every
function here then returns what it was given, and torch's distributed package is not touched.

Each process holds the same rows, settings and draws, so what a loop decides it decides everywhere alike, without a
word. The learner cuts the rows of a step into shares (`TokenBatch.pieces`); what is sampled or graded is cut by
`spread`, and every process gets all of it. Files are written by the first process alone.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.errors import InvariantError, PosttrainError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others. Longer than one of them may sample, grade or write a checkpoint."""
MEET = timedelta(minutes=5)
"""How long a process waits for the others to come."""
LISTEN = timedelta(seconds=3)
"""How long a process that failed waits to hear whether the first one says the same."""
SETTLE = 0.1
"""Seconds that gloo's threads have, at the end, to let go of the last message's tensors. For that they need Python's
lock: a thread that asks for it when the interpreter is ending kills the process (SIGABRT), with its work done. They
live as long as the group, which DTensor's caches keep past `destroy_process_group`."""

_place = (0, 1)


def rank() -> int:
    """Which process this is, from 0; the first is the one that writes."""
    return _place[0]


def world() -> int:
    """How many processes work together here and now: 1 alone, before `joined`, and within `apart`."""
    return _place[1]


def local_world() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


@contextlib.contextmanager
def joined(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Within it, the processes that torchrun started are one; started in any other way, this one is alone.

    An error that ends all of them is said once, by the first; the others leave with its exit code. RunError in place of
    torch's error where another process is gone or has been silent for `timeout`.
    """
    global _place
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield
        return
    import torch.distributed as c10d

    store = _meet(timeout)
    try:
        yield
        c10d.destroy_process_group()
    except Exception as error:
        told = lost(error) or error
        if isinstance(told, PosttrainError) and _first_says(store, str(told)):
            raise SystemExit(told.exit_code) from None
        if told is not error:
            raise told from error
        raise
    finally:
        _place = (0, 1)
        time.sleep(SETTLE)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within it, this process is alone: what it does, the others need not do at the same time."""
    global _place
    before, _place = _place, (0, 1)
    try:
        yield
    finally:
        _place = before


def gather(item: T) -> list[T]:
    """The items of all processes, in their order."""
    if world() == 1:
        return [item]
    import torch.distributed as c10d

    found: list[Any] = [None] * world()
    c10d.all_gather_object(found, item)
    return found


def all_sum(x: "Tensor") -> "Tensor":
    """The sum of the processes' tensors, in place."""
    if world() > 1:
        import torch.distributed as c10d

        c10d.all_reduce(x)
    return x


def all_max(n: int) -> int:
    """The largest of the processes' whole numbers."""
    return _largest(n)[0]


def _largest(*numbers: int) -> list[int]:
    if world() == 1:
        return list(numbers)
    import torch
    import torch.distributed as c10d

    found = torch.tensor(numbers)
    c10d.all_reduce(found, op=c10d.ReduceOp.MAX)
    return found.tolist()


def agree(value: int, what: str) -> None:
    """Raise InvariantError, in all processes, unless they all hold this value: else they would wait for each other."""
    most, least = _largest(value, -value)
    if most != -least:
        raise InvariantError(
            f"the {world()} processes hold different {what}, so their gradients would not add up to one step's. "
            "Everything that a loop reads and draws must be the same in each: does a file, a reward or a function of "
            "your own depend on the process, the time, or an unseeded generator?"
        )


def spread(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """work(items), one result per item and in order, where each process works on its share alone.

    An error of ours in one of them is raised in all.
    """
    if world() == 1:
        return list(work(items))
    n, share = world(), items[rank() :: world()]
    try:
        with apart():
            mine = (work(share), None)
    except PosttrainError as error:
        mine = ([], error)
    found = gather(mine)
    for _, error in found:
        if error is not None:
            raise error
    return [found[i % n][0][i // n] for i in range(len(items))]


def first(work: Callable[[], R]) -> R:
    """What the first process makes of `work`, in all of them: for files, which only it touches."""
    if world() == 1:
        return work()
    import torch.distributed as c10d

    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = work()
        except PosttrainError as error:
            box[1] = error
    c10d.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def whole(x: "Tensor") -> "Tensor":
    """A sharded tensor put together, in every process; any other as it is."""
    return x.full_tensor() if world() > 1 and hasattr(x, "full_tensor") else x


def shard(x: "Tensor") -> "Tensor":
    """This process's share of a sharded tensor; any other as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def brought(x: "Tensor") -> "Tensor | None":
    """As `whole`, but only the first process keeps it, in main memory; None in the others. For what is written."""
    if world() == 1:
        return x
    full = whole(x.detach())
    return full.cpu() if rank() == 0 else None


def like(x: "Tensor", other: "Tensor") -> "Tensor":
    """This process's shard of a whole tensor, cut as `other` is; x itself where that is not sharded."""
    if world() == 1 or not hasattr(other, "full_tensor"):
        return x
    from torch.distributed.tensor import distribute_tensor

    x = x.to(other.device, other.dtype)
    return distribute_tensor(x, other.device_mesh, other.placements, src_data_rank=None)


def lost(error: BaseException) -> RunError | None:
    """The RunError to raise if `error` says that another process is gone or silent, else None."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "timed out",
             "Connection refused", "NCCL")  # fmt: skip
    if isinstance(error, PosttrainError) or not isinstance(error, RuntimeError) or not any(s in text for s in signs):
        return None
    reason = text.splitlines()[0].partition("] ")[2].partition(". ")[0] or text.splitlines()[0]
    return RunError(
        f"another process of this run has ended, or was silent for too long ({reason}). What it said stands above, or "
        "in torchrun's summary below; killed for lack of memory, it said nothing. What was checkpointed is intact: the "
        "same command continues."
    )


def _meet(timeout: timedelta) -> Any:
    """Connect the processes; returns the store of words that they share."""
    global _place
    import torch
    import torch.distributed as c10d

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, mine, all_ = next(c10d.rendezvous("env://", timeout=MEET))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        c10d.init_process_group(backend, store=store, rank=mine, world_size=all_, timeout=timeout)
    except c10d.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"the {os.environ['WORLD_SIZE']} processes of this run did not find each other at {place} "
            f"({str(error).splitlines()[0].rstrip('.')}). Start them with "
            "torchrun --standalone --nproc-per-node N on one machine; on several, give --rdzv-endpoint a host and port "
            "that all can reach. Alone, without torchrun, WORLD_SIZE must not be set."
        ) from error
    _place = (mine, all_)
    return store


def _first_says(store: Any, text: str) -> bool:
    """Whether the first process ends with the same words as this one, which is another."""
    try:
        if rank() == 0:
            store.set("posttrain/said", text)
            return False
        store.wait(["posttrain/said"], LISTEN)
        return store.get("posttrain/said").decode() == text
    except Exception:  # noqa: BLE001 - the store may have gone with the first process; then this one speaks as well
        return False
