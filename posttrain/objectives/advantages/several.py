"""Several rewards per answer: their sum, and the advantage that keeps them apart until each has been scaled.

Whichever is normalised last decides what the weights mean. In a plain sum a reward with a wide spread drowns the
others, and combinations of rewards that add up alike become the same advantage. A part that is NaN was not given for
that answer (a format check that does not apply): the others stand. Section 22 of the book tells the story.
"""

import torch
from torch import Tensor

from posttrain.errors import ShapeError
from posttrain.objectives.advantages.batch import batch_zscore
from posttrain.objectives.advantages.group import zscore
from posttrain.objectives.tokens import check_shapes, masked


def weighted_sum(rewards: Tensor, weights: Tensor | None = None, *, clip: tuple[float, float] | None = None) -> Tensor:
    """One reward made of several.

        r = clip( Σ_k w_k r_k, low, high )

    What recipes with verifiable rewards do, correctness plus a little for format; GDPO (Liu et al. 2026, arXiv
    2601.05242) argues against it, see `decoupled`.

    rewards: [N, K], NaN where one was not given. weights: [K]; None: all 1.
    clip: the range the sum is cut to, for a learned reward with outliers; None: as it is.

    Returns [N]; NaN only where none of the K was given, for then the answer has no reward at all.

    Rewards (1, 0.5) with weights (1, 0.2) give 1.1, and (NaN, 0.5) give 0.1. Section 22.
    """
    weights = _weights(rewards, weights)
    given = ~rewards.isnan()
    total = (masked(rewards, given) * weights).sum(1)
    total = total if clip is None else total.clamp(*clip)
    return torch.where(given.any(1), total, torch.nan)


def decoupled(rewards: Tensor, group: Tensor, weights: Tensor | None = None, *, eps: float = 1e-4) -> Tensor:
    """Each reward scaled within its group, then added up, then scaled over the batch.

        S_i = Σ_k w_k · (r_ik - mean_g(r_k)) / (std_g(r_k) + ε)        A_i = (S_i - mean(S)) / (std(S) + ε)

    GDPO: Liu et al. 2026 (arXiv 2601.05242). Both deviations with n - 1; the second is over the answers of the batch.

    rewards: [N, K], NaN where one was not given. group: [N] ids of prompts. weights: [K]; None: all 1.
    eps: as in `zscore`, at both places.

    Returns [N]; 0 for an answer without any reward, which has no say in the statistics either.

    Multiplying one of the rewards by ten changes nothing (up to eps); in `weighted_sum` it would drown the others.
    Section 22.
    """
    weights = _weights(rewards, weights)
    total = torch.stack([zscore(reward, group, eps=eps) for reward in rewards.unbind(1)], 1) @ weights
    return batch_zscore(total, given=~rewards.isnan().all(1), eps=eps)


def _weights(rewards: Tensor, weights: Tensor | None) -> Tensor:
    if rewards.dim() != 2 or rewards.shape[1] == 0:
        raise ShapeError(
            f"rewards {list(rewards.shape)}: several rewards are [answers, kinds], with at least one kind."
        )
    if weights is None:
        return rewards.new_ones(rewards.shape[1])
    check_shapes("NK K", rewards, weights)
    return weights.to(rewards.dtype)
