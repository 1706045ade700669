"""Messages of FSDP2 between processes of one machine, through memory that all of them see.

gloo sends them through a socket: the kernel copies every byte twice, on cores that have a model to compute. Here each
process writes what it has where the others read it, and the message itself is a barrier. A step of two processes on a
model of 2.8 million weights sends 11 MB twice: 15 ms by gloo, 2 ms so, of 150.

The memory is a file without a name (`memfd_create`), so nothing is left of it when the processes end, in any way.
"""

import os
import uuid
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor

from posttrain import dist
from posttrain.errors import RunError


class Shared:
    """Memory that every process sees. It grows with what is asked of it; all processes ask for the same, together."""

    def __init__(self, first: Tensor):
        self._bytes = first

    def take(self, size: int) -> Tensor:
        """So many bytes [size], once every process has read what they held before."""
        c10d.barrier()
        if size > len(self._bytes):
            larger = _mapped(size)
            if larger is None:
                raise RunError(f"the system does not give the {dist.world()} processes {size} bytes to share")
            self._bytes = larger
        return self._bytes[:size]


def shared() -> Shared | None:
    """Memory of all processes, or None where they are on several machines or the system does not let them share."""
    first = _mapped(64) if dist.local_world() == dist.world() else None
    return None if first is None else Shared(first)


class AllGather:
    """All shares in every process: each writes its own into the shared result.

    FSDP2 puts this process's share into what `allocate` returns, and copies out of it when it has been called.
    """

    def __init__(self, memory: Shared):
        self._memory = memory

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The result, [all shares]."""
        return self._memory.take(size[0] * dtype.itemsize).view(dtype)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        """Wait until every process has written its share."""
        c10d.barrier()


class ReduceScatter:
    """The sum of all processes' gradients, of which each takes its share: it adds up what the others have written."""

    def __init__(self, memory: Shared):
        self._memory = memory

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory of this process alone: FSDP2 keeps the sums as gradients."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """output [n] = Σ over processes of their input [world · n] at this one's place."""
        everyone = self._memory.take(dist.world() * input_tensor.nbytes).view(input_tensor.dtype)
        everyone = everyone.view(dist.world(), -1)
        everyone[dist.rank()] = input_tensor
        c10d.barrier()
        mine = everyone.view(dist.world(), dist.world(), -1)[:, dist.rank()]
        torch.sum(mine, 0, out=output_tensor)


def _mapped(size: int) -> Tensor | None:
    """New shared memory, [size] bytes, which the first process makes and all map; None unless all can."""
    mine = -1

    def make() -> tuple[str, str]:
        nonlocal mine
        name = f"posttrain-{uuid.uuid4().hex}"
        try:
            mine = os.memfd_create(name)
            os.truncate(mine, size)
        except (AttributeError, OSError):  # not Linux, or forbidden
            name = ""
        return name, f"/proc/{os.getpid()}/fd/{mine}"

    name, path = dist.first(make)
    try:
        # the name tells it from a file that is found there where processes are numbered anew, as in containers
        found = torch.from_file(path, True, size, dtype=torch.uint8) if name and name in os.readlink(path) else None
    except (OSError, RuntimeError):  # no /proc, or no right to another's files
        found = None
    missing = dist.all_max(found is None)  # from here on nobody needs the path
    if mine >= 0:
        os.close(mine)
    return None if missing else found
