"""Several scorers, one reward: ensembles of one judgement, and scores of different virtues together.

Members and components have to be put on a common scale first (`rescale` on samples of the reference policy), else the
minimum is that of the scorer with the widest scale. Rewards that are simply added up with weights, helpful and
harmless, stand in `advantages.several`. Sections 09 and 15 of the explainer tell the story: an ensemble postpones
reward hacking and does not end it.
"""

import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked


def ensemble_mean(scores: Tensor) -> Tensor:
    """The mean of the members: less noise, and no distrust.

        r = (1/M) Σ_m r_m

    Coste et al. 2023 (arXiv 2310.02743), mean optimisation.

    scores: [M, B], one row per member. Returns [B]. Scores 1, 2 and 6 give 3. Section 09.
    """
    check_shapes("MB", scores)
    return scores.mean(0)


def worst_case(scores: Tensor) -> Tensor:
    """The least of the members: an answer is as good as its severest judge says.

        r = min_m r_m

    Coste et al. 2023 (arXiv 2310.02743), worst-case optimisation (WCO).

    scores: [M, B], one row per member, on a common scale. Returns [B]. Scores 1, 2 and 6 give 1. Section 09.
    """
    check_shapes("MB", scores)
    return scores.amin(0)


def uncertainty_weighted(scores: Tensor, *, weight: float) -> Tensor:
    """The mean of the members less their disagreement.

        r = mean_m r_m - λ · (1/M) Σ_m (r_m - mean)²

    Coste et al. 2023 (arXiv 2310.02743), uncertainty-weighted optimisation (UWO).

    scores: [M, B], one row per member, on a common scale. weight: λ, not negative, in units of 1 / score.

    Returns [B]; with one member, or λ = 0, the mean. Raises ConfigError for a negative λ.

    Scores 1, 2 and 6 with λ = 0.5 give 3 - 0.5 · 14/3 = 0.6667. Section 09.
    """
    check_shapes("MB", scores)
    if weight < 0:
        raise ConfigError(f"weight = {weight}: a negative weight would reward answers on which the members disagree.")
    return scores.mean(0) - weight * scores.var(0, correction=0)


def all_good(rewards: Tensor, references: Tensor, mask: Tensor) -> Tensor:
    """One reward from several Bradley-Terry scores: the log-probability of being good in every respect.

        r = Σ_k log σ(r_k - ref_k)

    LSC, the log-sigmoid-centred transformation: Wang et al. 2024 (arXiv 2402.00742). Since log σ levels off above the
    reference, what is bad is mended before what is good is polished, and no component buys off another.

    rewards: [K, B], one row per component. references: [K, B], the score of an answer that is just good enough, such as
        a quantile of the reference policy's scores for the prompt. mask: [K, B], true where a component applies.

    Returns [B], not positive. Two components at their references give -2 log 2. Section 15.
    """
    check_shapes("KB", rewards, references, mask)
    return masked(F.logsigmoid(masked(rewards - references, mask)), mask).sum(0)
