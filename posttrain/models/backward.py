"""Backward passes of the decoder's parts, written by hand to keep less than autograd would.

What is cheap to make again from what is kept anyway (a norm's result, the inner product of an MLP) is made again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.products import mm, mm_over_rows


class Normalise(torch.autograd.Function):
    """RMSNorm that keeps its input and one number per row for the backward, where autograd would keep three copies."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        return *_unnormalise(grad, x * scale, weight, scale, ctx.needs_input_grad[1]), None


class NormalisedLinears(torch.autograd.Function):
    """W RMSNorm(x) + b for several W and b; what the norm makes of x is made again in the backward, not kept."""

    @staticmethod
    def forward(ctx, x, weight, eps, dtype, *matrices):
        ctx.wide = [None if w is None else w.dtype for w in matrices]
        scale = _scale(x, eps)
        normalised = (x * scale).mul_(weight).to(dtype)
        found, kept = [], []
        for w, bias in zip(matrices[::2], matrices[1::2], strict=True):
            w = w.to(dtype)
            y = mm(normalised, w.t(), out=normalised.new_empty(len(x), len(w)))
            found.append(y if bias is None else y.add_(bias))
            kept.append(w)
        ctx.save_for_backward(x, weight, scale, *kept)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        x, weight, scale, *matrices = ctx.saved_tensors
        needs_x, needs_norm, _, _, *needs = ctx.needs_input_grad
        unit = x * scale
        normalised = (unit * weight).to(grads[0].dtype) if any(needs[::2]) else None
        of_matrices: list[Tensor | None] = [None] * len(needs)
        for i, grad in enumerate(grads):
            if needs[2 * i]:
                of_matrices[2 * i] = mm_over_rows(grad, normalised, dtype=ctx.wide[2 * i])
            if needs[2 * i + 1]:
                of_matrices[2 * i + 1] = grad.sum(0, dtype=ctx.wide[2 * i + 1])
        del normalised
        of_x = of_norm = None
        if needs_x or needs_norm:
            total = mm(grads[0], matrices[0])
            for grad, w in zip(grads[1:], matrices[1:], strict=True):
                total += mm(grad, w)
            of_x, of_norm = _unnormalise(total.to(x.dtype), unit, weight, scale, needs_norm)
        return of_x, of_norm, None, None, *of_matrices


def _scale(x: Tensor, eps: float) -> Tensor:
    return x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def _unnormalise(
    grad: Tensor, unit: Tensor, weight: Tensor, scale: Tensor, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and weight from that of weight · x · scale. unit: x · scale."""
    along = grad * unit
    of_weight = along.flatten(0, -2).sum(0) if needs_weight else None
    mean = (along @ weight)[..., None] / unit.shape[-1]
    return torch.addcmul(grad * weight, unit, mean, value=-1) * scale, of_weight


class Gate(torch.autograd.Function):
    """silu(gate) · up, keeping the two and not silu(gate)."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return _ungate(grad, gate, up, F.silu(gate))


class GatedLinear(torch.autograd.Function):
    """W (silu(gate) · up) + b; the product is made again in the backward, a sixth of what a layer would keep."""

    @staticmethod
    def forward(ctx, gate, up, weight, bias):
        ctx.wide, weight = weight.dtype, weight.to(gate.dtype)
        ctx.save_for_backward(gate, up, weight)
        y = mm(F.silu(gate).mul_(up), weight.t(), out=gate.new_empty(len(gate), len(weight)))
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        gate, up, weight = ctx.saved_tensors
        _, _, needs_weight, needs_bias = ctx.needs_input_grad
        open_gate = F.silu(gate)
        of_weight = mm_over_rows(grad, open_gate * up, dtype=ctx.wide) if needs_weight else None
        return (
            *_ungate(mm(grad, weight), gate, up, open_gate),
            of_weight,
            grad.sum(0, dtype=ctx.wide) if needs_bias else None,
        )


def _ungate(grad: Tensor, gate: Tensor, up: Tensor, open_gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up from that of silu(gate) · up. open_gate: silu(gate), written over."""
    slope = grad * up
    return torch.ops.aten.silu_backward.grad_input(slope, gate, grad_input=slope), open_gate.mul_(grad)
