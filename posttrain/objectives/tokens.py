"""Log-probabilities of tokens, and the one shift.

Logits at position t-1 predict token t. Only this file knows it: every other array of the library is as long as the
tokens, entry t is about token t, and entry 0 (which nothing predicts) is masked out. Section 02 of the book tells the
story. Two ways lead to the same numbers: `token_logprobs` from whole logits, for tests, tables and models whose head is
not a plain matrix; `logprobs_from_hidden` from the last hidden states, chunk by chunk and only at chosen positions,
which is what training uses. No mask is applied to a loss here and nothing is averaged.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError, ShapeError
from posttrain.products import mm, mm_over_rows

_NEEDS = ("entropy", "sum_sq", "mean_logp", "mean_logit", "top1")
_KEEP_BYTES = 64 * 2**20
"""How much of the exponentials the forward may keep for the backward. Past this bound the backward recomputes them, so
memory does not grow with the batch."""


def check_shapes(pattern: str, *tensors: Tensor) -> None:
    """Raise ShapeError unless the tensors have the shapes of the pattern, one letter per dimension.

        "NT" asks for shape[0] = N and shape[1] = T, the same N and T in every tensor

    pattern: one word for all tensors (`"NT"`), or one word each (`"NTV NT N"`). A letter means the same size wherever
        it stands; the tensor a word describes must have as many dimensions as the word has letters.
    tensors: of any shape [...]. Returns nothing.

    Every formula begins with it: [2, 3] beside [2, 4] is refused, where broadcasting of [2, 1] would go unnoticed.
    Section 02.
    """
    words = pattern.split()
    words = words * len(tensors) if len(words) == 1 else words
    if len(words) != len(tensors):
        raise ShapeError(f"the pattern {pattern!r} describes {len(words)} tensors, {len(tensors)} were given")
    sizes: dict[str, int] = {}
    for word, tensor in zip(words, tensors, strict=True):
        fits = tensor.dim() == len(word)
        if not fits or any(sizes.setdefault(d, n) != n for d, n in zip(word, tensor.shape, strict=True)):
            given = ", ".join(str(list(t.shape)) for t in tensors)
            raise ShapeError(
                f"expected shapes {' '.join(words)}, got {given}. A letter is one size everywhere; "
                "pass tensors that describe the same rows and positions."
            )


def detached(**metrics: Tensor) -> dict[str, Tensor]:
    """The metrics without their graph: what is watched must not be trained on.

        sg[x] = x, with ∂ sg[x] / ∂x = 0

    metrics: tensors of any shape [...], by name. Returns the same values by the same names, cut off from the graph.

    `detached(loss=x * x)["loss"]` equals x² and has no gradient. Section 02.
    """
    return {name: value.detach() for name, value in metrics.items()}


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, else exactly 0, whatever stood there (NaN and infinity too), also for the gradient.

        x_t where mask_t, else 0

    x: [...]. mask: boolean of a shape that broadcasts to x's. Returns x's shape.

    Not mask · x, in which 0 · NaN is NaN. Formulas apply it to what they read, so that an overflow in a place that does
    not count cannot come back through the gradient. Section 02.
    """
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def answers(logp: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and length of each answer.

        log π(y|x) = Σ_t mask_t · log π(y_t | x, y_<t)

    logp, mask: [N, T]. Returns the sum [N] in nats and the number of tokens under the mask [N] (in logp's dtype).

    Three tokens of probability 1/2 give (-3·log 2, 3). Section 02.
    """
    check_shapes("NT", logp, mask)
    return masked(logp, mask).sum(1), mask.sum(1).to(logp.dtype)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the softmax of the last dimension.

        H = -Σ_v p_v log p_v        p = softmax(z / τ)

    Shannon 1948.

    logits: [..., V]. temperature: τ, the one that was sampled with. Returns [...] in nats.

    Uniform logits give log V; p = (.5, .3, .2) gives 1.029653. Section 02.
    """
    logp = torch.log_softmax(logits / temperature, -1)
    p = logp.exp()
    return -(p * masked(logp, p > 0)).sum(-1)  # not entr(p): its slope at p = 0 is infinite


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: Tensor | None = None) -> Tensor:
    """log π(token t | tokens before t), for every token of every row.

        ℓ_t = z_{t-1, y_t} / τ - logsumexp_v(z_{t-1, v} / τ)

    logits: [N, T, V], any float dtype; the softmax runs in float32 at least.
    tokens: [N, T]. temperature: [N], or None for 1: the τ the row was sampled with.

    Returns [N, T] in nats. Entry 0 is 0 and means nothing: mask it out.

    All V logits equal gives -log V everywhere else. Section 02.
    """
    check_shapes("NTV NT", logits, tokens)
    z = logits[:, :-1].to(_wide(logits.dtype))
    if temperature is not None:
        check_shapes("NTV N", logits, temperature)
        z = z / temperature[:, None, None].to(z.dtype)
    logp = torch.log_softmax(z, -1).gather(2, tokens[:, 1:, None])[..., 0]
    return F.pad(logp, (1, 0))


def predicting(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the hidden states lie that predict the masked tokens.

        token (n, t) is predicted by the state at (n, t - 1)

    mask: [N, T], true at the tokens whose log-probability is wanted.

    Returns (rows, cols_of_hidden, cols_of_token), each [M]: `hidden[rows, cols_of_hidden]` is [M, D], the states that
    predict `tokens[rows, cols_of_token]`. Raises ShapeError if the first token of a row is wanted, because nothing
    predicts it.

    A mask true at tokens 1 and 3 of one row gives hidden columns 0 and 2. Section 02.
    """
    if bool(mask[:, 0].any()):
        bad = mask[:, 0].nonzero()[:, 0].tolist()
        raise ShapeError(f"mask[:, 0] is true in rows {bad[:8]}: nothing comes before the first token, so it has no "
                         "log-probability. Start the row with a prompt or BOS token and mask that out.")  # fmt: skip
    rows, cols = mask.nonzero(as_tuple=True)
    return rows, cols - 1, cols


def values_before(values: Tensor) -> Tensor:
    """A critic's output at every position, moved so that entry t is the value of the state in which token t was chosen.

        b_t = V(s_t) = values_{t-1}

    values: [N, T], entry t made after reading token t. Returns [N, T]; entry 0 is 0 and means nothing.

    Without this move the baseline would already have seen the action, and the gradient would be biased. (1, 2, 3)
    becomes (0, 1, 2). Section 12.
    """
    check_shapes("NT", values)
    return F.pad(values[:, :-1], (1, 0))


def logits_before(logits: Tensor) -> Tensor:
    """A model's logits at every position, moved so that entry t is the distribution from which token t was drawn.

        z_t ← z_{t-1}

    logits: [N, T, V], entry t made after reading token t. Returns [N, T, V]; entry 0 is 0 (uniform) and means nothing.
    Divergences between whole distributions (`kl`, `distill`) read logits in this order, beside a mask over tokens.

    `torch.log_softmax(logits_before(z), -1)` gathered at the tokens is `token_logprobs(z, tokens)`. Section 02.
    """
    check_shapes("NTV", logits)
    return F.pad(logits[:, :-1], (0, 0, 1, 0))


class TokenStats(NamedTuple):
    """What `logprobs_from_hidden` returns, each [M]."""

    logp: Tensor
    """log π(target), of the softmax at the row's temperature."""
    entropy: Tensor | None
    """-Σ_v p_v log p_v in nats, of the same distribution. Differentiable. None unless asked for."""
    sum_sq: Tensor | None
    """Σ_v p_v². No gradient. None unless asked for."""
    mean_logp: Tensor | None = None
    """(1/V) Σ_v log p_v, for label smoothing. Differentiable. None unless asked for."""
    mean_logit: Tensor | None = None
    """(1/V) Σ_v z_v, of the logits divided by the temperature: a head that drifts. No gradient. None unless asked."""
    top1: Tensor | None = None
    """Boolean: the target is what greedy decoding would choose. None unless asked for."""

    @property
    def log_sum_sq(self) -> Tensor:
        """log Σ_v p_v²: minus the collision entropy, which WPO subtracts from logp. Ask for "sum_sq"."""
        return self.sum_sq.log()


def logprobs_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    chunk: int = 1024,
    needs: tuple[str, ...] = (),
    backward: torch.dtype | None = None,
) -> TokenStats:
    """Log-probabilities straight from hidden states and the output matrix, without ever holding all the logits.

        z_i = W h_i / τ_i        ℓ_i = z_{i, y_i} - logsumexp(z_i)

    hidden: [M, D], row i is already the state that predicts targets[i] (see `predicting`).
    weight: [V, D], the output matrix. targets: [M] token ids.
    temperature: [M] or a number > 0, what the row was sampled with; no gradient flows to it.
    chunk: rows whose logits exist at one time; one matrix of chunk · V numbers is alive at the peak, or three for the
        entropy, plus at most 64 MiB kept for the backward.
    needs: which further statistics to make, among "entropy", "sum_sq", "mean_logp", "mean_logit" and "top1".
    backward: type of the two products of the backward, such as torch.bfloat16; default: that of the forward.

    Returns TokenStats, logarithms in nats. Works in float64 if hidden is, else in float32 (bfloat16 log-softmax loses
    the digits on which importance ratios stand). Differentiable once, in hidden and weight. ConfigError for a statistic
    that does not exist, or a temperature of 0.

    A zero weight matrix gives logp = -log V, entropy log V and sum_sq 1/V for every row. Section 02.
    """
    check_shapes("MD VD M", hidden, weight, targets)
    if unknown := [n for n in needs if n not in _NEEDS]:
        raise ConfigError(f"needs = {unknown}: logprobs_from_hidden can make {', '.join(_NEEDS)}.")
    wide = _wide(hidden.dtype)
    hidden = hidden.to(wide)
    if isinstance(temperature, Tensor):
        check_shapes("MD M", hidden, temperature)
        hidden = hidden / temperature.detach()[:, None].to(wide)  # the same logits as dividing them, V/D times cheaper
    elif temperature <= 0:
        raise ConfigError(f"temperature = {temperature}: greedy sampling has no log-probabilities of its own; use 1.0.")
    elif temperature != 1:
        hidden = hidden / temperature
    keep = torch.is_grad_enabled()
    return TokenStats(*_ChunkedHead.apply(hidden, weight.to(wide), targets, chunk, needs, keep, backward or wide))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedHead(torch.autograd.Function):
    """The matrix product, log-sum-exp and gather of `logprobs_from_hidden`, with a hand-written backward.

    With p = softmax(z):  ∂ℓ/∂z = onehot(y) - p,   ∂H/∂z = -p·(log p + H)   and   ∂ mean(log p)/∂z = 1/V - p.
    Recomputing e^z in the backward made forward and backward together a third slower than keeping it (10,000 rows,
    V = 1024, D = 128, one core: 147 ms against 107 ms; plain autograd takes 177 ms), so it is kept while there is room.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk, needs, keep, products):
        rows = hidden.shape[0]
        logp, lse = hidden.new_empty(rows), hidden.new_empty(rows)
        ent, sum_sq, mean, mean_logit = (hidden.new_empty(rows) if n in needs else None for n in _NEEDS[:4])
        top1 = hidden.new_empty(rows, dtype=torch.bool) if "top1" in needs else None
        kept: list[Tensor] = []
        room = _KEEP_BYTES * keep
        for n, i in enumerate(range(0, rows, chunk)):
            part = slice(i, i + chunk)
            z = mm(hidden[part], weight.t())
            top = z.amax(1, keepdim=True)
            z.sub_(top)
            target = z.gather(1, targets[part, None])[:, 0]
            if mean is not None:
                mean[part] = z.mean(1)
            if mean_logit is not None:
                mean_logit[part] = z.mean(1) + top[:, 0]
            if top1 is not None:
                top1[part] = target == 0
            e = torch.exp(z) if ent is not None else z.exp_()
            total = e.sum(1)
            log_total = total.log()
            logp[part] = target - log_total
            lse[part] = log_total + top[:, 0]
            if ent is not None:
                ent[part] = log_total - torch.linalg.vecdot(e, z) / total
            if mean is not None:
                mean[part] -= log_total
            if sum_sq is not None:
                sum_sq[part] = torch.linalg.vecdot(e, e) / total**2
            size = e.numel() * e.element_size()
            if len(kept) == 2 * n and size <= room:  # the first ones, so that the backward finds them by position
                room -= size
                kept += e, total
            del z, e  # before the next chunk asks for its memory
        ctx.chunk, ctx.products = chunk, products
        ctx.save_for_backward(hidden, weight, targets, lse, ent, *kept)  # freed before the layers walk back
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in (sum_sq, mean_logit, top1) if x is not None))
        return logp, ent, sum_sq, mean, mean_logit, top1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logp, grad_ent, _sum_sq, grad_mean, _mean_logit, _top1):
        hidden, weight, targets, lse, ent, *kept = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        if grad_logp is None and grad_ent is None and grad_mean is None:
            return grad_hidden, grad_weight, *[None] * 5
        other = weight.to(ctx.products) if needs_hidden else None
        for n, i in enumerate(range(0, hidden.shape[0], ctx.chunk)):
            part = slice(i, i + ctx.chunk)
            if 2 * n < len(kept):
                e, total = kept[2 * n : 2 * n + 2]
            else:
                e, total = mm(hidden[part], weight.t()).sub_(lse[part, None]).exp_(), None
            scale = torch.zeros_like(lse[part]) if grad_logp is None else -grad_logp[part]
            if grad_mean is not None:
                scale = scale - grad_mean[part]
            if grad_ent is None:
                dz = e.mul_(scale[:, None]) if total is None else e * (scale / total)[:, None]
            else:
                p = e if total is None else e / total[:, None]
                g = grad_ent[part]
                dz = torch.special.entr(p).mul_(g[:, None])
                dz += p.mul_((scale - g * ent[part])[:, None])
                del p
            if grad_mean is not None:
                dz += (grad_mean[part] / dz.shape[1])[:, None]
            if grad_logp is not None:
                dz.scatter_add_(1, targets[part, None], grad_logp[part, None])
            dz = dz.to(ctx.products)
            if needs_hidden:
                mm(dz, other, out=grad_hidden[part])
            if needs_weight:
                mm_over_rows(dz, hidden[part].to(ctx.products), total=grad_weight)
            del e, dz
        return grad_hidden, grad_weight, *[None] * 5
