"""Rejection sampling as weights: which of the answers that were drawn are imitated, and how much.

Draw several answers per prompt, score them, weigh them here, and take cross-entropy with these weights on the answers
(RAFT, ReST, rejection-sampling fine-tuning). A weight of 0 leaves an answer out: fold such weights into the mask before
averages are made, and multiply graded ones into the average. Bad answers are ignored and not pushed down. Section 18 of
the explainer tells the story, with the distribution that best-of-n has in closed form.
"""

import math

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, detached


def keep_best(reward: Tensor, group: Tensor, *, k: int = 1) -> Tensor:
    """The k best answers of every prompt: RAFT, and rejection sampling as Llama 2 and 3 do it.

        w_i = [ fewer than k answers of the prompt come before i when sorted by reward ]

    Dong et al. 2023 (arXiv 2304.06767), algorithm 1, with k = 1.

    reward: [N], one per answer. group: [N] ids of prompts. k: at least 1, else ConfigError. Of equals the first rows
    are kept, so that a prompt never gives more than k.

    Returns [N], 1 or 0. Bad answers of hopeless prompts are kept too: multiply by `keep_above`. Rewards (.7, .3, .5)
    of one prompt give (1, 0, 0). Section 18.
    """
    check_shapes("N", reward, group)
    _positive("k", k)
    order = torch.argsort(reward, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    _, ids, size = torch.unique(group, return_inverse=True, return_counts=True)
    first = (size.cumsum(0) - size)[ids[order]]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first
    return (rank < k).to(reward.dtype)


def keep_overall(reward: Tensor, *, k: int) -> Tensor:
    """The k best answers of the whole step, whatever their prompts.

        w_i = [ fewer than k answers of the step come before i when sorted by reward ]

    One of the rules that Lambert's "RLHF Book" (arXiv 2504.12501) compares in its chapter on rejection sampling.

    reward: [N], one per answer. k: at least 1, else ConfigError.

    Returns [N], 1 or 0; of equals the first rows are kept. It starves hard prompts: with rewards (.9, .8) and (.5, .4)
    of two prompts and k = 2 the second prompt has nothing left. Section 18.
    """
    check_shapes("N", reward)
    kept = torch.zeros_like(reward)
    kept[torch.argsort(reward, descending=True, stable=True)[: _positive("k", k)]] = 1
    return kept


def keep_above(reward: Tensor, *, threshold: float) -> Tensor:
    """Every answer above a threshold: ReST, whose rounds raise it, and ReST-EM and STaR, where a reward of 1 is right.

        w_i = [ r_i > τ ]

    Gulcehre et al. 2023 (arXiv 2308.08998), section 3; Singh et al. 2023 (arXiv 2312.06585).

    reward: [N], one per answer. threshold: τ, which an answer must exceed.

    Returns [N], 1 or 0. With 0/1 rewards and τ = 1/2 cross-entropy with these weights is REINFORCE without a baseline.
    Section 18.
    """
    check_shapes("N", reward)
    return (reward > threshold).to(reward.dtype)


def reward_weighted(reward: Tensor, group: Tensor, *, temperature: float) -> Tensor:
    """Reward-weighted regression: every answer counts, the better ones more.

        w_i = e^{r_i / τ} / Σ_{j of its prompt} e^{r_j / τ}

    Peters and Schaal 2007, "Reinforcement learning by reward-weighted regression".

    reward: [N], one per answer. group: [N] ids of prompts. temperature: τ, positive, else ConfigError; towards 0 it is
    `keep_best`, towards infinity plain fine-tuning on all answers.

    Returns [N]; the weights of a prompt add up to 1. Rewards (0, log 3) with τ = 1 give (1/4, 3/4). Section 18.
    """
    scaled = _below_best(reward, group, _positive("temperature", temperature)).exp()
    _, ids = torch.unique(group, return_inverse=True)
    total = torch.zeros_like(scaled).index_add(0, ids, scaled)
    return scaled / total[ids]


def rso_acceptance(reward: Tensor, group: Tensor, *, beta: float) -> Tensor:
    """Statistical rejection sampling: how likely a candidate is accepted as a draw from the tilted optimum.

        P(accept y_i) = exp( (r_i - r_max) / β )        so that accepted answers follow π e^{r/β} / Z

    Liu et al. 2023 (arXiv 2309.06657), algorithm 1; r_max is the best of the candidates that are left, so call it again
    after each accepted one. Pairs of accepted answers then train `dpo` or `hinge`.

    reward: [N], one per candidate. group: [N] ids of prompts. beta: positive, else ConfigError; 0.5 in the paper.

    Returns [N] in (0, 1]; the best candidate of a prompt is always accepted. A reward lower by β is accepted with
    probability 1/e. Section 18.
    """
    return _below_best(reward, group, _positive("beta", beta)).exp()


def quantile_reward(reward: Tensor, anchor_reward: Tensor) -> Tensor:
    """BOND's reward: the logarithm of the share of reference answers that an answer beats or equals.

        q = log( (1 + #{k: r(z_k) ≤ r(y)}) / (K + 1) )        z_k ~ π_ref

    Sessa et al. 2024 (arXiv 2407.14622), section 4, with one added above and below so that it stays finite.

    reward: [N], of the policy's answers. anchor_reward: [N, K], of the reference's answers to the same prompts.

    Returns [N], at most 0. Only the order of rewards enters. Better than all gives 0, than 1 of 3 gives log(1/2).
    Section 18.
    """
    check_shapes("N NK", reward, anchor_reward)
    beaten = (anchor_reward <= reward[:, None]).sum(1).to(reward.dtype)
    return torch.log1p(beaten) - math.log(anchor_reward.shape[1] + 1)


def bond(
    logp: Tensor,
    ref_logp: Tensor,
    quantile: Tensor,
    best_logp: Tensor,
    *,
    n: int,
    jeffreys: float = 0.5,
    baseline: Tensor | float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """BOND: train the policy to write at once what the best of n reference answers would be.

        L = -(1 - β) log π(y_best) - β (n - 1) sg[ q - log(π(y)/π_ref(y)) / (n - 1) - b ] · log π(y)

    Sessa et al. 2024 (arXiv 2407.14622), section 4: the gradient of (1 - β) KL(π_BoN ‖ π) + β KL(π ‖ π_BoN), but for
    the correction for ties.

    logp, ref_logp: [N] log-probability of the policy's own answers y, summed. quantile: [N], q of `quantile_reward`.
    best_logp: [N], log π of the best of n answers of the reference. n: at least 2, else ConfigError. jeffreys: β in
    [0, 1], else ConfigError; 0 is fine-tuning on best-of-n samples. baseline: b, a number or [N] without a graph.

    Returns the surrogate [N], whose gradient counts and whose value does not, and per answer `reward` (q) and `kl`.
    On the reference itself, with one q for all and b = q, the second term has no gradient. Section 18.
    """
    check_shapes("N", logp, ref_logp, quantile, best_logp)
    if n < 2:
        raise ConfigError(f"n = {n}: the best of one answer is the reference itself. Use 2 or more.")
    if not 0 <= jeffreys <= 1:
        raise ConfigError(f"jeffreys = {jeffreys}: the share of the backward KL lies between 0 and 1; 0.5 is usual.")
    ratio = (logp - ref_logp).detach()
    gain = (n - 1) * (quantile.detach() - baseline) - ratio
    return -(1 - jeffreys) * best_logp - jeffreys * gain * logp, detached(reward=quantile, kl=ratio)


def _below_best(reward: Tensor, group: Tensor, scale: float) -> Tensor:
    """(r - the best r of the same prompt) / scale."""
    check_shapes("N", reward, group)
    _, ids = torch.unique(group, return_inverse=True)
    best = torch.full_like(reward, -torch.inf).scatter_reduce(0, ids, reward, "amax")
    return (reward - best[ids]) / scale


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{name} = {value}: must be positive.")
    return value
