"""Losses on pairs that see one number of a pair: the gap h between its two log-ratios.

    u = log π(y) - log π_ref(y)        h = u_w - u_l

Each function takes the log-probabilities of whole answers, summed over their tokens, and returns one loss per pair, not
averaged, with the numbers a person wants to watch. A different paper is a different function. Since only h enters, each
of them can fall while both answers lose probability; `anchored` has those that hold the answers themselves. Section 16
of the explainer derives the first, section 17 compares the others.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError, DataError
from posttrain.objectives.preference._pair import PerPair, flip_rate, logistic, scaled_gap
from posttrain.objectives.tokens import check_shapes, masked


def implicit_reward(logp: Tensor, ref_logp: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """The reward that a policy implies, token by token: what a heat map of a trained policy shows.

        r_t = β · [log π(y_t | x, y_<t) - log π_ref(y_t | x, y_<t)]

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 5, up to a constant per prompt; per token: Rafailov et al. 2024 (arXiv
    2404.12358).

    logp, ref_logp, mask: [N, T]. beta: the strength with which the policy was trained.

    Returns [N, T] in units of reward, 0 outside the mask; the sum over a row is the answer's reward. A policy that is
    π_ref e^{r/β} / Z gives back r up to the constant -β log Z. Section 16.
    """
    check_shapes("NT", logp, ref_logp, mask)
    return beta * (masked(logp, mask) - masked(ref_logp, mask))


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

    With the policy equal to the reference the loss is log 2 and its slope in h is -β/2, whatever the data. Section 16.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
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

    Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. label_smoothing: ε in [0, 1/2), else
    ConfigError.

    The loss is least at β h = log((1 - ε) / ε), so the margin stops growing; at 0 it is `dpo`. Section 16.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    return logistic(margin, label_smoothing), metrics


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

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. label_smoothing: ε in [0, 1/2), else
    ConfigError.

    Averaged over a flip with probability ε it equals `dpo`. It has no lower bound on a finite set of pairs: stop
    early. Section 16.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    epsilon = flip_rate(label_smoothing)
    loss = -(1 - epsilon) * F.logsigmoid(margin) + epsilon * F.logsigmoid(-margin)
    return loss / (1 - 2 * epsilon), metrics


def soft_dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, probability: Tensor, beta: float
) -> tuple[Tensor, PerPair]:
    """DPO on soft labels: a judge says with which probability the first answer of each pair is the better one.

        L = -q log σ(β h) - (1 - q) log σ(-β h)

    `cdpo` with ε = 1 - q of each pair; the labels are those of Lee et al. 2023 (arXiv 2309.00267), section 2.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. probability: [B], q in [0, 1], which may
    lie below 1/2.

    Least where σ(β h) = q, at the entropy of q; q = 1/2 pulls the gap to 0. Section 10.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    check_shapes("B", margin, probability)
    return -probability * F.logsigmoid(margin) - (1 - probability) * F.logsigmoid(-margin), metrics


def ipo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Identity Preference Optimization: the log-ratio gap is regressed to a constant instead of driven to infinity.

        L = (h - 1 / (2 β))²

    Azar et al. 2023 (arXiv 2310.12036), eq. 17, with τ = β.

    chosen, rejected, ref_chosen, ref_rejected: [B] and results as `dpo`. beta: τ, 0.1 to 1. On whole answers, as
    printed; `ipo_norm` is the convention that divides by lengths.

    Least where h = 1 / (2 β). Section 17.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    return (margin / beta - 1 / (2 * beta)).square(), metrics


def hinge(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Hinge loss on the implicit rewards: SLiC's margin with DPO's reference.

        L = max(0, 1 - β h)

    Liu et al. 2023 (arXiv 2309.06657), eq. 10; the margin loss is Zhao et al. 2023 (arXiv 2305.10425), see `slic`.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`.

    1 at the reference, and without gradient once β h exceeds 1. Section 17.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    return torch.relu(1 - margin), metrics


def exo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float, label_smoothing: float
) -> tuple[Tensor, PerPair]:
    """Efficient exact optimization: the reverse KL from the policy's opinion of a pair to the label's.

        L = q log(q / (1 - ε)) + (1 - q) log((1 - q) / ε)        q = σ(β h)

    Ji et al. 2024 (arXiv 2402.00856), section 3.2. `cdpo` is, up to a constant, the forward KL of the same two.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. label_smoothing: ε in (0, 1/2), else
    ConfigError, since at 0 the logarithm has no value; 0.001 is usual.

    0 where q = 1 - ε. Its slope vanishes at both ends: a pair that is far on the wrong side is given up. Section 17.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    if flip_rate(label_smoothing) == 0:
        raise ConfigError(
            "label_smoothing = 0: exo takes its logarithm. Use 0.001, which stands for almost clean ones."
        )
    right = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return right + wrong, metrics


def discopop(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float, tau: float = 0.05
) -> tuple[Tensor, PerPair]:
    """DiscoPOP: a loss that a language model proposed, logistic for wrong pairs and exponential for right ones.

        L = (1 - m) · (-log σ(ρ)) + m · e^{-ρ}        ρ = β h,  m = σ(ρ / τ)

    Lu et al. 2024 (arXiv 2406.08414), section 3, the log-ratio modulated loss.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. tau: width of the change-over, in
    (0, 1), else ConfigError: from 1 on, the exponential of a wrong pair outgrows its weight.

    At the reference (log 2 + 1) / 2 = 0.846574. Not convex: with τ = 0.05 it has a dip at ρ = -0.119 and a crest at
    0.072, so pairs at the reference are first pushed the wrong way, into the dip; with τ > 0.102 they are not.
    Section 17.
    """
    if not 0 < tau < 1:
        raise ConfigError(f"tau = {tau}: must lie between 0 and 1; the paper uses 0.05.")
    rho, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    logistic_part = -torch.sigmoid(-rho / tau) * F.logsigmoid(rho)
    return logistic_part + torch.exp(F.logsigmoid(rho / tau) - rho), metrics


def odpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, offset: Tensor, beta: float
) -> tuple[Tensor, PerPair]:
    """DPO with an offset: the margin asked of a pair grows with how much better its winner is.

        L = -log σ(β h - Δ)

    Amini et al. 2024 (arXiv 2402.10571), section 3.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo` (`margin` is β h). offset: [B], Δ in
    units of reward; `odpo_offset` makes the paper's from scores.

    Offset 0 is `dpo`; at β h = Δ the loss is log 2. Section 17.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    check_shapes("B", margin, offset)
    return -F.logsigmoid(margin - offset), metrics


def odpo_offset(score_gap: Tensor, *, alpha: float) -> Tensor:
    """The offset of `odpo` from the scores that a judge or reward model gave.

        Δ = α · log(score(y_w) - score(y_l))

    Amini et al. 2024 (arXiv 2402.10571), section 3.

    score_gap: [B], positive, else DataError. alpha: scale, 0 or more; 1 in the authors' code.

    Returns Δ [B] in units of reward. A gap of 1 gives 0, of e gives α; a smaller gap asks for less than `dpo`, since
    its logarithm is negative. Section 17.
    """
    check_shapes("B", score_gap)
    if not bool((score_gap > 0).all()):
        worst = float(score_gap.nan_to_num(nan=-math.inf).min())
        raise DataError(
            f"score_gap goes down to {worst}: the chosen answer of every pair must have the higher score, since the "
            "offset is the logarithm of the difference. Drop ties, and pairs without scores."
        )
    return alpha * score_gap.log()
