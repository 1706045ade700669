"""A model cut over the processes of a run by FSDP2 (Zhao et al. 2023, arXiv 2304.11277), and put together again.

Each process keeps a share of every weight, gradient and moment. A layer's weights are gathered when it computes, and
freed after. Those outside the layers (embedding, last norm, head) stay gathered from the forward pass to the end of the
backward, because the learner takes logits from the head itself. On a CPU, where a message costs more than it saves,
all do: they are gathered by one message and their gradients summed by another, through memory that the processes share
where they are on one machine. Gradients are summed, not averaged: the losses are already weighted sums over the rows of
all processes.

Sampling wants all weights in every process, token after token, so it gets a copy of its own, renewed after each step;
so does a frozen reference. Two further copies fit wherever a process can hold the model whole; an engine on processors
of its own lifts that limit.
"""

import copy
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from posttrain import dist
from posttrain.scale.shared import AllGather, ReduceScatter, shared

_EMPTY: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""Of every sharded model its form without weights, from which whole copies are made."""


def shard(model: nn.Module) -> nn.Module:
    """Cut the model over all processes, in place; it still looks like a module. A sharded one is returned as it is.

    Every process must hold the same weights. Each layer of `layers` is gathered by itself, the rest together; on a CPU
    all together.
    """
    if is_sharded(model):
        return model
    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (dist.world(),))
    _EMPTY[model] = _copy(model, "meta")
    for layer in getattr(model, "decoder", model).layers if kind != "cpu" else ():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "flat")  # through which the learner calls it
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if kind == "cpu" and (memory := shared()):
        model.set_custom_all_gather(AllGather(memory))
        model.set_custom_reduce_scatter(ReduceScatter(memory))
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has cut it."""
    return isinstance(model, FSDPModule)


def release(model: nn.Module) -> None:
    """Free what a forward pass without a backward has left gathered, which would hide the shards from an optimizer."""
    for part in model.modules():
        if is_sharded(part):
            part.reshard()


def whole_copy(model: nn.Module) -> nn.Module:
    """A plain frozen copy with all weights, in every process; a model that is not sharded is returned itself."""
    if not is_sharded(model):
        return model
    plain = _copy(_EMPTY[model], next(model.parameters()).device.type)
    refresh(plain, model)
    return plain.eval()


@torch.no_grad()
def refresh(plain: nn.Module, model: nn.Module) -> None:
    """Bring a whole copy to the weights that the sharded model has now. All processes call it together."""
    whole = dict(plain.named_parameters())
    for prefix, part in model.named_modules():
        if is_sharded(part):  # the root or a layer, whose weights are gathered in one message
            part.unshard()
            for name, weight in part.named_parameters(prefix):
                if not hasattr(weight, "full_tensor"):
                    whole[name].copy_(weight)
            part.reshard()


def _copy(model: nn.Module, device: str) -> nn.Module:
    """The same modules over frozen weights that are not filled in, on another device."""
    weights = {id(p): nn.Parameter(torch.empty_like(p, device=device), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, weights)
