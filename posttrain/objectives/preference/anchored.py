"""Losses on pairs that also hold the answers themselves, and not only the gap between them.

`dpo` falls while the chosen answer loses probability, as long as the rejected one loses more (likelihood displacement,
Razin et al. 2024, arXiv 2410.08847). Each loss here looks at the log-ratios u_w and u_l one by one, u = log π - log
π_ref, and says where they should go. The simplest anchor, cross-entropy on the chosen answer, is a term with an average
of its own (`PreferenceLoss.nll`). Section 17 of the explainer compares them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.objectives.preference._pair import PerPair, implicit_rewards, not_negative, scaled_gap, watched


def dpop(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float, penalty: float
) -> tuple[Tensor, PerPair]:
    """DPO-Positive (Smaug): a winner that becomes less likely than under the reference counts against the margin.

        L = -log σ( β [ h - λ max(0, -u_w) ] )

    Pal et al. 2024 (arXiv 2402.13228), section 3.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo` (`margin` is β h). penalty: λ, 0 or more,
    else ConfigError; 5 to 50 are usual.

    While the winner is at least as likely as under the reference it is `dpo`. Section 17.
    """
    margin, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    weight = not_negative("penalty", penalty, "it holds the chosen answer up")
    return -F.logsigmoid(margin - beta * weight * torch.relu(ref_chosen - chosen)), metrics


def apo_zero(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """APO-zero: the winner up and the loser down, each with the reference as its zero.

        L = [1 - σ(β u_w)] + σ(β u_l)

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), section 4: for winners that are better than what the model writes.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`.

    1 at the reference, between 0 and 2 everywhere; the slope in u_w does not depend on u_l. Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    return torch.sigmoid(-good) + torch.sigmoid(bad), watched(good, bad)[1]


def apo_down(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """APO-down: both answers down, the loser further.

        L = σ(β u_w) + [1 - σ(β h)]

    D'Oosterlinck et al. 2024 (arXiv 2408.06266), section 4: for winners that are worse than what the model writes.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`.

    1 at the reference, where the slope in u_w is 0 and in u_l is β/4. Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    margin, metrics = watched(good, bad)
    return torch.sigmoid(good) + torch.sigmoid(-margin), metrics


def nca(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Noise contrastive alignment of a pair: tell each answer from noise, the winner being data and noise at once.

        L = -log σ(β u_w) - ½ log σ(-β u_w) - ½ log σ(-β u_l)

    Chen et al. 2024 (arXiv 2402.05369), section 4.1.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. beta: 0.01 in the paper.

    2 log 2 at the reference. Least where β u_w = log 2: the winner is lifted by a fixed amount, no further.
    Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    loss = -F.logsigmoid(good) - 0.5 * F.logsigmoid(-good) - 0.5 * F.logsigmoid(-bad)
    return loss, watched(good, bad)[1]


def bco_pair(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Binary classifier optimization on a pair: the winner is classified as good and the loser as bad.

        L = -log σ(β u_w) - log σ(-β u_l)

    Jung et al. 2024 (arXiv 2404.04656), section 4, without its shift δ; `bco` has it, for answers that are not paired.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. beta: 0.01 in the paper.

    2 log 2 at the reference. It is never below `dpo`'s loss at the same point. Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    return -F.logsigmoid(good) - F.logsigmoid(-bad), watched(good, bad)[1]


def mpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    preference: float = 0.8,
    quality: float = 0.2,
) -> tuple[Tensor, PerPair]:
    """Mixed preference optimization: which answer is better, how good each one is, and how to write the better one.

        L = w_p · (-log σ(β h)) + w_q · [ -log σ(β u_w) - log σ(-β u_l) ]        (+ w_g · NLL(y_w))

    Wang et al. 2024 (arXiv 2411.10442): `dpo`, `bco_pair` and cross-entropy, the last being a term with an average of
    its own (w_g = `PreferenceLoss.nll`, 1 in the paper).

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`. preference, quality: w_p and w_q.

    At the reference (w_p + 2 w_q) log 2, with the paper's weights 1.2 log 2. Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    margin, metrics = watched(good, bad)
    each = -F.logsigmoid(good) - F.logsigmoid(-bad)
    return preference * -F.logsigmoid(margin) + quality * each, metrics


def cal_dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """Calibrated DPO: the log-ratios are also drawn to the values that rewards of ±1/2 would give them.

        L = -log σ(h) + (u_w - 1/(2β))² + (u_l + 1/(2β))²

    Xiao et al. 2024 (arXiv 2412.14516). There is no β in the first term; the squares alone are `sppo_hard`.

    chosen, rejected, ref_chosen, ref_rejected: [B] and results as `dpo`. beta: 0.001 to 0.01 in the authors' scripts.

    Where u_w = 1/(2β) = -u_l the squares vanish and log(1 + e^{-1/β}) is left. Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    up, down = chosen - ref_chosen, rejected - ref_rejected
    target = 1 / (2 * beta)
    loss = -F.logsigmoid(up - down) + (up - target).square() + (down + target).square()
    return loss, watched(good, bad)[1]
