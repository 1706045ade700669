"""Losses on more than two answers to one prompt.

Answers stand in [P, K] with a mask, so that prompts may have different numbers of them. Sections 16 to 18 of the
explainer use them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.objectives.preference._pair import PerPair, per_token, watched
from posttrain.objectives.reward import plackett_luce
from posttrain.objectives.tokens import check_shapes, masked


def dpo_ranking(logp: Tensor, ref_logp: Tensor, mask: Tensor, *, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO on a whole ranking: the implicit rewards must order the answers as the annotator did.

        L = Σ_k [ log Σ_{j ≥ k} exp(β u_j) - β u_k ]        u = log π - log π_ref

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 20: Plackett-Luce in place of Bradley-Terry.

    logp, ref_logp: [P, K] log-probability of whole answers, best first. mask: [P, K], true where an answer stands; each
    row's answers come first. beta: as `dpo`.

    Returns the loss [P] and per ranking `accuracy`, the share of its pairs in the right order.

    Two answers give `dpo`; at the reference K answers cost log K!. Section 16.
    """
    check_shapes("PK", logp, ref_logp, mask)
    return plackett_luce(beta * (logp - ref_logp), mask)


def rrhf(
    logp: Tensor, length: Tensor, reward: Tensor, mask: Tensor, *, power: float = 1.0, nll: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """RRHF: rank answers of any origin by their likelihood as the rewards rank them, and imitate the best one.

        L = Σ_{r_i < r_j} max(0, p_i - p_j) - w log π(y_best) / |y_best|        p = log π(y) / |y|^λ

    Yuan et al. 2023 (arXiv 2304.05302), section 3. The paper sums the cross-entropy of the best answer, and its code
    averages it over padding too; here it is per token.

    logp: [P, K] log-probability of whole answers, summed. length: [P, K] tokens. reward: [P, K]. mask: [P, K], true
    where an answer stands, in any order. power: λ, 1 in the paper. nll: w, 1 in the paper; of equally good best
    answers the first is taken.

    Returns the loss [P], and per prompt `accuracy`: the share of pairs with different rewards in the right order.

    No margin: once the order is right only the imitation is left. Mean log-probabilities (-1, -2) with rewards (0, 1)
    cost 1 + 2. Section 18.
    """
    check_shapes("PK", logp, length, reward, mask)
    reward, tokens = torch.where(mask, reward, -torch.inf), masked(length, mask).clamp(min=1).to(logp.dtype)
    score = logp / tokens**power
    worse = (reward[:, :, None] < reward[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    gap = score[:, :, None] - score[:, None, :]
    best = torch.zeros_like(mask).scatter(1, reward.argmax(1, keepdim=True), True) & mask
    imitation = masked(-logp / tokens, best).sum(1)
    right = ((gap < 0) & worse).sum((1, 2)).to(logp.dtype) / worse.sum((1, 2)).clamp(min=1)
    return masked(torch.relu(gap), worse).sum((1, 2)) + nll * imitation, {"accuracy": right}


def tpo(
    gold: Tensor, chosen: Tensor, rejected: Tensor, *, gold_length: Tensor, beta: float, nll: float = 1.0
) -> tuple[Tensor, PerPair]:
    """Triple preference optimization: imitate a gold answer and separate two others, without a reference.

        L = -log σ( β [log π(y_w) - log π(y_l)] ) - α log π(y_gold) / |y_gold|

    Saeidi et al. 2024 (arXiv 2405.16681); the cross-entropy per token, as in the authors' code.

    gold, chosen, rejected: [B] log-probability of whole answers to one prompt, summed. gold_length: [B] tokens. beta:
    0.01 in the paper. nll: α.

    Returns the loss [B] and metrics as `dpo`, the rewards being β log π. With the chosen answer as gold it is CPO with
    its cross-entropy. Section 17.
    """
    check_shapes("B", gold, chosen, rejected)
    margin, metrics = watched(beta * chosen, beta * rejected)
    return -F.logsigmoid(margin) - nll * per_token(gold, gold_length), metrics
