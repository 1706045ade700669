"""Rewards on a known scale: shifted, stretched, bounded, and freed of what length alone explains.

A learned score has no zero and no unit, and the leash to the reference policy is as strong as its unit makes it:
doubling all scores halves β. Statistics are arguments, from samples of the reference policy or kept while running; a
state is a plain dict that the loop owns and saves. The z-score over the answers to one prompt is an advantage and
stands in `advantages`. Sections 09 and 15 of the explainer tell the story.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked

State = dict[str, float]


def rescale(reward: Tensor, *, mean: float, std: float, to_mean: float = 0.0, to_std: float = 1.0) -> Tensor:
    """Rewards moved from one mean and deviation to another by a gain and a bias.

        r' = g · r + b,   g = σ' / σ,   b = μ' - g · μ

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.1, where the reference policy's rewards get mean 0 and variance 1.
    Stiennon et al. 2020 (arXiv 2009.01325) shift only, so that reference summaries score 0: std = to_std = 1.

    reward: any shape. mean, std: of the scores on the samples that fix the scale. to_mean, to_std: what those get.

    Returns the shape of reward. Raises ConfigError where std is not positive: all samples scored the same.

    With mean 3 and std 2 a reward of 7 becomes 2. Section 09.
    """
    if not std > 0:
        raise ConfigError(f"std = {std}: all samples that should fix the scale have one score. Take others.")
    gain = to_std / std
    return gain * reward + (to_mean - gain * mean)


def update_moments(state: State, reward: Tensor, mask: Tensor) -> State:
    """Mean and deviation of everything seen so far, after one more batch.

        n = n_a + n_b      μ = μ_a + δ · n_b / n      M = M_a + M_b + δ² · n_a · n_b / n      δ = μ_b - μ_a

    Chan, Golub and LeVeque 1979. The deviation is √(M / n).

    state: {"count": n, "mean": μ, "sum_sq": M}, at the start all 0; it is not changed. reward, mask: [N], of a batch.

    Returns the new state; unchanged where the mask is empty. Batches may be cut anywhere and come in any order.

    The rewards 1, 3 after nothing give count 2, mean 2, sum_sq 2. Section 14.
    """
    check_shapes("N", reward, mask)
    seen = reward[mask].double()
    if not len(seen):
        return dict(state)
    mean, old, new = float(seen.mean()), state["count"], float(len(seen))
    count, delta = old + new, mean - state["mean"]
    spread = float((seen - mean).square().sum())
    return {
        "count": count,
        "mean": state["mean"] + delta * new / count,
        "sum_sq": state["sum_sq"] + spread + delta * delta * old * new / count,
    }


def moments_std(state: State, *, ddof: int = 0) -> float:
    """Standard deviation of everything that `update_moments` has seen.

        σ = √(M / (n - ddof))

    Chan, Golub and LeVeque 1979. state: the dict of `update_moments` (plain numbers, no shapes). ddof: 0 divides by n,
    since the batches are many; 1, the unbiased variance, is TRL's choice.

    Returns a number; 0 where n is not above ddof. After the rewards 1 and 3 it is 1, with ddof 1 √2. Section 14.
    """
    free = state["count"] - ddof
    return (state["sum_sq"] / free) ** 0.5 if free > 0 else 0.0


def clip_reward(reward: Tensor, limit: float) -> Tensor:
    """Rewards cut to an interval around 0, so that one freak score cannot rule a step.

        r' = min(max(r, -c), c)

    Engstrom et al. 2020 (arXiv 2005.12729) list it among the code-level tricks that PPO owes its results to; OpenRLHF
    clips at 10 (Hu et al. 2024, arXiv 2405.11143).

    reward: any shape. limit: c > 0. Returns the shape of reward; no gradient beyond the edges.

    At limit 5, the rewards -7 and 4 become -5 and 4. Section 14.
    """
    if not limit > 0:
        raise ConfigError(f"limit = {limit}: must be positive; a limit of 0 would make all rewards equal.")
    return reward.clamp(-limit, limit)


def preference_as_reward(reward: Tensor, references: Tensor) -> Tensor:
    """The probability of beating the reference policy's answers, as a bounded reward.

        r' = (1/R) Σ_j σ(r - ref_j)

    PAR: Fu et al. 2025 (arXiv 2502.18770). It rises fast while an answer is worse than usual and levels off after; the
    logarithm of one such term is LSC, see `all_good`.

    reward: [N] Bradley-Terry scores. references: [N, R], of R answers of the reference policy to the same prompt.

    Returns [N], between 0 and 1. A score equal to its only reference gives 1/2. Section 15.
    """
    check_shapes("N NR", reward, references)
    return torch.sigmoid(reward[:, None] - references).mean(1)


def length_slope(reward: Tensor, length: Tensor, mask: Tensor) -> Tensor:
    """How much score one more token brings on average: the slope of the least-squares line.

        b = Σ (|y| - mean |y|) · r / Σ (|y| - mean |y|)²

    Singhal et al. 2023 (arXiv 2310.03716) show how much of a learned reward is length. Subtract with `without_length`.

    reward, length, mask: [N], samples of the reference policy; those outside the mask are left out.

    Returns a scalar; 0 where all lengths are equal. A statistic of the whole set: make it once, then pass it on.

    Rewards (1, 2, 3) at lengths (10, 20, 30) give 0.1. Section 15.
    """
    check_shapes("N", reward, length, mask)
    length = masked(length.to(reward.dtype), mask)
    apart = masked(length - length.sum() / mask.sum(), mask)
    spread = apart.square().sum()
    return (apart * masked(reward, mask)).sum() / torch.where(spread > 0, spread, torch.inf)


def without_length(reward: Tensor, length: Tensor, *, slope: Tensor | float, at: float) -> Tensor:
    """Rewards as they would be if every answer had one length.

        r' = r - b · (|y| - L)

    Singhal et al. 2023 (arXiv 2310.03716) study such corrections; they remove the linear part of the bias alone.

    reward, length: [N]. slope: b of `length_slope`. at: L, the length at which a reward stays as it is.

    Returns [N]. With slope 0.1 at 20 tokens, a reward of 3 for 30 tokens becomes 2. Section 15.
    """
    check_shapes("N", reward, length)
    return reward - slope * (length - at)
