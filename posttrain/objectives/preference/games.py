"""Preferences as a game, and learning from pairs that the policy writes itself.

What makes online DPO, self-rewarding, SPIN and iterated DPO is where the pairs come from: draw several answers, let
somebody compare them (`best_and_worst`, `in_order`), and take a loss of `pairs`. The losses here belong to a game in
which a policy plays another one and the win rate is the reward. Section 17 of the explainer tells the story.
"""

import torch
from torch import Tensor

from posttrain.objectives.preference._pair import PerPair, implicit_rewards, watched
from posttrain.objectives.preference.pairs import dpo
from posttrain.objectives.tokens import answers, check_shapes, detached, masked


def sppo(logp: Tensor, ref_logp: Tensor, win_rate: Tensor, *, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Self-play preference optimization: regress each log-ratio to how often the answer wins.

        L = ( u - (P(y ≻ π_t) - ½) / β )²        u = log π(y) - log π_t(y)

    Wu et al. 2024 (arXiv 2405.00675), section 3, with β = 1/η: one step of multiplicative weights.

    logp, ref_logp: [N] log-probability of the whole answer, summed; the reference is the policy of the last round, π_t.
    win_rate: [N] in [0, 1], against answers of π_t. beta: 0.001 in the paper.

    Returns the loss [N] and per answer `reward` (β u). An answer that wins half of its games stays where it is. One
    round is one step of an iteration: run once, it is not SPPO. Section 17.
    """
    check_shapes("N", logp, ref_logp, win_rate)
    ratio = logp - ref_logp
    return (ratio - (win_rate - 0.5) / beta).square(), detached(reward=beta * ratio)


def sppo_hard(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> tuple[Tensor, PerPair]:
    """SPPO on a pair whose winner is taken to win always and whose loser never.

        L = (u_w - 1/(2β))² + (u_l + 1/(2β))²        u = log π - log π_t

    Wu et al. 2024 (arXiv 2405.00675), section 3.

    chosen, rejected, ref_chosen, ref_rejected: [B], metrics as `dpo`; the reference is the policy of the last round.
    beta: 0.001 in the paper.

    Least where u_w = 1/(2β) = -u_l, so both answers have a place to go to; half of the squared distance from IPO's line
    h = 1/β is a lower bound. Section 17.
    """
    good, bad = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    target = 1 / (2 * beta)
    loss = (chosen - ref_chosen - target).square() + (rejected - ref_rejected + target).square()
    return loss, watched(good, bad)[1]


def nash_md(
    logp: Tensor, ref_logp: Tensor, mask: Tensor, win_rate: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Nash-MD as a policy gradient: win against a mixture of oneself and the reference, on a leash.

        L = -sg[ P(y ≻ y') - ½ - β (log π(y) - log π_ref(y)) ] · log π(y)

    Munos et al. 2023 (arXiv 2312.00886), section 7; y is drawn from π and y' from `mixture_logits`.

    logp, ref_logp, mask: [N, T] of the policy's answers y. win_rate: [N], P(y ≻ y') from a judge or preference model;
    ½ is a baseline. beta: strength of the leash.

    Returns the surrogate [N], whose gradient is the policy gradient (its value means nothing), and per answer
    `win_rate` and `kl`, the log-ratio in nats. An answer that wins half of its games at the reference has no gradient.
    Section 17.
    """
    check_shapes("NT NT NT N", logp, ref_logp, mask, win_rate)
    total, ratio = answers(logp, mask)[0], masked(logp - ref_logp, mask).sum(1).detach()
    gain = win_rate.detach() - 0.5 - beta * ratio
    return -gain * total, detached(win_rate=win_rate, kl=ratio)


def xpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    drawn_by_reference: Tensor,
    beta: float,
    alpha: float,
) -> tuple[Tensor, PerPair]:
    """Exploratory preference optimization: online DPO that moves away from what the reference would say.

        L = -log σ(β h) + α log π(ỹ)        ỹ ~ π_ref

    Xie et al. 2024 (arXiv 2405.21046). With α > 0 answers of the reference are pushed down: optimism about the others.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and metrics as `dpo`; of each pair one answer was drawn from
    the policy and one from the reference. drawn_by_reference: [B], log π of the latter. alpha: 0 is online DPO, TRL
    uses 1e-5.

    Returns the loss [B]; at the reference log 2 + α log π(ỹ). Section 17.
    """
    loss, metrics = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    check_shapes("B", loss, drawn_by_reference)
    return loss + alpha * drawn_by_reference, metrics


def in_order(first: Tensor, second: Tensor, first_wins: Tensor) -> tuple[Tensor, Tensor]:
    """Two answers per prompt as chosen and rejected, once somebody has said which is better.

        (y_w, y_l) = (y_1, y_2) if y_1 ≻ y_2 else (y_2, y_1)

    Guo et al. 2024 (arXiv 2402.04792): online DPO draws both from the policy and asks a judge.

    first, second: [B, ...] anything known of the two answers, such as log-probabilities. first_wins: [B] bool.

    Returns (chosen, rejected), shaped as given. (1, 2) and (3, 4) with verdicts (true, false) give (1, 4) and (3, 2).
    Section 17.
    """
    if first.shape != second.shape or first_wins.shape != first.shape[:1]:
        check_shapes("B B B", first, second, first_wins)
    wins = first_wins.bool().reshape(-1, *[1] * (first.dim() - 1))
    return torch.where(wins, first, second), torch.where(wins, second, first)


def best_and_worst(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs from several scored answers per prompt: the best against the worst.

        y_w = argmax_i r_i        y_l = argmin_i r_i        within each prompt

    The pairs of iterated DPO and of self-rewarding models: Yuan et al. 2024 (arXiv 2401.10020), section 2; of correct
    against wrong solutions: Pang et al. 2024 (arXiv 2404.19733), section 2.

    reward: [N], one per answer. group: [N] ids of prompts.

    Returns rows (chosen, rejected), each [P'] and ordered by group id. Prompts whose answers all have one reward are
    left out; of equals the first row is taken. Rewards (1, 3, 2) of one prompt give rows 1 and 0. Section 17.
    """
    check_shapes("N", reward, group)
    best, worst = _first_of_each(reward, group, descending=True), _first_of_each(reward, group, descending=False)
    differ = reward[best] > reward[worst]
    return best[differ], worst[differ]


def _first_of_each(reward: Tensor, group: Tensor, *, descending: bool) -> Tensor:
    """The row that comes first in each group when its rows are sorted by reward; rows in their order among equals."""
    order = torch.argsort(reward, descending=descending, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    size = torch.unique(group, return_counts=True)[1]
    return order[size.cumsum(0) - size]
