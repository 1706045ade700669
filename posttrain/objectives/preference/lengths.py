"""Losses on pairs that know how long the answers are: per token, with a price on length, or with a lighter tail.

Summed log-ratios grow with length, so `dpo` learns length where winners are longer than losers. Section 17 of the
explainer compares the cures; `reference_free.simpo` is one more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.preference._pair import PerPair, not_negative, per_token, scaled_gap
from posttrain.objectives.preference.pairs import dpo, ipo
from posttrain.objectives.tokens import check_shapes, masked


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

    chosen, rejected, ref_chosen, ref_rejected: [B] and results as `dpo`, rewards per token. chosen_length,
    rejected_length: [B] tokens. beta: 5 in Tülu 3.

    For answers of one token it is `dpo`. Section 17.
    """
    check_shapes("B", chosen, rejected, ref_chosen, ref_rejected)
    nothing = torch.zeros_like(chosen)
    chosen = per_token(chosen - ref_chosen, chosen_length)
    rejected = per_token(rejected - ref_rejected, rejected_length)
    return dpo(chosen, rejected, nothing, nothing, beta=beta)


def ipo_norm(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
) -> tuple[Tensor, PerPair]:
    """IPO on log-ratios per token: the convention of TRL's DPO trainer.

        L = ( u_w / |y_w| - u_l / |y_l| - 1 / (2 β) )²        u = log π - log π_ref

    Azar et al. 2023 (arXiv 2310.12036), eq. 17 with τ = β, whose h is a sum; that averages were meant is what the
    authors told the maintainers of TRL. OpenRLHF and the original DPO code sum, as `ipo` does.

    chosen, rejected, ref_chosen, ref_rejected: [B] and results as `dpo`, rewards per token. chosen_length,
    rejected_length: [B] tokens. beta: τ; it must be some tens of times larger than with `ipo` for the same margin.

    Least where the log-ratios per token differ by 1 / (2 β); for answers of one token it is `ipo`. Section 17.
    """
    check_shapes("B", chosen, rejected, ref_chosen, ref_rejected)
    nothing = torch.zeros_like(chosen)
    chosen = per_token(chosen - ref_chosen, chosen_length)
    rejected = per_token(rejected - ref_rejected, rejected_length)
    return ipo(chosen, rejected, nothing, nothing, beta=beta)


def rdpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    alpha: float,
) -> tuple[Tensor, PerPair]:
    """R-DPO: DPO for a reward from which a price per token has been taken.

        L = -log σ( β h + α (|y_w| - |y_l|) )

    Park et al. 2024 (arXiv 2403.19159). The sign follows from the tilted optimum: if π ∝ π_ref e^{(r - α|y|)/β}, then
    r = β u + α |y| up to a constant.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo` (`margin` is β h). chosen_length,
    rejected_length: [B] tokens. alpha: price per token in units of reward, 0 or more, else ConfigError.

    A longer winner has a smaller loss and pulls less; equal lengths give `dpo`. Section 17.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    check_shapes("B", margin, chosen_length, rejected_length)
    price = not_negative("alpha", alpha, "length has a price and not a prize") * (chosen_length - rejected_length)
    return -F.logsigmoid(margin + price), metrics


def desensitised(logp: Tensor, mask: Tensor, other_length: Tensor, *, alpha: float) -> Tensor:
    """Log-probability of an answer in which tokens beyond the length of its partner count less: LD-DPO.

        log π_LD(y) = Σ_{t ≤ p} log π_t + α Σ_{t > p} log π_t        p = min(|y_w|, |y_l|)

    Liu et al. 2024 (arXiv 2409.06411). Give `dpo` these sums, of policy and reference alike, in place of plain ones.

    logp, mask: [N, T]; t counts tokens under the mask. other_length: [N], tokens of the other answer of the row's pair.
    alpha: weight of the tail in [0, 1], else ConfigError; 0.5 is a start.

    Returns [N]. The shorter answer of a pair keeps its plain sum; alpha = 1 keeps both. Four tokens of log-probability
    -1 against a partner of one token, with alpha 1/2, give -2.5. Section 16.
    """
    check_shapes("NT NT N", logp, mask, other_length)
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha = {alpha}: the tail of the longer answer weighs between 0 (ignored) and 1 (as usual)."
        )
    shared = mask.cumsum(1) <= other_length[:, None]
    kept = masked(logp, mask)
    return torch.where(shared, kept, alpha * kept).sum(1)
