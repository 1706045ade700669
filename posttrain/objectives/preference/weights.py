"""Weights of pairs: how much each pair of a fixed data set should count for the policy as it is now.

Section 16 of the explainer.
"""

import torch
from torch import Tensor

from posttrain.objectives.tokens import check_shapes, masked


def wpo_weights(logp: Tensor, log_sum_sq: Tensor, mask: Tensor) -> Tensor:
    """WPO: how close an answer is to what the policy would write; the weight of a pair is the product of its two.

        w(y) = exp( 1/|y| Σ_t [ log π(y_t) - log Σ_v π(v)² ] )

    Zhou et al. 2024 (arXiv 2406.11827), section 3: Σ_v π(v)² is what a sampled token's probability is on average, so
    that a typical sample weighs about 1. No cap here, as in TRL since 1.0; older versions cut the product at 1.

    logp, log_sum_sq, mask: [N, T]; log_sum_sq is the logarithm of the `sum_sq` that the learner makes on request.

    Returns [N] without a graph. Where the policy is uniform over the tokens it may choose among, w = 1; an answer
    without tokens weighs 1. Section 16.
    """
    check_shapes("NT", logp, log_sum_sq, mask)
    surplus = (masked(logp, mask) - masked(log_sum_sq, mask)).sum(1)
    return torch.exp(surplus / mask.sum(1).clamp(min=1)).detach()
