"""Losses for models of reward: from comparisons, rankings and verdicts to a scalar score.

A score learned from comparisons is known only up to a constant per prompt. Losses are per pair, ranking or answer and
not averaged; so are the metrics. Scores of reasoning steps are in `process_rewards`, several scorers in
`ensembles`. Section 09 of the explainer tells the story.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError, DataError
from posttrain.objectives.tokens import check_shapes, detached, masked

PerRow = dict[str, Tensor]
"""Metrics with one entry per row, detached."""


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    centering: float = 0.0,
    label_smoothing: float | Tensor = 0.0,
) -> tuple[Tensor, PerRow]:
    """Bradley-Terry loss of a pair of scores, with the additions that are in use.

        Δ = r_w - r_l - m        L = -(1 - ε) log σ(Δ) - ε log σ(-Δ) + c · (r_w + r_l)²

    Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1. Margin: Llama 2 (arXiv 2307.09288), eq. 2.
    Centring: Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2. Smoothing: Wang et al. 2024 (arXiv 2401.06080).

    chosen, rejected: [B] scores. margin: [B], not negative, how much better the annotator found the chosen answer;
        None: 0. centering: c, which ties down the constant that comparisons leave free; 0.01 is usual.
    label_smoothing: ε, the probability that the label is wrong: a number from 0 to 0.5, or [B] with one per pair (1
        minus the share of votes for the chosen answer makes it a soft label).

    Returns the loss [B], and per pair `accuracy`, `margin` (r_w - r_l), `reward_chosen`, `reward_rejected`. Raises
    ConfigError for a negative centering or an ε outside its range.

    Equal scores give log 2; with centring 0, adding a constant to both scores changes nothing. With ε = 0.1 the loss is
    least at Δ = log 9. Section 09.
    """
    check_shapes("B", chosen, rejected)
    gap = chosen - rejected
    if margin is not None:
        check_shapes("B", chosen, margin)
    beyond = gap if margin is None else gap - margin
    loss = -F.logsigmoid(beyond)
    if isinstance(label_smoothing, Tensor):
        check_shapes("B", chosen, label_smoothing)
    elif not 0 <= label_smoothing <= 0.5:
        raise ConfigError(
            f"label_smoothing = {label_smoothing}: the share of wrong labels, from 0 (none) to 0.5 (they say nothing). "
            "If more than half are wrong, chosen and rejected are swapped."
        )
    if isinstance(label_smoothing, Tensor) or label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-beyond)
    if centering < 0:
        raise ConfigError(f"centering = {centering}: a negative weight would drive scores away from 0; 0.01 is usual.")
    if centering:
        loss = loss + centering * (chosen + rejected).square()
    return loss, detached(accuracy=(gap > 0).to(gap.dtype), margin=gap, reward_chosen=chosen, reward_rejected=rejected)


def davidson(first: Tensor, second: Tensor, outcome: Tensor, log_tie: Tensor) -> tuple[Tensor, PerRow]:
    """Bradley-Terry with ties: negative log-likelihood of "first", "tie" or "second".

        P(first) ∝ exp(r_1)        P(second) ∝ exp(r_2)        P(tie) ∝ ν · exp((r_1 + r_2) / 2)

    Davidson 1970.

    first, second: [B] scores. outcome: [B], 1 where the first won, 0 where the second did, 1/2 for a tie.
    log_tie: scalar tensor, log ν, usually learned with the scores; -inf would forbid ties.

    Returns the loss [B], and per pair `margin` (r_1 - r_2) and `tie` (the probability of one). Raises DataError for
    another outcome.

    Scores (1, 0) with ν = 1 have the probabilities 0.506480 (first), 0.186324 (second) and 0.307196 (tie). Section 09.
    """
    check_shapes("B", first, second, outcome)
    if not bool(((outcome == 0) | (outcome == 0.5) | (outcome == 1)).all()):
        raise DataError("davidson: an outcome is neither 1 (the first won), 0 (the second did) nor 0.5 (a tie).")
    half = (first - second) / 2
    logp = torch.log_softmax(torch.stack([half, log_tie.expand_as(half), -half]), 0)
    which = (2 - 2 * outcome).to(torch.long)
    loss = -logp.gather(0, which[None])[0]
    return loss, detached(margin=first - second, tie=logp[1].exp())


def careless_bradley_terry(
    first: Tensor, second: Tensor, label: Tensor, *, error: float = 0.1
) -> tuple[Tensor, PerRow]:
    """Bradley-Terry loss of a judge who sometimes answers at random: no single label can cost without bound.

        P = (1 - e) · σ(r_1 - r_2) + e/2        L = -μ log P - (1 - μ) log(1 - P)

    Christiano et al. 2017 (arXiv 1706.03741), section 2.2.3, where r is the sum of a clip's rewards and e = 0.1.

    first, second: [B] scores. label: μ, [B], 1 where the first was preferred, 0 where the second was, 1/2 for a tie.
    error: e, the share of random answers, from 0 to below 1.

    Returns the loss [B], and per pair `accuracy` (a tie counts half, as do equal scores) and `margin` (r_1 - r_2).
    Raises ConfigError for another e.

    Sums 0.8 and 0.4 with the first preferred cost 0.529637, with e = 0 0.513015; however wrong, never more than
    -log 0.05 = 2.9957. Section 07.
    """
    check_shapes("B", first, second, label)
    if not 0 <= error < 1:
        raise ConfigError(f"error = {error}: the share of random answers, from 0 to below 1; 0.1 is usual.")
    gap, label = first - second, label.to(first.dtype)
    floor = gap.new_full((), error / 2).log()  # -inf without errors
    wins, loses = (torch.logaddexp(F.logsigmoid(x) + math.log1p(-error), floor) for x in (gap, -gap))
    said = torch.heaviside(gap, gap.new_tensor(0.5))
    return -label * wins - (1 - label) * loses, detached(accuracy=1 - (label - said).abs(), margin=gap)


def top_choice(scores: Tensor, mask: Tensor, best: Tensor) -> tuple[Tensor, PerRow]:
    """Loss of picking the best of K, where nothing is said about the others.

        L = log Σ_j exp(r_j) - r_best

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 1; the first factor of Plackett-Luce.

    scores, mask: [P, K], in any order. best: [P], which answer was chosen; it stands under the mask.

    Returns the loss [P], and per prompt `accuracy`: whether no other answer has a higher score.

    Rewards (1, 0, -1, 0.5) with the first chosen have loss 0.746567. Section 08.
    """
    check_shapes("PK PK P", scores, mask, best)
    floored = torch.where(mask, scores, torch.finfo(scores.dtype).min)
    picked = floored.gather(1, best[:, None])[:, 0]
    loss = torch.logsumexp(floored, 1) - picked
    return loss, detached(accuracy=(picked >= floored.amax(1)).to(loss.dtype))


def plackett_luce(scores: Tensor, mask: Tensor) -> tuple[Tensor, PerRow]:
    """Negative log-likelihood of a ranking: the best is chosen among all, the next among the rest, and so on.

        L = Σ_k [ log Σ_{j≥k} exp(r_j) - r_k ]

    Luce 1959, Plackett 1975.

    scores: [P, K], best first. mask: [P, K], true where an answer stands; each row's answers come first.

    Returns the loss [P], and per ranking `accuracy`: the share of its pairs that the scores order as it does.

    For two answers it is Bradley-Terry; scores (2, 1, 0) have loss 0.720868. Section 09.
    """
    check_shapes("PK", scores, mask)
    # Padding stands last and is summed first: a finite floor is exp'd to 0 and, unlike -inf, has a gradient.
    floored = torch.where(mask, scores, torch.finfo(scores.dtype).min)
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

    Scores (2, 1, 0) have loss 0.251150. Section 08.
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

    Returns the loss [B], and per answer `accuracy` (of the sign) and `good_share`. One verdict on every token of the
    answer, as Cobbe et al. train, is `process` with the same label everywhere.

    Score 0 costs log 2. Section 20.
    """
    check_shapes("B", score, good)
    target = good.to(score.dtype)
    loss = F.binary_cross_entropy_with_logits(score, target, reduction="none")
    right = ((score > 0) == (target > 0.5)).to(score.dtype)
    return loss, detached(accuracy=right, good_share=target)


def calibration_error(gap: Tensor, *, bins: int = 10) -> tuple[Tensor, Tensor]:
    """Expected calibration error of a scorer's confidence in its own choices.

        p = σ(|Δ|)        ECE = Σ_b n_b/N · | mean right in b - mean p in b |

    Guo et al. 2017 (arXiv 1706.04599), eq. 3, with bins of one width over [1/2, 1].

    gap: [N], r_w - r_l of held-out pairs; the choice is right where it is positive (a gap of 0 is half right).
    bins: how many.

    Returns the error, a scalar from 0 to 1, and the table behind it [bins, 3]: pairs, mean confidence, share right (0
    where a bin is empty). No gradient.

    Four gaps of log 3, of which three are positive, have error 0: confidence 0.75, right 3 times in 4. Section 09.
    """
    check_shapes("N", gap)
    if bins < 1:
        raise ConfigError(f"bins = {bins}: a calibration curve needs at least one; 10 is usual.")
    gap = gap.detach()
    confidence, right = torch.sigmoid(gap.abs()), torch.heaviside(gap, gap.new_tensor(0.5))
    where = (2 * bins * (confidence - 0.5)).to(torch.long).clamp(max=bins - 1)
    count, p, good = (gap.new_zeros(bins).index_add(0, where, x) for x in (torch.ones_like(gap), confidence, right))
    error = (good - p).abs().sum() / count.sum().clamp(min=1)
    return error, torch.stack([count, p / count.clamp(min=1), good / count.clamp(min=1)], 1)
