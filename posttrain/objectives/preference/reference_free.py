"""Losses on pairs without a reference policy.

Nothing in them says how far the policy may go: watch the KL to the model they start from, although it is not in the
loss. Most are meant together with cross-entropy on the chosen answer, a term with an average of its own
(`PreferenceLoss.nll`). Section 17 of the explainer compares them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.objectives.preference._pair import EXPONENT_CAP, PerPair, logistic, not_negative, per_token, watched
from posttrain.objectives.tokens import check_shapes


def orpo(
    chosen: Tensor, rejected: Tensor, *, chosen_length: Tensor, rejected_length: Tensor, beta: float
) -> tuple[Tensor, PerPair]:
    """ORPO's odds-ratio term: the odds of the chosen answer against those of the rejected one, per token.

        L = -λ log σ( log odds(y_w) - log odds(y_l) )        odds = P / (1 - P),  log P = log π(y) / |y|

    Hong, Lee, Thorne 2024 (arXiv 2403.07691), eq. 7; the whole of ORPO adds the cross-entropy of y_w (eq. 6).

    chosen, rejected: [B] log-probability of the whole answer, summed. chosen_length, rejected_length: [B] tokens.
    beta: λ, the weight of the term; 0.1 is usual.

    Returns the loss [B] and metrics as `dpo`, the rewards being log odds. An answer of probability 1 has the odds of
    the nearest number below 1, so that they stay finite.

    Equal answers cost λ log 2; token probabilities of 1/2 against 1/3 have odds 1 and 1/2, so L = λ log(3/2).
    Section 17.
    """
    check_shapes("B", chosen, rejected)
    good, bad = (_log_odds(per_token(*x)) for x in ((chosen, chosen_length), (rejected, rejected_length)))
    margin, metrics = watched(good, bad)
    return -beta * F.logsigmoid(margin), metrics


def _log_odds(logp: Tensor) -> Tensor:
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, PerPair]:
    """SimPO: the reward is the mean log-probability of a token, and the winner must lead by a margin.

        L = ℓ( β log π(y_w)/|y_w| - β log π(y_l)/|y_l| - γ )

    Meng, Xia, Chen 2024 (arXiv 2405.14734), eq. 6, with ℓ(z) = -(1 - ε) log σ(z) - ε log σ(-z) and ε = 0.

    chosen, rejected: [B] log-probability of the whole answer, summed. chosen_length, rejected_length: [B] tokens.
    beta: 2 to 10, on means and not on sums. gamma: the margin in units of reward, 0 or more, else ConfigError (the
    authors' scripts set γ/β, 0.5 to begin with). label_smoothing: ε in [0, 1/2), else ConfigError.

    Returns the loss [B] and metrics as `dpo` (`margin` before γ is taken off). At a margin of γ it is log 2.
    Section 17.
    """
    good, bad = beta * per_token(chosen, chosen_length), beta * per_token(rejected, rejected_length)
    margin, metrics = watched(good, bad)
    return logistic(margin - not_negative("gamma", gamma, "it is a lead asked of the winner"), label_smoothing), metrics


def alphapo(
    chosen: Tensor,
    rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    gamma: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, PerPair]:
    """AlphaPO: SimPO with a bent reward, steeper where answers are unlikely.

        L = ℓ( β r_w - β r_l - γ )        r = (1 - e^{-α s}) / α,  s = log π(y) / |y|

    Gupta et al. 2025 (arXiv 2501.03884), with ℓ as in `simpo`.

    chosen, rejected: [B] log-probability of the whole answer, summed. chosen_length, rejected_length: [B] tokens. beta,
    gamma, label_smoothing: as `simpo`. alpha: shape; 0.25 in the paper, 0 is SimPO, negative values flatten.

    Returns the loss [B] and metrics as `dpo`, the rewards being β r. The slope of r in s is e^{-α s}, 1 for an answer
    of probability 1. The exponent is cut at 80. Section 17.
    """
    good = beta * _bent(per_token(chosen, chosen_length), alpha)
    bad = beta * _bent(per_token(rejected, rejected_length), alpha)
    margin, metrics = watched(good, bad)
    return logistic(margin - not_negative("gamma", gamma, "it is a lead asked of the winner"), label_smoothing), metrics


def _bent(mean: Tensor, alpha: float) -> Tensor:
    return mean if alpha == 0 else -torch.expm1((-alpha * mean).clamp(max=EXPONENT_CAP)) / alpha


def cpo(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> tuple[Tensor, PerPair]:
    """Contrastive preference optimization: DPO with a uniform reference, so that only the policy's own gap counts.

        L = ℓ( β [log π(y_w) - log π(y_l)] )

    Xu et al. 2024 (arXiv 2401.08417), section 3, with ℓ as in `simpo`; the whole of CPO adds the cross-entropy of y_w.
    Alone it is the reference-free DPO of Rafailov et al.'s code.

    chosen, rejected: [B] log-probability of the whole answer, summed. beta: 0.1 is usual. label_smoothing: ε in
    [0, 1/2), else ConfigError.

    Returns the loss [B] and metrics as `dpo`, the rewards being β log π. Two equally likely answers cost log 2.
    Section 17.
    """
    check_shapes("B", chosen, rejected)
    margin, metrics = watched(beta * chosen, beta * rejected)
    return logistic(margin, label_smoothing), metrics


def slic(chosen: Tensor, rejected: Tensor, *, beta: float) -> tuple[Tensor, PerPair]:
    """SLiC-HF's calibration term: a hinge on the policy's own gap. TRL calls it CPO with the hinge.

        L = max( 0, 1 - β [log π(y_w) - log π(y_l)] )

    Zhao et al. 2023 (arXiv 2305.10425), section 2, whose margin δ is 1/β and whose loss is L/β; the whole of SLiC-HF
    adds cross-entropy. `hinge` is the form with a reference.

    chosen, rejected: [B] log-probability of the whole answer, summed. beta: 1 over the margin in nats.

    Returns the loss [B] and metrics as `dpo`, the rewards being β log π. No gradient once the winner leads by 1/β nats;
    two equally likely answers cost 1. Section 17.
    """
    check_shapes("B", chosen, rejected)
    margin, metrics = watched(beta * chosen, beta * rejected)
    return torch.relu(1 - margin), metrics


def cpo_ipo(
    chosen: Tensor, rejected: Tensor, *, chosen_length: Tensor, rejected_length: Tensor, beta: float
) -> tuple[Tensor, PerPair]:
    """IPO without a reference, on means: an option of TRL's CPO trainer.

        L = ( log π(y_w)/|y_w| - log π(y_l)/|y_l| - 1 / (2 β) )²

    Azar et al. 2023 (arXiv 2310.12036), eq. 17, with a uniform reference and τ = β.

    chosen, rejected: [B] log-probability of the whole answer, summed. chosen_length, rejected_length: [B] tokens.
    beta: τ.

    Returns the loss [B] and metrics as `dpo`, the rewards being β log π per token. Least where the means differ by
    1 / (2 β). Section 17.
    """
    good, bad = per_token(chosen, chosen_length), per_token(rejected, rejected_length)
    _, metrics = watched(beta * good, beta * bad)
    return (good - bad - 1 / (2 * beta)).square(), metrics
