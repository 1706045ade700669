"""Policies made of two policies: a reference that follows, and the mixture that Nash-MD plays against.

Both are pure; whoever owns the weights or the sampler applies them.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError, ShapeError


def moved_reference(reference: Tensor, policy: Tensor, *, share: float) -> Tensor:
    """TR-DPO: the reference is moved towards the policy every so many steps.

        π_ref ← α π_θ + (1 - α) π_ref        in weights

    Gorbatovski et al. 2024 (arXiv 2404.09656), section 3: the soft update with α = 0.6 every 512 steps, the hard one
    with α = 1, which makes the policy of that moment the reference.

    reference, policy: one parameter of each, of equal shape, else ShapeError. share: α in (0, 1], else ConfigError.

    Returns the new parameter, of the same shape, without a graph. From 0 towards 1, two soft updates with α = 0.6 give
    0.84. Cached log-probabilities of the old reference are worthless after it. Section 16.
    """
    if reference.shape != policy.shape:
        raise ShapeError(
            f"a reference parameter of shape {list(reference.shape)} cannot follow one of shape {list(policy.shape)}: "
            "both must be the same parameter of the same architecture."
        )
    if not 0 < share <= 1:
        raise ConfigError(f"share = {share}: the policy's share must lie in (0, 1]; 1 replaces the reference.")
    return torch.lerp(reference.detach(), policy.detach(), share)


def mixture_logits(logits: Tensor, ref_logits: Tensor, *, share: float) -> Tensor:
    """Nash-MD's opponent: the geometric mixture of policy and reference, token by token.

        log π_mix = (1 - c) log π + c log π_ref - log Z

    Munos et al. 2023 (arXiv 2312.00886), section 7.

    logits, ref_logits: [..., V]. share: c in [0, 1], else ConfigError; 0 is self-play, 1 plays the reference, TRL's
    default is 0.5.

    Returns the log-probabilities [..., V] to sample from. Equal policies give that policy. Section 17.
    """
    if logits.shape != ref_logits.shape:
        raise ShapeError(
            f"logits {list(logits.shape)} and ref_logits {list(ref_logits.shape)} are of different places."
        )
    if not 0 <= share <= 1:
        raise ConfigError(f"share = {share}: the reference's share of the mixture lies between 0 and 1; 0.5 is usual.")
    return torch.log_softmax((1 - share) * logits + share * ref_logits, -1)
