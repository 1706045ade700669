"""Low-rank adapters (LoRA): train a few per cent of the values of a model, beside weights that stay as they are.

An adapted layer computes both products side by side; nothing is merged while a model trains or samples, so learner,
sampler and reference share one copy of the base. (Weights merged for each rollout would need a second copy of every
projection, and would sample 5 to 15 % faster in a model of 2 million parameters, 2 to 4 % in one of 27 million: rank
16, one core.) The reference is the model without its adapters: modules of its own over the same tensors, and no switch
that could be left in the wrong position. Files are in `peft_format.py`.

There is no dropout on the input of an adapter: its mask would depend on how a step is cut into micro-batches and on
what stands beside a row, while here neither may change a gradient, and the learner would no longer be the policy that
the sampler samples from.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain import dist, rng
from posttrain.errors import ConfigError, ModelError, nearest

HEADS = ("lm_head", "score")
"""Linear modules that never get an adapter: who computes logits or scores reads their weights, not their output."""
ALL = "all-linear"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters instead of training every weight; see `LoraLinear` for the formula."""

    rank: int = 0
    """Rank of the update of each projection; 8 to 64 is usual. 0: no adapters, every weight is trained."""
    alpha: float = 32.0
    """The update is multiplied by alpha / rank. Adapters want about ten times the learning rate of full training."""
    targets: tuple[str, ...] = (ALL,)
    """Which projections of the layers: "all-linear" (every one), or names such as q_proj,v_proj."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732): a high rank learns as fast."""

    def __post_init__(self):
        problems = []
        if self.rank < 0:
            problems.append(f"rank = {self.rank} cannot be negative; 0 trains every weight, 16 is a usual rank")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.append(f"alpha = {self.alpha}: the update is multiplied by alpha / rank, so it must be positive")
        if not self.targets:
            problems.append(f'targets is empty: no layer would be trained. Use "{ALL}", or names such as q_proj,v_proj')
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Adapter:
    """What an adapted model knows of its adapters: `model.adapter`."""

    lora: Lora
    base: str
    """Name or folder of the model to whose weights they belong."""


class LoraLinear(nn.Module):
    """A linear layer with a low-rank update beside it.

        y = W x + b + s · B A x        A [r, in],  B [out, r],  s = alpha / r

    Hu et al. 2021 (arXiv 2106.09685), eq. 3. W and b are the tensors of the layer that it takes the place of, under the
    same names. A begins uniform in ±1/√in (Kaiming's law with a = √5, as in PEFT), B at zero, so that training begins
    exactly at the base; in the first step only B has a gradient. Both are matrices: weight decay, where it is on, pulls
    them to zero, which pulls the model back to its base.
    """

    def __init__(self, linear: nn.Linear, lora: Lora, seed: int):
        super().__init__()
        self.weight, self.bias, self.scale = linear.weight, linear.bias, lora.scale
        a = torch.empty(lora.rank, linear.in_features)  # drawn in float32 on the CPU: equal on every device
        nn.init.kaiming_uniform_(a, math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        self.lora_A = nn.Parameter(a.to(self.weight))
        self.lora_B = nn.Parameter(self.weight.new_zeros(linear.out_features, lora.rank))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        low = F.linear(x, self.lora_A).view(-1, len(self.lora_A))
        y.view(-1, y.shape[-1]).addmm_(low, self.lora_B.t().to(y.dtype), alpha=self.scale)  # no second [M, out] is made
        return y

    def merged(self) -> Tensor:
        """W + s · B A, [out, in]: the weight of a plain layer that computes the same."""
        return updated(dist.whole(self.weight), dist.whole(self.lora_A), dist.whole(self.lora_B), self.scale)

    def plain(self) -> nn.Linear:
        """The layer without its update, over the same tensors."""
        linear = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


def updated(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s · B A, computed in float32 at least, in the type of W."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale).to(weight.dtype)


def add_adapters(model: nn.Module, lora: Lora, *, base: str, seed: int) -> nn.Module:
    """Freeze a model and put adapters on the targeted layers, in place; returns it. Rank 0: it is left as it is.

    base: name or folder under which the weights are found again, written beside the adapters. seed: of A.

    A scalar head stays trainable, as it has no pre-trained weights to fall back on. ConfigError for a target that names
    no linear layer, or the head.
    """
    if not lora.rank:
        return model
    if adapter_of(model) is not None:
        raise ModelError(
            "the model has adapters already. Load it by its folder, which merges them, and adapt that anew."
        )
    chosen = _chosen(model, lora)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("score."))
    for name in chosen:
        _replace(model, name, LoraLinear(model.get_submodule(name), lora, rng.fold(seed, "lora", name)))
    model.adapter = Adapter(lora, base)
    return model


def adapter_of(model: nn.Module) -> Adapter | None:
    """What the adapters of a model are; None where it has none."""
    return getattr(model, "adapter", None)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that have adapters, by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLinear))


def without_adapters(model: nn.Module) -> nn.Module:
    """The model as it is with its adapters off: modules of its own over the same tensors, so it costs no memory.

    It gives the base's results bit for bit, at the base's speed, whatever the adapters have become.
    """
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    bare = copy.deepcopy(model, shared)
    for name, layer in list(adapted(bare)):
        _replace(bare, name, layer.plain())
    bare.adapter = None
    return bare


def movable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training may move, by their names in a model without adapters, with the updates merged in."""
    found = {}
    layers = dict(adapted(model))
    for name, p in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if owner in layers:
            if last == "weight":
                found[name] = layers[owner].merged().detach()
        elif p.requires_grad or not layers:
            found[name] = p.detach()
    return found


def _chosen(model: nn.Module, lora: Lora) -> list[str]:
    """Names of the linear layers that are targeted."""
    names = [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.rpartition(".")[2] not in HEADS
    ]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    problems = []
    for target in lora.targets:
        if target != ALL and not any(_is_named(name, target) for name in names):
            why = "is the head" if target in HEADS else "names no linear layer of this model"
            problems.append(f'lora.targets: "{target}" {why}. {nearest(target, (ALL, *kinds))}')
    if problems:
        raise ConfigError("\n".join(problems))
    return [name for name in names if ALL in lora.targets or any(_is_named(name, t) for t in lora.targets)]


def _is_named(name: str, target: str) -> bool:
    """Whether a target means this module: its last part or parts, as PEFT counts them."""
    return name == target or name.endswith(f".{target}")


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
