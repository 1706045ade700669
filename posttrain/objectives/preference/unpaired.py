"""Losses on single answers with a verdict, thumbs up or thumbs down, and the statistics over the batch that they read.

A statistic is made by a function of its own from the whole optimizer step, before it is cut into micro-batches, and
handed to the formula as a number. Section 17 of the explainer tells the story.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.objectives.tokens import check_shapes, detached

PerAnswer = dict[str, Tensor]
"""Metrics with one entry per answer, detached."""


def kto_reference_point(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KTO's z₀: how far the policy has moved from the reference on answers it is not judged on.

        z₀ = max( 0, mean_i [ log π(y'_i | x_i) - log π_ref(y'_i | x_i) ] )        y'_i: the answer of another prompt

    Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.

    logp, ref_logp: [M] log-probability of each mismatched answer, summed over its tokens: pair every prompt of the
        whole step with the answer of the next one. At least 2 answers, better 16 or more.

    Returns a scalar in nats without a graph; nothing is learned through it. Log-ratios (1, -3) give 0, (3, 1) give 2.
    Section 17.
    """
    check_shapes("M", logp, ref_logp)
    return (logp - ref_logp).detach().mean().clamp(min=0)


def kto(
    logp: Tensor,
    ref_logp: Tensor,
    desirable: Tensor,
    *,
    reference_point: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, PerAnswer]:
    """Kahneman-Tversky optimization: good answers should lie above a reference point and bad ones below it.

        L = λ_D [1 - σ(β (u - z₀))]  if desirable,  else  λ_U [1 - σ(β (z₀ - u))]        u = log π - log π_ref

    Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.

    logp, ref_logp: [N] log-probability of the whole answer, summed. desirable: [N] true for thumbs up.
    reference_point: z₀, a scalar made by `kto_reference_point` over the whole step.
    beta: 0.1 is usual. desirable_weight, undesirable_weight: λ_D and λ_U; keep λ_D n_D / (λ_U n_U) between 1 and 4/3.

    Returns the loss [N], to be averaged over all answers of both kinds, and per answer `reward` (β u) and `good_share`.

    At the reference with z₀ = 0 every answer costs λ/2 with slope -+λ β/4; far from z₀, on either side, there is no
    gradient. Section 17.
    """
    check_shapes("N", logp, ref_logp, desirable)
    good = desirable.bool()
    reward = beta * (logp - ref_logp)
    beyond = reward - beta * reference_point
    loss = torch.where(good, desirable_weight * torch.sigmoid(-beyond), undesirable_weight * torch.sigmoid(beyond))
    return loss, detached(reward=reward, good_share=good.to(reward.dtype))


def apo_zero_unpaired(
    logp: Tensor,
    ref_logp: Tensor,
    desirable: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, PerAnswer]:
    """APO-zero on single answers: the reference itself is the zero. KTO with its reference point held at 0.

        L = λ_D [1 - σ(β u)]  if desirable,  else  λ_U σ(β u)        u = log π - log π_ref

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), section 4, with each term on rows of its own.

    logp, ref_logp: [N] log-probability of the whole answer, summed. desirable: [N] true for thumbs up. beta,
    desirable_weight, undesirable_weight and results as `kto`.

    A good and a bad answer with weights 1 add up to `apo_zero` of the pair. Section 17.
    """
    return kto(
        logp, ref_logp, desirable, reference_point=0.0, beta=beta, desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )  # fmt: skip


def bco(
    logp: Tensor, ref_logp: Tensor, desirable: Tensor, *, shift: Tensor | float, beta: float
) -> tuple[Tensor, PerAnswer]:
    """Binary classifier optimization: is an answer good, judged by how its reward stands to the usual one?

        L = -log σ(β u - δ)  if desirable,  else  -log σ(δ - β u)        u = log π - log π_ref

    Jung et al. 2024 (arXiv 2404.04656), section 4.

    logp, ref_logp: [N] log-probability of the whole answer, summed. desirable: [N] true for thumbs up. shift: δ, the
    mean of the rewards β u of all answers seen so far, good and bad: `update_moments` keeps it, and TRL adds the
    current step before it is used. beta: 0.01 in the paper.

    Returns the loss [N], and per answer `reward` (β u) and `good_share`. An answer whose reward is δ costs log 2,
    whatever the verdict. Section 17.
    """
    check_shapes("N", logp, ref_logp, desirable)
    good = desirable.bool()
    reward = beta * (logp - ref_logp)
    loss = -F.logsigmoid(torch.where(good, reward - shift, shift - reward))
    return loss, detached(reward=reward, good_share=good.to(reward.dtype))
