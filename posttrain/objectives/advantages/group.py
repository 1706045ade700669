"""Advantages from the rewards of one prompt's answers: the group is its own baseline.

All functions take the rewards of answers and the id of the prompt each belongs to; groups may be of any size and need
not stand together. A reward that is NaN was not given: that answer is left out of its group, as if it had not been
sampled, and its own advantage is 0. A group of one has no baseline and gets advantage 0, as does a group whose rewards
are all equal, exactly. Sections 11, 23 and 24 of the book tell the story; how an advantage is spread over tokens is the
business of `estimate`.
"""

import torch
from torch import Tensor

from posttrain.errors import DataError
from posttrain.objectives.tokens import check_shapes, masked


def center(reward: Tensor, group: Tensor) -> Tensor:
    """Reward minus the group's mean.

        A_i = r_i - mean(r)

    Dr. GRPO: Liu et al. 2025 (arXiv 2503.20783), eq. 3.

    reward: [N], one per answer; NaN where none was given. group: [N] ids of prompts.

    Returns [N]; the advantages of a group add up to 0.

    Rewards (1, 0, 0, 1, 0, 0, 0, 0) give 0.75 and -0.25. Section 24.
    """
    deviation, ids, size = _deviation(reward, group)
    return masked(deviation - (_sum(deviation, ids, size) / size)[ids], ~reward.isnan())


def zscore(reward: Tensor, group: Tensor, *, eps: float = 1e-4, ddof: int = 1) -> Tensor:
    """Reward minus the group's mean, over the group's standard deviation.

        A_i = (r_i - mean(r)) / (std(r) + ε)

    GRPO: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2.

    reward: [N], NaN where none was given. group: [N] ids of prompts.
    eps: keeps a group of nearly equal rewards from being blown up; 1e-4 in TRL, 1e-6 in verl, 1e-9 in OpenRLHF.
    ddof: the variance is divided by the size of the group less this: 1 for the sample's, as all libraries have it, 0
        for the population's.

    Returns [N]: unchanged by adding a constant to all rewards and, up to eps, by scaling them.

    Rewards (1, 0, 0, 1, 0, 0, 0, 0) give 1.620 and -0.540; with ddof = 0 1.732 and -0.577. Section 23.
    """
    return center(reward, group) / (group_std(reward, group, ddof=ddof) + eps)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """Reward minus the mean of the *other* answers: an unbiased baseline.

        A_i = r_i - 1/(G-1) Σ_{j≠i} r_j = G/(G-1) · (r_i - mean(r))

    RLOO: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), eq. 8.

    reward: [N], NaN where none was given. group: [N] ids of prompts. Returns [N].

    Rewards (1, 0, 0, 1, 0, 0, 0, 0) give 0.857 and -0.286. Section 11.
    """
    _, ids, size = _deviation(reward, group)
    return center(reward, group) * (size / (size - 1).clamp(min=1))[ids]


def mean_ratio(reward: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Reward minus the group's mean, over that mean: hard prompts weigh as maximum likelihood would weigh them.

        A_i = (r_i - mean(r)) / (mean(r) + ε)

    MaxRL: Tajwar et al. 2026 (arXiv 2602.02710). With rewards 0 and 1 its expected gradient is that of log p, the log
    of the success rate, with the series -Σ_j (1-p)^j / j cut off before j = G.

    reward: [N], NaN where none was given, and otherwise not negative (a success rate is what it divides by). group: [N]
        ids of prompts. eps: keeps the division finite.

    Returns [N]; 0 in a group without any success. Raises DataError for a negative reward.

    Rewards (1, 0, 0, 1, 0, 0, 0, 0) give 3 and -1. Section 24.
    """
    if bool((reward < 0).any()):
        least = float(reward.nan_to_num().min())
        raise DataError(
            f"mean_ratio got the reward {least}: it divides by the group's mean reward as a success "
            "rate, so rewards must not be negative. Use 0 and 1, or another advantage."
        )
    _, ids, size = _deviation(reward, group)
    given = ~reward.isnan()
    mean = _sum(masked(reward, given), ids, size) / size
    return masked(center(reward, group) / (mean[ids] + eps), given)


def length_weighted(reward: Tensor, group: Tensor, length: Tensor) -> Tensor:
    """Reward minus the group's mean reward *per token*: the baseline of least variance if all tokens are equally noisy.

        A_i = r_i - Σ_j |y_j| r_j / Σ_j |y_j|

    OPO: Hao et al. 2025 (arXiv 2505.23585). The baseline of least variance weighs answers by their squared gradient,
    which grows with the number of tokens.

    reward: [N], NaN where none was given. group: [N] ids of prompts. length: [N] tokens of each answer; an answer
        without tokens has no say.

    Returns [N]; their mean weighted by length is 0 in every group.

    Rewards (1, 0) of answers with 1 and 3 tokens give 0.75 and -0.25. Section 24.
    """
    deviation, ids, size = _deviation(reward, group)
    check_shapes("N", reward, length)
    tokens = masked(length.to(reward.dtype), ~reward.isnan())
    baseline = _sum(tokens * deviation, ids, size) / _sum(tokens, ids, size).clamp(min=1)
    return masked(deviation - baseline[ids], ~reward.isnan())


def group_std(reward: Tensor, group: Tensor, *, ddof: int = 1) -> Tensor:
    """The standard deviation of each answer's group.

        σ = √( Σ_j (r_j - mean(r))² / (G - ddof) )

    reward: [N], NaN where none was given. group: [N] ids of prompts. ddof: see `zscore`, whose divisor this is
    (Shao et al. 2024, arXiv 2402.03300).

    Returns [N], 0 for a group of one.

    Rewards (1, 0, 0, 1, 0, 0, 0, 0) give 0.463, and with ddof = 0 0.433. Section 23.
    """
    centered = center(reward, group)
    _, ids, size = _deviation(reward, group)
    variance = _sum(centered.square(), ids, size) / (size - ddof).clamp(min=1)
    return masked(torch.where(variance > 0, variance, 1.0).sqrt(), variance > 0)[ids]  # no infinite slope at 0


def mixed(reward: Tensor, group: Tensor) -> Tensor:
    """Which answers lie in a group whose rewards differ: those that a group baseline can learn from.

        mixed_i = max(r) > min(r)

    DAPO's dynamic sampling keeps these: Yu et al. 2025 (arXiv 2503.14476), section 3.2.

    reward: [N], NaN where none was given. group: [N] ids of prompts. Returns [N], boolean; false for an answer without
    reward. A group of one is not mixed. Section 24.
    """
    deviation, ids, size = _deviation(reward, group)
    return (_sum(deviation, ids, size) > 0)[ids] & ~reward.isnan()


def _sum(x: Tensor, ids: Tensor, size: Tensor) -> Tensor:
    return torch.zeros_like(size).index_add(0, ids, x)


def _deviation(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reward above the group's smallest, [N], 0 where none was given; dense ids [N]; rewards in each group [K].

    Above the smallest, so that equal rewards give exact zeros and no rounding that a division by their std inflates.
    """
    check_shapes("N", reward, group)
    given = ~reward.isnan()
    ids = torch.unique(group, return_inverse=True)[1]
    size = torch.bincount(ids, weights=given.to(reward.dtype)).to(reward.dtype)
    least = torch.full_like(size, torch.inf).scatter_reduce(0, ids, torch.where(given, reward, torch.inf), "amin")
    return masked(reward - least[ids], given), ids, size
