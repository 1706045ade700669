"""Losses for models of reward: from comparisons, rankings and verdicts to a scalar score.

A score learned from comparisons is known only up to a constant per prompt. Losses are per pair, ranking or answer and
not averaged; so are the metrics. Section 9 of the explainer tells the story.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, detached, masked

PerRow = dict[str, Tensor]
"""Metrics with one entry per row, detached."""


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, centering: float = 0.0
) -> tuple[Tensor, PerRow]:
    """Bradley-Terry loss of a pair of scores, with the two additions that are in use.

        L = -log σ(r_w - r_l - m) + c · (r_w + r_l)²

    Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1. Margin: Llama 2 (arXiv 2307.09288), eq. 2.
    Centring: Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2.

    chosen, rejected: [B] scores. margin: [B], not negative, how much better the annotator found the chosen answer;
        None: 0. centering: c, which ties down the constant that comparisons leave free; 0.01 is usual.

    Returns the loss [B], and per pair `accuracy`, `margin` (r_w - r_l), `reward_chosen`, `reward_rejected`.

    Equal scores give log 2; with centring 0, adding a constant to both scores changes nothing.
    """
    check_shapes("B", chosen, rejected)
    gap = chosen - rejected
    if margin is not None:
        check_shapes("B", chosen, margin)
    loss = -F.logsigmoid(gap if margin is None else gap - margin)
    if centering < 0:
        raise ConfigError(f"centering = {centering}: a negative weight would drive scores away from 0; 0.01 is usual.")
    if centering:
        loss = loss + centering * (chosen + rejected).square()
    return loss, detached(accuracy=(gap > 0).to(gap.dtype), margin=gap, reward_chosen=chosen, reward_rejected=rejected)


def plackett_luce(scores: Tensor, mask: Tensor) -> tuple[Tensor, PerRow]:
    """Negative log-likelihood of a ranking: the best is chosen among all, the next among the rest, and so on.

        L = Σ_k [ log Σ_{j≥k} exp(r_j) - r_k ]

    Luce 1959, Plackett 1975.

    scores: [P, K], best first. mask: [P, K], true where an answer stands; each row's answers come first.

    Returns the loss [P], and per ranking `accuracy`: the share of its pairs that the scores order as it does.

    For two answers it is Bradley-Terry; scores (2, 1, 0) have loss 0.720868.
    """
    check_shapes("PK", scores, mask)
    scores = masked(scores, mask)
    # Padding stands last and is summed first: a finite floor is exp'd to 0 and, unlike -inf, has a gradient.
    floored = torch.where(mask, scores, -1e30)
    rest = torch.logcumsumexp(floored.flip(1), 1).flip(1)
    loss = masked(rest - scores, mask).sum(1)
    pairs = torch.triu(mask[:, :, None] & mask[:, None, :], diagonal=1)
    right = (scores[:, :, None] > scores[:, None, :]) & pairs
    return loss, detached(accuracy=right.sum((1, 2)).to(loss.dtype) / pairs.sum((1, 2)).clamp(min=1))


def all_pairs(scores: Tensor, mask: Tensor) -> tuple[Tensor, PerRow]:
    """Bradley-Terry over all pairs of one ranking, averaged so that a prompt counts once.

        L = -1/C(K,2) Σ_{i before j} log σ(r_i - r_j)

    Ouyang et al. 2022 (arXiv 2203.02155), eq. 1. Unlike Plackett-Luce it treats the pairs of a ranking as independent.

    scores: [P, K], best first. mask: [P, K]. Returns the loss [P], and per ranking `accuracy` as in `plackett_luce`.

    Scores (2, 1, 0) have loss 0.251150.
    """
    check_shapes("PK", scores, mask)
    scores = masked(scores, mask)
    pairs = torch.triu(mask[:, :, None] & mask[:, None, :], diagonal=1)
    gap = scores[:, :, None] - scores[:, None, :]
    count = pairs.sum((1, 2)).clamp(min=1)
    loss = -masked(F.logsigmoid(gap), pairs).sum((1, 2)) / count
    return loss, detached(accuracy=((gap > 0) & pairs).sum((1, 2)).to(loss.dtype) / count)


def outcome(score: Tensor, good: Tensor) -> tuple[Tensor, PerRow]:
    """Outcome reward model: binary cross-entropy of one verdict per answer.

        L = -[good] log σ(s) - [not good] log σ(-s)

    Cobbe et al. 2021 (arXiv 2110.14168), section 4.2, on the whole solution.

    score: [B] logits. good: [B], 1 or true for a correct answer; a probability is a soft label.

    Returns the loss [B], and per answer `accuracy` (of the sign) and `good_share`. Score 0 costs log 2.
    """
    check_shapes("B", score, good)
    target = good.to(score.dtype)
    loss = F.binary_cross_entropy_with_logits(score, target, reduction="none")
    right = ((score > 0) == (target > 0.5)).to(score.dtype)
    return loss, detached(accuracy=right, good_share=target)
