"""Preference losses on pairs of answers, with a reference policy.

Each function takes the log-probabilities of whole answers, summed over their tokens, and returns one loss per pair, not
averaged, with the numbers a person wants to watch. A different paper is a different function. Section 16 of the
explainer derives the first, section 17 compares the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, detached

PerPair = dict[str, Tensor]
"""Metrics with one entry per pair, detached."""


def dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Direct Preference Optimization.

        L = -log σ(β h)        h = [log π(y_w) - log π_ref(y_w)] - [log π(y_l) - log π_ref(y_l)]

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    chosen, rejected, ref_chosen, ref_rejected: [B] log-probability of the whole answer, summed over its tokens.
    beta: strength of the leash to the reference; 0.1 is usual, larger stays closer.

    Returns the loss [B], and per pair `accuracy`, `margin` (β h) and the implicit rewards `reward_chosen` and
    `reward_rejected`, β (log π - log π_ref).

    With the policy equal to the reference the loss is log 2 and its slope in h is -β/2, whatever the data.
    """
    margin, metrics = _margin(chosen, rejected, ref_chosen, ref_rejected, beta)
    return -F.logsigmoid(margin), metrics


def cdpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> tuple[Tensor, PerPair]:
    """Conservative DPO: a share ε of the labels is taken to be flipped.

        L = -(1 - ε) log σ(β h) - ε log σ(-β h)

    Mitchell 2023, "A note on DPO with noisy preferences".

    Arguments and results as `dpo`. label_smoothing: ε in (0, 1/2). The loss is least at β h = log((1 - ε) / ε), so the
    margin stops growing.
    """
    margin, metrics = _margin(chosen, rejected, ref_chosen, ref_rejected, beta)
    epsilon = _flip_rate(label_smoothing)
    return -(1 - epsilon) * F.logsigmoid(margin) - epsilon * F.logsigmoid(-margin), metrics


def robust(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> tuple[Tensor, PerPair]:
    """Robust DPO: the flipped term is subtracted, so that on noisy labels the expected loss is that of clean ones.

        L = [ -(1 - ε) log σ(β h) + ε log σ(-β h) ] / (1 - 2 ε)

    Chowdhury, Kini, Natarajan 2024 (arXiv 2403.00409), eq. 12.

    Arguments and results as `dpo`. label_smoothing: ε in (0, 1/2). Averaged over a flip with probability ε it equals
    `dpo`. It has no lower bound on a finite set of pairs: stop early.
    """
    margin, metrics = _margin(chosen, rejected, ref_chosen, ref_rejected, beta)
    epsilon = _flip_rate(label_smoothing)
    loss = -(1 - epsilon) * F.logsigmoid(margin) + epsilon * F.logsigmoid(-margin)
    return loss / (1 - 2 * epsilon), metrics


def ipo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Identity Preference Optimization: the log-ratio gap is regressed to a constant instead of driven to infinity.

        L = (h - 1 / (2 β))²

    Azar et al. 2023 (arXiv 2310.12036), eq. 17, with τ = β.

    Arguments and results as `dpo`. On whole answers, as printed; TRL divides each log-ratio by the answer's length
    first, which is `ipo` of means and needs a β some tens of times larger. Least where h = 1 / (2 β).
    """
    margin, metrics = _margin(chosen, rejected, ref_chosen, ref_rejected, beta)
    return (margin / beta - 1 / (2 * beta)).square(), metrics


def hinge(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Hinge loss on the implicit rewards: SLiC's margin with DPO's reference.

        L = max(0, 1 - β h)

    Liu et al. 2023 (arXiv 2309.06657), eq. 10; the margin loss is Zhao et al. 2023 (arXiv 2305.10425).

    Arguments and results as `dpo`. 1 at the reference, and without gradient once β h exceeds 1.
    """
    margin, metrics = _margin(chosen, rejected, ref_chosen, ref_rejected, beta)
    return torch.relu(1 - margin), metrics


def dpo_norm(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
) -> tuple[Tensor, PerPair]:
    """Length-normalised DPO: log-ratios per token instead of per answer.

        L = -log σ( β [ (log π - log π_ref)(y_w) / |y_w| - (log π - log π_ref)(y_l) / |y_l| ] )

    Lambert et al. 2024 (Tülu 3, arXiv 2411.15124), eq. 6.

    Arguments and results as `dpo`; chosen_length, rejected_length: [B] tokens. beta: 5 in Tülu 3. For answers of one
    token it is `dpo`.
    """
    check_shapes("B", chosen, rejected, ref_chosen, ref_rejected, chosen_length, rejected_length)
    nothing = torch.zeros_like(chosen)
    chosen, rejected = (chosen - ref_chosen) / chosen_length, (rejected - ref_rejected) / rejected_length
    return dpo(chosen, rejected, nothing, nothing, beta=beta)


def _margin(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, PerPair]:
    """β h with its graph, and the metrics that all these losses share."""
    check_shapes("B", chosen, rejected, ref_chosen, ref_rejected)
    reward_chosen, reward_rejected = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    margin = reward_chosen - reward_rejected
    return margin, detached(
        accuracy=(margin > 0).to(margin.dtype),
        margin=margin,
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
    )


def _flip_rate(label_smoothing: float) -> float:
    if not 0 < label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing = {label_smoothing}: the share of flipped labels must lie between 0 and 0.5 (at half, "
            "labels say nothing). Use dpo for clean labels."
        )
    return label_smoothing
