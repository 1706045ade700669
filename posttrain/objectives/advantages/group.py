"""Advantages from the rewards of one prompt's answers: the group is its own baseline.

All functions take the rewards of answers and the id of the prompt each belongs to; groups may be of any size and need
not stand together. A group of one has no baseline and gets advantage 0, as does a group whose rewards are all equal,
exactly. Section 23 of the explainer tells the story; how an advantage is spread over tokens is `estimate`'s business.
"""

import torch
from torch import Tensor

from posttrain.errors import DataError
from posttrain.objectives.tokens import check_shapes


def center(reward: Tensor, group: Tensor) -> Tensor:
    """Reward minus the group's mean.

        A_i = r_i - mean(r)

    Dr. GRPO: Liu et al. 2025 (arXiv 2503.20783), eq. 3.

    reward: [N], one per answer. group: [N] ids. Returns [N]; the advantages of a group add up to 0.

    Rewards (1, 0, 0, 1, 0, 0, 0, 0) give 0.75 and -0.25.
    """
    deviation, ids, size = _deviation(reward, group)
    return deviation - (_sum(deviation, ids, size) / size)[ids]


def zscore(reward: Tensor, group: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Reward minus the group's mean, over the group's standard deviation.

        A_i = (r_i - mean(r)) / (std(r) + ε)        std with n - 1

    GRPO: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2.

    reward: [N]. group: [N] ids. eps: 1e-4 as in TRL; verl uses 1e-6, OpenRLHF 1e-9. Returns [N].

    Unchanged by adding a constant to all rewards, and, up to eps, by scaling them. The rewards of `center`'s example
    give 1.620 and -0.540.
    """
    centered = center(reward, group)
    ids, size = _members(group, reward.dtype)
    std = (_sum(centered.square(), ids, size) / (size - 1).clamp(min=1)).sqrt()
    return centered / (std[ids] + eps)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """Reward minus the mean of the *other* answers: RLOO's unbiased baseline.

        A_i = r_i - 1/(G-1) Σ_{j≠i} r_j = G/(G-1) · (r_i - mean(r))

    Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), eq. 8.

    reward: [N]. group: [N] ids. Returns [N]. The rewards of `center`'s example give 0.857 and -0.286.
    """
    ids, size = _members(group, reward.dtype)
    return center(reward, group) * (size / (size - 1).clamp(min=1))[ids]


def mean_ratio(reward: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Reward minus the group's mean, over that mean: hard prompts weigh as maximum likelihood would weigh them.

        A_i = (r_i - mean(r)) / (mean(r) + ε)

    MaxRL: Tajwar et al. 2026 (arXiv 2602.02710).

    reward: [N], not negative (a success rate is what it divides by): DataError otherwise. group: [N] ids.
    Returns [N]; 0 in a group without any success. The rewards of `center`'s example give 3 and -1.
    """
    if bool((reward < 0).any()):
        raise DataError(
            f"mean_ratio got the reward {float(reward.min())}: it divides by the group's mean reward as a success "
            "rate, so rewards must not be negative. Use 0 and 1, or another advantage."
        )
    ids, size = _members(group, reward.dtype)
    return center(reward, group) / ((_sum(reward, ids, size) / size)[ids] + eps)


def mixed(reward: Tensor, group: Tensor) -> Tensor:
    """Which answers lie in a group whose rewards differ: those that a group baseline can learn from. [N], boolean."""
    deviation, ids, size = _deviation(reward, group)
    return (_sum(deviation, ids, size) > 0)[ids]


def _members(group: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Dense ids [N] and the size of each group [K]."""
    ids = torch.unique(group, return_inverse=True)[1]
    return ids, torch.bincount(ids).to(dtype)


def _sum(x: Tensor, ids: Tensor, size: Tensor) -> Tensor:
    return torch.zeros_like(size).index_add(0, ids, x)


def _deviation(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reward above the group's smallest, so that equal rewards give exact zeros and no rounding that a std inflates."""
    check_shapes("N", reward, group)
    ids, size = _members(group, reward.dtype)
    least = torch.full_like(size, torch.inf).scatter_reduce(0, ids, reward, "amin")
    return reward - least[ids], ids, size
