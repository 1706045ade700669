"""What a learner shares with the same learner in other processes: what a step said, and the state of its optimizer.

Alone, every function returns what it was given.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain import dist
from posttrain.batch import TokenBatch
from posttrain.train.metrics import Metrics, add


def check_alike(batch: TokenBatch, pieces: int) -> None:
    """Raise InvariantError in all processes unless they hold the same step: a sum of different ones means nothing."""
    if dist.world() > 1:
        held = [*vars(batch).values(), *batch.weights.values()]
        bits = (x.detach().cpu().contiguous().view(torch.uint8).numpy() for x in held if isinstance(x, Tensor))
        dist.agree(functools.reduce(lambda seed, x: zlib.crc32(x, seed), bits, pieces), "rows in this step")


class Said(NamedTuple):
    """What a process has to say of its share of a step, once all gradients are there."""

    metrics: Metrics
    loss: float
    broken: str | None
    """What was not finite."""
    norm: Tensor
    """‖g‖ over its shards of the gradients."""


def of_all(metrics: Metrics, loss: float, broken: str | None, gradients: list[Tensor]) -> Said:
    """The same of the whole step, from one message; equal in each process."""
    norm = torch.nn.utils.get_total_norm([dist.shard(g) for g in gradients])
    mine = Said(metrics, loss, broken, norm)
    if dist.world() == 1:
        return mine
    plain = {name: (float(total), float(count)) for name, (total, count) in metrics.items()}
    found, losses, broke, norms = zip(*dist.gather((plain, loss, broken, float(norm))), strict=True)
    whole = torch.tensor(math.hypot(*norms), dtype=norm.dtype, device=norm.device)
    return Said(functools.reduce(add, found), sum(losses), next(filter(None, broke), None), whole)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state dict, with whole moments in the first process (None in the others): the same on any number of them."""
    state = optimizer.state_dict()
    if dist.world() > 1:
        state["state"] = {i: {k: dist.brought(x) for k, x in own.items()} for i, own in state["state"].items()}
    return state


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take back what `whole_state` gave, on as many processes or on another number of them."""
    optimizer.load_state_dict(state)
    for p, own in optimizer.state.items() if dist.world() > 1 else ():
        own.update({name: dist.like(x, p) for name, x in own.items() if x.shape == p.shape})
