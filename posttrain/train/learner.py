"""The learner: a model, its optimizer, and the library's only `backward()`.

A loss returns terms: values per token, row or pair, *unaveraged*, each with the weight that averages it over the whole
optimizer step. The learner sums weight · value over terms, parts and micro-batches, clips the gradient and steps; since
the weights were made before the cut, any split gives the same gradient. Losses that couple rows (`Part.coupled`) get
a first pass over the whole step and are then exact as well.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from posttrain import dist
from posttrain.batch import Together, TokenBatch
from posttrain.errors import ConfigError, InvariantError, NonFiniteError
from posttrain.models.attention import pack, packed_attention
from posttrain.models.hf_format import copy_weights, hf_name, write_folder
from posttrain.models.lazy import Lazy
from posttrain.models.load import stored_weights
from posttrain.models.lora import adapter_of, movable_weights
from posttrain.models.peft_format import copy_adapter, write_adapter
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.tokens import logprobs_from_hidden, masked, predicting
from posttrain.train.invariants import Check, block_movement, check_weights_changed, fingerprint
from posttrain.train.machine import told
from posttrain.train.memory import first_piece, too_large
from posttrain.train.metrics import Metrics, add
from posttrain.train.processes import check_alike, load_whole_state, of_all, whole_state
from posttrain.train.schedule import Schedule
from posttrain.train.schedule import lr as scheduled


class Outputs(NamedTuple):
    """What the model says about a batch; every field is [N, T], 0 where unmasked."""

    logp: Tensor | None = None
    """Log-probability of each token the policy chose, at the row's temperature."""
    entropy: Tensor | None = None
    """Entropy in nats of the distribution it was drawn from, at the row's temperature."""
    sum_sq: Tensor | None = None
    """Sum of squared probabilities of that distribution."""
    values: Tensor | None = None
    """Scalar head at every real token."""


class Term(NamedTuple):
    """One summand of a loss: Σ weight · value."""

    name: str
    value: Tensor
    weight: Tensor


Loss = Callable[[Outputs, TokenBatch], tuple[list[Term], Metrics]]
Need = Literal["logp", "entropy", "sum_sq", "values"]


class Part(NamedTuple):
    """A batch with the loss to be taken on it; the gradients of all parts of a step add up."""

    batch: TokenBatch
    loss: Loss
    needs: tuple[Need, ...] = ("logp",)
    together: Together = "row"
    """What the loss needs side by side: "group" for pairs."""
    coupled: bool = False
    """Whether the value of one row depends on rows that may be in another micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW (Loshchilov and Hutter 2019) and its schedule."""

    lr: float = 1e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the running mean of gradients."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices, those of adapters among them."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm. 0: no clipping."""
    schedule: Schedule = Schedule()
    """Warm-up and decay."""
    micro_tokens: int | None = field(default=16384, metadata={"may_change": True})
    """Real tokens per micro-batch: bounds memory, does not change the gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the layers' matrix products, in training and in sampling: bfloat16 is up to twice as fast where the processor
    has it. So are the two of the head's backward pass; its log-probabilities, weights, sums, attention's softmax and
    AdamW stay float32."""
    recompute: bool = field(default=False, metadata={"may_change": True})
    """Gradient checkpointing: keep one state per token and layer, and compute the rest again in the backward pass. A
    quarter to a third slower; the same gradient."""

    def __post_init__(self):
        problems = []
        if not self.lr > 0:
            problems.append(f"optim.lr = {self.lr}: the learning rate must be positive (1e-5 to 1e-3 is usual)")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1:
            problems.append(f"optim.beta1, beta2 = {self.beta1}, {self.beta2}: both must lie in [0, 1)")
        if self.max_grad_norm < 0:
            problems.append(f"optim.max_grad_norm = {self.max_grad_norm}: must be positive, or 0 for no clipping")
        if self.micro_tokens is not None and self.micro_tokens < 1:
            problems.append(f"optim.micro_tokens = {self.micro_tokens}: a micro-batch holds at least one token")
        if problems:
            raise ConfigError("\n".join(problems))


class Learner:
    """Trains one model. `version` counts optimizer steps; `total` is how many the schedule expects."""

    def __init__(
        self,
        model: nn.Module,
        optim: Optim,
        total: int,
        *,
        tokenizer: Tokenizer | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        """tokenizer: written beside the weights. optimizer: instead of AdamW; the schedule scales its `initial_lr`s."""
        decoder = getattr(model, "decoder", model)  # of a scalar model
        decoder.products = torch.bfloat16 if optim.precision == "bfloat16" else None
        decoder.recompute = optim.recompute
        if dist.world() > 1:  # last: whole copies of a sharded model are as it is now
            from posttrain.scale.distributed import shard

            model = shard(model)
        self.model, self.optim, self.total, self.tokenizer, self.version = model, optim, total, tokenizer, 0
        self.first: Check | None = None
        """That the first step changed the weights; None before it, and in a resumed run."""
        matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
        others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
        if not matrices and not others:
            raise InvariantError("the model has no trainable parameter: every one has requires_grad = False")
        self.parameters = matrices + others
        groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = optimizer or torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def outputs(self, batch: TokenBatch, needs: tuple[Need, ...] = ("logp",)) -> Outputs:
        """What the model says about the batch now, without gradients, in micro-batches."""
        with told(lambda: too_large(batch, self.optim.micro_tokens, "row")):
            return outputs(self.model, batch, needs, self.optim.micro_tokens)

    def probe(self, batch: TokenBatch, needs: tuple[Need, ...] = ("logp",), together: Together = "row") -> None:
        """A forward and backward pass of the batch's largest micro-batch, of which nothing stays: does a step fit?

        Gradients and AdamW's moments are held meanwhile, as they will be in a later step. Raises OutOfMemory.
        """
        piece, n = first_piece(batch, self.optim.micro_tokens, together)
        try:
            with told(lambda: too_large(batch, self.optim.micro_tokens, together)):
                moments = [torch.ones_like(p) for p in self.parameters * 2 if p not in self.optimizer.state]
                for p in self.parameters * (n > 1):
                    p.grad = torch.ones_like(p)
                sum(x.sum() for x in forward(self.model, piece, needs) if x is not None).backward()
                del moments
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, *parts: Part) -> Metrics:
        """One optimizer step on the summed gradients of all parts. Returns metrics as (sum, count).

        Raises NonFiniteError before the weights are touched, InvariantError if the first step changes nothing, and
        OutOfMemory with the sizes.
        """
        with told(lambda: " ".join(too_large(p.batch, self.optim.micro_tokens, p.together) for p in parts)):
            return self._step(*parts)

    def _step(self, *parts: Part) -> Metrics:
        self.optimizer.zero_grad(set_to_none=True)
        metrics: Metrics = {}
        loss, broken = 0.0, None
        for part in parts:
            for rows, terms, found in self._losses(part):
                total = sum((w * v).sum() for _, v, w in terms)
                if not torch.isfinite(total):
                    broken = broken or self._what_broke(terms, part.batch, rows)
                if total.requires_grad:
                    total.backward()
                metrics = add(metrics, found)
                loss += float(total.detach())
                del terms, total  # else the graph, and what the head keeps, would outlive the next forward pass
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        metrics, loss, broken, norm = of_all(metrics, loss, broken, gradients)
        if broken:
            raise NonFiniteError(broken)
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"optimizer step {self.version}: the gradient norm is {float(norm)} although every loss is finite; "
                "a formula is evaluated where its slope is infinite. The weights were not changed."
            )
        if self.optim.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.optim.max_grad_norm, norm)
        factor = scheduled(self.version, self.optim.schedule, peak=1.0, steps=self.total)
        lr = factor * self.optim.lr
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        before = fingerprint(self._weights()) if self.version == 0 else None
        self.optimizer.step()
        if before is not None:
            self.first = check_weights_changed(before, fingerprint(self._weights()))
            if not self.first.ok:
                raise InvariantError(
                    f"the first step changed no weight (gradient norm {float(norm):.3g}, learning rate {lr:.3g}): "
                    f"the run would train nothing. {self.first.advice}"
                )
        self.version += 1
        return metrics | {"loss": (loss, 1.0), "grad_norm": (float(norm), 1.0), "lr": (lr, 1.0)}

    def drop_gradients(self) -> None:
        """Free the last step's gradients, where another model is trained before the next one."""
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, part: Part) -> Iterator[tuple[Tensor, list[Term], Metrics]]:
        """Rows and terms of each micro-batch, with their graph."""
        pieces = part.batch.pieces(self.optim.micro_tokens, part.together)
        check_alike(part.batch, len(pieces))
        if part.coupled and (len(pieces) > 1 or dist.world() > 1):
            yield from self._coupled(part, pieces)
            return
        if len(pieces) == 1 and dist.world() == 1:  # as it stands, without a copy in another order
            yield torch.arange(len(part.batch)), *part.loss(forward(self.model, part.batch, part.needs), part.batch)
            return
        for rows, counts in pieces:
            piece = part.batch.select(rows)
            terms, metrics = part.loss(forward(self.model, piece, part.needs), piece)
            yield (rows, terms, metrics) if counts else (rows, [Term(n, v, 0 * w) for n, v, w in terms], {})
            del terms

    def _coupled(self, part: Part, pieces: list[tuple[Tensor, bool]]) -> Iterator[tuple[Tensor, list[Term], Metrics]]:
        """Exact gradients of a loss over the whole step, with the graph of one micro-batch at a time.

        With g = ∂loss/∂out at fixed weights, ∂loss/∂θ = Σ g · ∂out/∂θ, and the sum splits over rows.
        """
        whole = outputs(self.model, part.batch, part.needs, self.optim.micro_tokens)
        leaves = Outputs(*(None if x is None else x.requires_grad_() for x in whole))
        terms, metrics = part.loss(leaves, part.batch)
        total = sum((w * v).sum() for _, v, w in terms)
        everything = torch.arange(len(part.batch))
        if not torch.isfinite(total):
            raise NonFiniteError(self._what_broke(terms, part.batch, everything))
        used = [x for x in leaves if x is not None]
        slopes = dict(zip(map(id, used), torch.autograd.grad(total, used, allow_unused=True), strict=True))
        if dist.rank() == 0:  # every process has computed the same
            yield everything, [Term(name, v.detach(), w) for name, v, w in terms], metrics
        for rows, counts in pieces:
            out = forward(self.model, part.batch.select(rows), part.needs)
            linear = [
                Term("", x - x.detach(), counts * slopes[id(leaf)][rows, : x.shape[1]])  # value 0, slope g
                for x, leaf in zip(out, leaves, strict=True)
                if x is not None and slopes[id(leaf)] is not None
            ]
            yield rows, linear, {}
            del out, linear

    def _what_broke(self, terms: list[Term], batch: TokenBatch, rows: Tensor) -> str:
        """The first term and row that is not finite, for the error message. rows: those of the micro-batch."""
        for name, value, weight in terms:
            value = value.detach()
            bad = ~torch.isfinite(weight * value)
            if not bad.any():
                continue
            place = bad.nonzero()[0].tolist()
            row = int(rows[place[0] * (len(rows) // len(value))])  # of a pair: its first row
            if isinstance(batch, TokenBatch):
                ids = batch.tokens[row][batch.attend[row]].tolist()
                text = str(ids[:40]) if self.tokenizer is None else f'"{self.tokenizer.decode(ids)[:200]}"'
            else:
                text = batch.words(row)
            return (
                f'optimizer step {self.version}: the term "{name}" is {float(value[tuple(place)])} at row {row}'
                + (f", token {place[1]}" if len(place) > 1 else "")
                + f" ({int(bad.sum())} of {bad.numel()} entries of its micro-batch are not finite). The row begins "
                f"{text}. The weights were not changed. Look at that row, or lower the learning rate."
            )
        return (
            f"optimizer step {self.version}: the summed loss is not finite although each term is. The weights were not "
            "changed. Lower the learning rate."
        )

    def moved_since(self, folder: Path) -> dict[str, float]:
        """By how much each block has moved from the weights in a folder, adapters merged: ‖now - then‖ / ‖then‖."""
        now = movable_weights(self.model)
        if dist.world() > 1:  # all bring their shards at the same time
            now = {name: dist.brought(w) for name, w in now.items()}
        named = Lazy({hf_name(name): partial(now.__getitem__, name) for name in now})
        return dist.first(lambda: block_movement(stored_weights(folder), named))

    def state(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on."""
        return {"optimizer": whole_state(self.optimizer), "version": self.version}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state()` was taken."""
        load_whole_state(self.optimizer, state["optimizer"])
        self.version = state["version"]

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, dist.whole(p)) for name, p in self.model.named_parameters())

    def save_model(self, folder: Path) -> None:
        """Write the weights, in full precision, as a Hugging Face model folder, with the tokenizer if there is one.

        Of a model with adapters only these, in PEFT's format.
        """
        write = write_folder if adapter_of(self.model) is None else write_adapter
        write(self.model, folder, tokenizer=self.tokenizer)

    def load_model(self, folder: Path) -> None:
        """Take the weights of a folder that `save_model` wrote."""
        copy = copy_weights if adapter_of(self.model) is None else copy_adapter
        copy(self.model, folder)


def forward(model: nn.Module, batch: TokenBatch, needs: tuple[Need, ...]) -> Outputs:
    """One packed forward pass over all rows; log-probabilities are computed only where the mask is true.

    It is computed where the model is; the outputs are where the batch is.

    A batch of another kind, such as the steps of a control task, says itself what a model makes of it.
    """
    if not isinstance(batch, TokenBatch):
        return Outputs(**batch.forward(model, needs))
    home, batch = batch.tokens.device, batch.to(next(model.parameters()).device)
    packing = pack(batch.attend, batch.tokens, batch.group)
    attention = packed_attention(packing)
    hidden = model.flat(batch.tokens[packing.own], packing.positions, attention)  # [M, D]
    n, t = batch.attend.shape
    found: dict[str, Tensor] = {}
    wanted = tuple(x for x in needs if x in ("entropy", "sum_sq"))
    if "logp" in needs or wanted:
        rows, before, at = predicting(batch.mask)
        stats = logprobs_from_hidden(
            hidden.index_select(0, packing.place[rows, before]),  # not hidden[...]: its backward adds in any order
            model.head_weight,
            batch.tokens[rows, at],
            temperature=batch.temperature[rows].to(hidden.dtype),
            needs=wanted,
            backward=model.products,
        )
        for name in ("logp", *wanted):
            found[name] = hidden.new_zeros(n, t).index_put((rows, at), getattr(stats, name))
    if "values" in needs:
        values = model.values(hidden).index_select(0, packing.place.flatten()).view(n, t)
        found["values"] = masked(values, batch.attend)
    return Outputs(**{name: x.to(home) for name, x in found.items()})


@torch.no_grad()
def outputs(model: nn.Module, batch: TokenBatch, needs: tuple[Need, ...], micro_tokens: int | None) -> Outputs:
    """`forward` of a whole batch in micro-batches, without gradients: for frozen references and first passes.

    Several processes take a share each; every one of them gets all rows.
    """
    n, t = batch.attend.shape
    found: dict[str, Tensor] = {}
    for rows, counts in batch.pieces(micro_tokens):
        out = forward(model, batch.select(rows), needs)
        for name, x in out._asdict().items():
            whole = None if x is None else found.setdefault(name, x.new_zeros(n, t))
            if x is not None and counts:
                whole[rows, : x.shape[1]] = x
    if dist.world() > 1:
        from posttrain.scale.distributed import release

        release(model)
    return Outputs(**{name: dist.all_sum(x) for name, x in found.items()})
