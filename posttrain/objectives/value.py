"""The critic's loss, with PPO's clipping of values.

Separate from the policy's because the critic is: another model, optimizer and schedule. What it learns towards comes
from `returns`. Section 14 of the explainer tells which details of it matter.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked

Sums = dict[str, tuple[Tensor, Tensor]]


def value_loss(
    values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor, *, clip: float | None = None
) -> tuple[Tensor, Sums]:
    """Squared error of a critic, with PPO's optional clipping around the values it had when the step began.

        L_t = ½ max( (V - R)², (V_old + clamp(V - V_old, -ε, ε) - R)² )

    Schulman et al. 2017's released code; Engstrom et al. 2020 (arXiv 2005.12729), section 3.

    values: [N, T] now, with gradient. old_values, targets: [N, T], fixed for all passes over the batch. mask: [N, T].
    clip: ε, in units of reward; None: plain ½ (V - R)².

    Returns the loss [N, T], 0 outside the mask, and metrics as (sum, count). Raises ConfigError for an ε that is not
    positive, ShapeError if the shapes differ.

    V_old = 0.2, V = 1, R = 0.9, ε = 0.2 has loss 0.125 and gradient 0, though V is almost right: a small ε freezes a
    critic. Section 14.
    """
    check_shapes("NT", values, old_values, targets, mask)
    values, old_values = masked(values, mask), masked(old_values, mask).detach()
    targets = masked(targets, mask).detach()
    error = (values - targets).square()
    metrics = {"value_mean": _sum(values.detach(), mask), "return_mean": _sum(targets, mask)}
    if clip is not None:
        if clip <= 0:
            raise ConfigError(f"value clip = {clip}: it must be positive, in units of reward; None turns clipping off.")
        near = old_values + (values - old_values).clamp(-clip, clip)
        held = (near - targets).square()
        metrics["value_clip_share"] = _sum(held > error, mask)
        error = torch.maximum(error, held)
    loss = error / 2
    return loss, metrics | {"value_loss": _sum(loss.detach(), mask)}


def _sum(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), mask.sum()
