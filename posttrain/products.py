"""Matrix products on a CPU: in float32 by the faster of the two libraries that torch brings, and in few sizes.

torch asks MKL for them. On AMD's processors MKL uses half of the width at which Zen 5 computes; oneDNN uses all of it,
and takes half the time. torch hands it a float32 product where bfloat16 is allowed inside of one, which oneDNN makes
use of only on processors with matrix tiles (AMX). So it is allowed where there are none, where a product has shown that
nothing is rounded, and only for the time of a product that is large enough: attention's many small ones are faster in
MKL. Everywhere else these are `torch.mm` and `F.linear`.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEWEST = 16
"""oneDNN takes some 15 µs to begin: what has a side below half of this is MKL's, and so are the last rows."""
_STEP = 8
"""Rows of products of up to 128 are a multiple of this."""


def mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a @ b for [M, K] and [K, N] of any type, to that type's rounding. No gradient.

    out: [M, N] to write into, of that type or a wider one. Without it the result may be a view of a larger one.
    """
    if out is not None and out.dtype != a.dtype:
        return out.copy_(mm(a, b))
    if not _for_onednn(a, b):
        return torch.mm(a, b, out=out)
    rows = len(a)
    if _is_one_block(rows):
        return by_onednn(torch.mm, a, b, out=out)
    if out is None and rows <= 128:  # decoding: a second product would read the weights again
        return by_onednn(torch.mm, torch.cat((a, a.new_zeros(-rows % _STEP, a.shape[1]))), b)[:rows]
    out = a.new_empty(rows, b.shape[1]) if out is None else out
    _in_blocks(rows, lambda part: torch.mm(a[part], b, out=out[part]))
    return out


def add_mm(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a @ b, in place, for [M, N], [M, K] and [K, N], without a second [M, N]. No gradient.

    total: of the others' type or a wider one.
    """
    if total.dtype != a.dtype:
        return total.add_(mm(a, b))
    if not _for_onednn(a, b):
        return total.addmm_(a, b)
    if _is_one_block(len(a)):
        return by_onednn(total.addmm_, a, b)
    if len(a) <= 128:
        return total.add_(mm(a, b))
    _in_blocks(len(a), lambda rows: total[rows].addmm_(a[rows], b))
    return total


def mm_over_rows(a: Tensor, b: Tensor, *, total: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """aᵀ @ b [A, B] for [M, A] and [M, B]: a weight's gradient. No gradient of its own.

    total: what it is added to, in place, of their type or a wider one, so that many may add up. dtype: of the result
    where there is no total; default: theirs.
    """
    fresh = total is None
    if fresh:
        total = a.new_empty(a.shape[1], b.shape[1], dtype=dtype or a.dtype)

    def add(rows: slice) -> Tensor:
        first, last = a[rows].t(), b[rows]
        if total.dtype == a.dtype:
            return total.addmm_(first, last, beta=int(rows.start > 0 or not fresh))  # 0: what is there is not read
        product = torch.mm(first, last)
        return total.copy_(product) if fresh and rows.start == 0 else total.add_(product)

    if _for_onednn(a, b):
        _in_blocks(len(a), add)
        return total
    return add(slice(0, len(a)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x [..., in], W [out, in], b [out], as `F.linear`, in both directions. Differentiable once."""
    mixed = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if mixed else x.dtype
    if x.device.type != "cpu" or not _by_onednn(dtype) or not (mixed or weight.dtype == dtype):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]).to(dtype), weight, bias).view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """torch's linear layer, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]. Returns [..., out]."""
        return linear(x, self.weight, self.bias)


def library() -> str:
    """Whose float32 products are taken on this machine's CPU: "oneDNN", or torch's own choice, "MKL" or "BLAS"."""
    if _usual() is not None:
        return "oneDNN"
    return "MKL" if torch.backends.mkl.is_available() else "BLAS"


def by_onednn(product: Callable[..., Tensor], *given: Tensor, **more) -> Tensor:
    """A product of torch's, by oneDNN if it is float32 and there is reason to."""
    if _usual() is None:
        return product(*given, **more)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        return product(*given, **more)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = _usual()


def _in_blocks(rows: int, product: Callable[[slice], Tensor]) -> None:
    """The product of all rows, from few sizes of it.

    oneDNN makes code for every shape and never forgets it, a third of a MiB each: 30 steps of DPO with rows of other
    lengths took 600 MiB. So it is given few numbers of rows, and MKL (in bfloat16 oneDNN again) the last ones.
    """
    *blocks, rest = _blocks(rows)
    for block in blocks:
        by_onednn(product, block)
    if rest.start < rest.stop:
        product(rest)


@functools.cache
def _is_one_block(rows: int) -> bool:
    return rows % _STEP == 0 if rows <= 128 else _blocks(rows)[0].stop == rows


@functools.cache
def _blocks(rows: int) -> tuple[slice, ...]:
    """Slices of 1, 2 or 3 times 4^k rows, from 16 on; up to 128 rows in one. The last, maybe empty, is what is left.

    2000 = 1024 + 3 * 256 + 3 * 64 + 16.
    """
    found, start = [], 0
    for size in [_STEP] if rows <= 128 else [4**k for k in range(rows.bit_length() // 2, 1, -1)]:
        if many := (rows - start) // size * size:
            found.append(slice(start, start + many))
            start += many
    return (*found, slice(start, rows))


class _Linear(torch.autograd.Function):
    """Weight and bias may be wider than x: they are rounded for the product, and their gradients are not."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.wide, weight = weight.dtype, weight.to(x.dtype)
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        y = mm(x, weight.t(), out=x.new_empty(len(x), len(weight)))  # not a view, which none may write to
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            mm(grad, weight) if needs_x else None,
            mm_over_rows(grad, x, dtype=ctx.wide) if needs_weight else None,
            grad.sum(0, dtype=ctx.wide) if needs_bias else None,
        )


def _for_onednn(a: Tensor, b: Tensor) -> bool:
    if len(a) < _FEWEST or a.device.type != "cpu" or not _by_onednn(a.dtype):
        return False
    return 2 * min(*a.shape, *b.shape) >= _FEWEST


def _by_onednn(dtype: torch.dtype) -> bool:
    """Whether products of this type are oneDNN's on this machine."""
    return _usual() is not None if dtype == torch.float32 else dtype == torch.bfloat16 and _bfloat16()


@functools.cache
def _bfloat16() -> bool:
    """Whether torch gives oneDNN products in bfloat16 on this processor."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and supported()


@functools.cache
def _usual() -> str | None:
    """torch's setting to return to after a product of oneDNN's; None where they are not to be had, or no faster."""
    found = getattr(torch.cpu, "get_capabilities", dict)()
    zen5 = found.get("cpu_name", "").startswith("AMD") and found.get("avx512_vp2intersect", False)
    if not zen5 or any(there for name, there in found.items() if name.startswith("amx")):
        return None
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    usual = getattr(setting, "fp32_precision", None)
    if usual not in ("none", "ieee"):
        return None  # a torch before 2.9, or somebody has decided
    fine = torch.full((32, 32), 1 + 2.0**-12)  # which bfloat16 rounds to 1
    setting.fp32_precision = "bf16"
    try:
        exact = torch.equal(torch.mm(fine, torch.eye(32)), fine)
    finally:
        setting.fp32_precision = usual
    return usual if exact else None
