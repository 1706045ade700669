"""Advantages that are scaled by the whole batch, and the running baseline of plain REINFORCE.

Whitening over the batch keeps gradients of a steady size and is biased, since each sample is in its own statistics. The
statistics here are those of the tensors given: call it on the whole batch of a step, never on a micro-batch.
"""

import torch
from torch import Tensor

from posttrain.objectives.advantages.group import center
from posttrain.objectives.tokens import check_shapes, masked


def whiten(x: Tensor, mask: Tensor, *, shift: bool = True, eps: float = 1e-8) -> Tensor:
    """x with mean 0 and variance 1 over the masked tokens of the batch.

        x ← (x - mean) / √(var + ε)        var with n - 1

    x, mask: [N, T]. shift: False adds the mean back, for rewards, whose sign matters. Returns [N, T], 0 outside the
    mask; one lone token becomes 0 (or its own value, without shift).

    Rewards (1, 2, 3) without shift become (1, 2, 3).
    """
    check_shapes("NT", x, mask)
    x = masked(x, mask)
    count = mask.sum().clamp(min=1)
    mean = x.sum() / count
    centered = masked(x - mean, mask)
    scaled = centered * torch.rsqrt(centered.square().sum() / (count - 1).clamp(min=1) + eps)
    return scaled if shift else masked(scaled + mean, mask)


def center_then_whiten(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Reward minus the group's mean, on every token, whitened over the batch: REINFORCE++-baseline.

    Hu et al. 2025 (arXiv 2501.03262). The deviation is that of the *centred* rewards; long answers count more often.

    reward, group: [N]. mask: [N, T]. Returns [N, T], 0 outside the mask.
    """
    check_shapes("N NT", reward, mask)
    return whiten(center(reward, group)[:, None].expand(mask.shape), mask)


def running_baseline(state: dict[str, float], rewards: Tensor, *, decay: float = 0.9) -> dict[str, float]:
    """The moving average that plain REINFORCE subtracts from its returns, after one more batch.

        b ← (decay · w · b + (1 - decay) · mean(r)) / (decay · w + 1 - decay)        w ← decay · w + 1 - decay

    Williams 1992 (reinforcement comparison). The weight w corrects the start: after one batch b is its mean.

    state: {"baseline": b, "weight": w}, at the start both 0; it is not changed. rewards: [N]. Subtract `baseline` from
    the rewards of a batch *before* that batch is fed in here, else the baseline depends on the action it judges.
    """
    old = decay * state["weight"]
    weight = old + 1 - decay
    return {"baseline": (old * state["baseline"] + (1 - decay) * float(rewards.mean())) / weight, "weight": weight}
