"""Low-rank adapters (LoRA): train a few per cent of the values of a model, beside weights that stay as they are.

While a model trains, an adapted layer computes both products side by side, so that learner and reference share one copy
of the base. The reference is the model without its adapters: modules of its own over the same tensors, and no switch
that could be left in the wrong position. (Decoding with merged weights is 5 to 20 % faster in a model of 2 million
parameters and 2 to 13 % in one of 27 million, rank 16 on one core.) Files are in `peft_format.py`.

A frozen embedding has a trap: tokens that pre-training never saw, such as a chat template's marks, have equal rows, and
no adapter can tell them apart. Nothing would ever learn to write the one that ends a turn. Their rows are trained too.

There is no dropout on the input of an adapter: its mask would depend on how a step is cut into micro-batches and on
what stands beside a row, while here neither may change a gradient, and the learner would no longer be the policy that
the sampler samples from.
"""

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain import dist, rng
from posttrain.errors import ConfigError, ModelError, nearest
from posttrain.models.lazy import Lazy
from posttrain.products import Linear, linear

HEADS = ("lm_head", "score")
"""Linear modules that never get an adapter: who computes logits or scores reads their weights, not their output."""
TABLES = ("embed_tokens", "lm_head")
"""Modules with a row per token."""
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
    tokens: Literal["unseen", "none"] = "unseen"
    """Whose rows of embedding and head are trained too. unseen: special tokens that the model cannot tell apart."""

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

    def __init__(self, layer: nn.Linear, lora: Lora, seed: int):
        super().__init__()
        self.weight, self.bias, self.scale = layer.weight, layer.bias, lora.scale
        a = torch.empty(lora.rank, layer.in_features)  # drawn in float32 on the CPU: equal on every device
        nn.init.kaiming_uniform_(a, math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        self.lora_A = nn.Parameter(a.to(self.weight))
        self.lora_B = nn.Parameter(self.weight.new_zeros(layer.out_features, lora.rank))

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight, self.bias)
        low = linear(x, self.lora_A).view(-1, len(self.lora_A))
        y.view(-1, y.shape[-1]).addmm_(low, self.lora_B.t().to(y.dtype), alpha=self.scale)  # no second [M, out] is made
        return y

    def merged(self) -> Tensor:
        """W + s · B A, [out, in]: the weight of a plain layer that computes the same."""
        return updated(dist.whole(self.weight), dist.whole(self.lora_A), dist.whole(self.lora_B), self.scale)

    def plain(self) -> nn.Linear:
        """The layer without its update, over the same tensors."""
        layer = Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer


class TokenRows(nn.Module):
    """An embedding or head of which the rows of a few tokens are trained, beside a matrix that stays as it is.

    tokens: [n, D], the rows of the tokens `ids` [n]; they begin as they are in the matrix.
    """

    def __init__(self, table: nn.Embedding | nn.Linear, ids: Collection[int]):
        super().__init__()
        self.frozen = table.weight
        self.kind = type(table)
        self.register_buffer("ids", torch.tensor(sorted(ids), device=table.weight.device), persistent=False)
        self.tokens = nn.Parameter(table.weight.detach()[self.ids].clone())

    @property
    def weight(self) -> Tensor:
        """[V, D], with the trained rows in their places; made anew at each call."""
        return torch.index_copy(dist.whole(self.frozen), 0, self.ids, dist.whole(self.tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows of the tokens, [..., D], without the whole matrix."""
        hit = tokens[..., None] == self.ids
        return torch.where(hit.any(-1, keepdim=True), hit.to(self.tokens.dtype) @ self.tokens, self.frozen[tokens])

    def plain(self) -> nn.Embedding | nn.Linear:
        """The module without the trained rows, over the same tensor."""
        count, width = self.frozen.shape
        shape = {nn.Embedding: (count, width), nn.Linear: (width, count, False)}[self.kind]
        table = self.kind(*shape, device="meta")
        table.weight = self.frozen
        return table


def updated(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s · B A, computed in float32 at least, in the type of W."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale).to(weight.dtype)


def add_adapters(model: nn.Module, lora: Lora, *, base: str, seed: int, marks: Collection[int] = ()) -> nn.Module:
    """Freeze a model and put adapters on the targeted layers, in place; returns it. Rank 0: it is left as it is.

    base: name or folder under which the weights are found again, written beside the adapters. seed: of A.
    marks: ids of special tokens, whose rows are trained where the model cannot tell them apart (`lora.tokens`).

    A scalar head stays trainable, as it has no pre-trained weights to fall back on. ConfigError for a target that names
    no linear layer, or the head.
    """
    if not lora.rank:
        return model
    if adapter_of(model) is not None:
        raise ModelError("the model has adapters already. Load it by its folder, which merges them; then add new ones.")
    chosen = _chosen(model, lora)
    tables = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in TABLES]
    unseen = {i for name in tables for i in alike(model.get_submodule(name).weight, marks)}
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("score."))
    for name in chosen:
        _replace(model, name, LoraLinear(model.get_submodule(name), lora, rng.fold(seed, "lora", name)))
    for name in tables if unseen and lora.tokens == "unseen" else ():
        _replace(model, name, TokenRows(model.get_submodule(name), unseen))
    model.adapter = Adapter(lora, base)
    return model


def alike(weight: Tensor, ids: Collection[int]) -> list[int]:
    """Those of the tokens `ids` whose row in an embedding or head [V, D] is zero, or another's of them to a thousandth.

    So rows look that no training has ever touched: tokens that were added, or reserved for later. Of a matrix without
    values (on the device "meta") nothing is known: none.
    """
    if not ids or weight.is_meta:
        return []
    rows = weight.detach()[sorted(ids)].float()
    gaps = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    size = rows.norm(dim=1)
    near = (gaps <= 1e-3 * size[:, None]).any(1) | (size == 0)
    return [i for i, found in zip(sorted(ids), near.tolist(), strict=True) if found]


def adapter_of(model: nn.Module) -> Adapter | None:
    """What the adapters of a model are; None where it has none."""
    return getattr(model, "adapter", None)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that have adapters, by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLinear))


def trained_rows(model: nn.Module) -> Iterator[tuple[str, TokenRows]]:
    """The embedding and head, by name, where rows of theirs are trained beside the adapters."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, TokenRows))


def without_adapters(model: nn.Module) -> nn.Module:
    """The model as it is with its adapters off: modules of its own over the same tensors, so it costs no memory.

    It gives the base's results bit for bit, at the base's speed, whatever the adapters have become.
    """
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    bare = copy.deepcopy(model, shared)
    for name, module in [*adapted(bare), *trained_rows(bare)]:
        _replace(bare, name, module.plain())
    bare.adapter = None
    return bare


def movable_weights(model: nn.Module) -> Mapping[str, Tensor]:
    """The weights that training may move, by their names in a model without adapters, with the updates merged in.

    They are merged one by one, as they are asked for: a second copy of a model might not fit.
    """
    if adapter_of(model) is None:
        return Lazy({name: p.detach for name, p in model.named_parameters()})
    found = {f"{name}.weight": lambda layer=layer: layer.merged().detach() for name, layer in adapted(model)}
    found |= {f"{name}.weight": lambda rows=rows: rows.weight.detach() for name, rows in trained_rows(model)}
    return Lazy(found | {name: p.detach for name, p in model.named_parameters() if name.startswith("score.")})


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
