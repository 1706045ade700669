"""Advantages for an objective that counts the best of k answers: reward for a set, credit for its members.

Both formulas average over all sets of k that can be drawn from a group, without drawing any. `pass_at_k` is the
gradient of the expected best reward and speaks only to answers that would be the best of a set; `pass_at_k_zscore`
scales what an answer adds as GRPO scales a reward, and lets wrong answers be pushed down. Section 24 of the book tells
the story, section 21 the metric.
"""

from math import comb

import torch
from torch import Tensor

from posttrain.errors import ConfigError, DataError
from posttrain.objectives.tokens import check_shapes


def pass_at_k(reward: Tensor, group: Tensor, *, k: int | None = None) -> Tensor:
    """By how much an answer raises the best of a set of k, on average over the k - 1 others drawn from its group.

        A_i = E_J[ max(r_i, max_J r) - max_J r ],    J: k - 1 of the other G - 1 answers
        k = G: the best answer gets r_(1) - r_(2), all others 0

    Walder & Karkhanis 2025 (arXiv 2505.15201), whose leave-one-out form this is times G/k; Tang et al. 2025 (arXiv
    2503.19595) for k = G. Unbiased: what is subtracted does not depend on answer i.

    reward: [N], any numbers, NaN where none was given. group: [N] ids of prompts.
    k: size of a set, at least 2; None: the whole group, however large.

    Returns [N], never negative; 0 in a group with fewer than k rewards.

    Rewards (1, 0, 0) with k = 2 give (1, 0, 0), rewards (1, 1, 0) give (0.5, 0.5, 0), and (3, 1, 0) give (2.5, 0.5, 0).
    Section 24.
    """
    check_shapes("N", reward, group)
    if k is not None and k < 2:
        raise ConfigError(f"pass_at_k: k = {k}, but a best of fewer than 2 is no set. Use k >= 2, or leave_one_out.")
    advantage = torch.zeros_like(reward)
    for rows in _groups(reward, group):
        n = len(rows)
        size = n if k is None else k
        if n < max(size, 2):
            continue
        value, order = reward[rows].sort()
        chance = value.new_tensor([comb(m, size - 2) / comb(n - 1, size - 1) for m in range(n)])  # m is J's best
        gain = (value[:, None] - value) * chance
        advantage[rows[order]] = gain.tril(-1).sum(1)
    return advantage


def pass_at_k_zscore(reward: Tensor, group: Tensor, *, k: int) -> Tensor:
    """The chance that a set of k with this answer succeeds, less that of any set, over its standard deviation.

        ρ = 1 - C(w, k) / C(G, k)              sets of k that hold a right answer; w of G answers are wrong
        right:  A = (1 - ρ) / √(ρ (1 - ρ))
        wrong:  A = (1 - C(w-1, k-1) / C(G-1, k-1) - ρ) / √(ρ (1 - ρ))

    The analytic form of pass@k training: Chen et al. 2025 (arXiv 2508.10751).

    reward: [N], 1 for right and 0 for wrong, NaN where none was given. group: [N] ids of prompts. k: size of a set.

    Returns [N]; they add up to 0 in a group. 0 in a group with fewer than k rewards, or where all sets succeed or all
    fail. Raises DataError for other rewards than 0 and 1.

    k = 1 is `zscore` with ddof = 0: one right of four gives 1.732 and -0.577. k = 2 gives 1 and -1/3. Section 24.
    """
    check_shapes("N", reward, group)
    if k < 1:
        raise ConfigError(f"pass_at_k_zscore: k = {k} must be the size of a set of answers, at least 1.")
    other = reward[~reward.isnan() & (reward != 0) & (reward != 1)]
    if len(other):
        raise DataError(
            f"pass_at_k_zscore got the reward {float(other[0])}: it counts right and wrong answers, so rewards must be "
            "1 and 0. Round them, or use pass_at_k, which takes any reward."
        )
    advantage = torch.zeros_like(reward)
    for rows in _groups(reward, group):
        n, wrong = len(rows), int((reward[rows] == 0).sum())
        if wrong == n or wrong < k:
            continue
        fails = comb(wrong, k) / comb(n, k)
        scale = (fails * (1 - fails)) ** -0.5
        miss = fails - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)
        levels = reward.new_tensor((miss * scale, fails * scale))
        advantage[rows] = levels[(reward[rows] == 1).long()]
    return advantage


def _groups(reward: Tensor, group: Tensor) -> list[Tensor]:
    """The rows of each group that have a reward."""
    rows = (~reward.isnan()).nonzero()[:, 0]
    order = group[rows].argsort()
    sizes = torch.unique_consecutive(group[rows][order], return_counts=True)[1]
    return list(rows[order].split(sizes.tolist()))
