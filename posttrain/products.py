"""Matrix products in float32 on a CPU, by the faster of the two libraries that torch brings.

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

_ENOUGH = 8
"""oneDNN takes some 15 µs to begin: a product with a shorter side than this is MKL's."""


def mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """a @ b for [M, K] and [K, N] of any type, to that type's rounding. No gradient.

    out: [M, N] to write into, of that type or a wider one.
    """
    if out is not None and out.dtype != a.dtype:
        return out.copy_(torch.mm(a, b))
    return _by_the_faster(torch.mm, a, b, out=out)


def add_mm(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a @ b, in place, for [M, N], [M, K] and [K, N]. No gradient.

    total: of the others' type, and then no second [M, N] is made; or of a wider one, so that many products may add up.
    """
    if total.dtype != a.dtype:
        return total.add_(torch.mm(a, b))
    return _by_the_faster(total.addmm_, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x [..., in], W [out, in], b [out], as `F.linear`, in both directions. Differentiable once."""
    if not _for_onednn(x) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


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


def _by_the_faster(product: Callable[..., Tensor], a: Tensor, b: Tensor, **more) -> Tensor:
    if not _for_onednn(a) or min(*a.shape, b.shape[1]) < _ENOUGH:
        return product(a, b, **more)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        return product(a, b, **more)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = _usual()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        y = mm(x, weight.t())
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            mm(grad, weight) if needs_x else None,
            mm(grad.t(), x) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _for_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and _usual() is not None


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
