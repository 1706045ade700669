"""How other libraries make advantages, where that is more than another constant. Sections 12, 23 and 24 of the book.

Two themes: what becomes of an answer without company (verl hands on its raw reward, we give 0), and how whitening
treats rounding, padding and small variances.
"""

import torch
from torch import Tensor

from posttrain.objectives.advantages.batch import moments
from posttrain.objectives.advantages.group import center, group_std, zscore
from posttrain.objectives.advantages.pass_at_k import pass_at_k
from posttrain.objectives.advantages.token import optimal_token, still_running
from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.tokens import check_shapes, masked


def keep_lone(advantage: Tensor, reward: Tensor, group: Tensor) -> Tensor:
    """verl's rule for a group of one: its advantage is its raw reward.

        A_i ← r_i where G = 1

    In verl's rloo (Ahmadian et al. 2024, arXiv 2402.14740), opo and reinforce_plus_plus_baseline; its rloo_vectorized
    gives 0 as we do. A positive reward is then pushed up without any comparison, and a constant added to all rewards
    changes the gradient.

    advantage, reward: [N]. group: [N] ids of prompts. Returns [N].

    Rewards (1, 0, 5) in groups (0, 0, 1), centred: (0.5, -0.5, 0) becomes (0.5, -0.5, 5). Section 23.
    """
    check_shapes("N", advantage, reward, group)
    return torch.where(_alone(group), reward, advantage)


def verl_zscore(reward: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """verl's grpo: a group of one has mean 0 and deviation 1.

        A_i = (r_i - mean(r)) / (std(r) + ε)        r_i / (1 + ε) where G = 1

    GRPO: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2. See `keep_lone` for why not to.

    reward: [N]. group: [N] ids of prompts. eps: 1e-6 in verl. Returns [N].

    A lone reward of 5 gives 4.999995. Section 23.
    """
    return keep_lone(zscore(reward, group, eps=eps), reward / (1 + eps), group)


def verl_center_live(reward: Tensor, group: Tensor, *, scale: float = 1.0) -> Tensor:
    """verl's gpg: α counts rewards that are not zero, where the paper counts groups that have a signal.

        A_i = α (r_i - mean(r)) / F        α = N / |{ j: r_j ≠ 0 }|

    GPG: Chu et al. 2025 (arXiv 2504.02546). With rewards 0 and 1 this makes steps large while the policy is weak; with
    rewards -1 and 1 it never does anything. `center_live` is the paper's. A lone answer keeps its reward.

    reward: [N]. group: [N] ids of prompts. scale: F. Returns [N].

    Rewards (1, 0, 0, 0) in one group have α = 4 and give 3 and -1. Section 24.
    """
    alpha = len(reward) / (reward != 0).sum().clamp(min=1)
    return keep_lone(center(reward, group), reward, group) * alpha / scale


def verl_pass_at_k(reward: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """verl's grpo_passk as it is set by default: best minus second best, over the group's deviation.

        A_best = (r_(1) - r_(2)) / (std(r) + ε)

    Tang et al. 2025 (arXiv 2503.19595), who do not divide: the division makes the gradient depend on the other answers
    and biases it. `pass_at_k` with k = None is the paper's.

    reward: [N]. group: [N] ids of prompts. eps: 1e-6 in verl. Returns [N], 0 for all but the best.

    Rewards (1, 0, 0, 0) give 2 for the first. Section 24.
    """
    return pass_at_k(reward, group) / (group_std(reward, group) + eps)


def verl_optimal_token(
    token_reward: Tensor, mask: Tensor, group: Tensor, old_logp: Tensor, sum_sq: Tensor, *, eps: float = 1e-8
) -> Tensor:
    """verl's optimal_token_baseline with its tail zeroed: the answer that outlives its group keeps its raw return.

        A_t = G_t - B_t        B_t = 0 where only one answer is still running

    Li et al. 2026 (arXiv 2602.07078). Without the zero the advantage there would be 0. With it the last tokens of the
    longest answer are pushed by its whole return, whatever the others got: length is rewarded where returns are
    positive.

    token_reward, mask, old_logp, sum_sq: [N, T]. group: [N] ids of prompts. eps: as in `optimal_token`.

    Returns [N, T], 0 outside the mask.

    Answers of 1 and 2 tokens with returns 1: (0) and (0, 1). Section 24.
    """
    advantage = optimal_token(token_reward, mask, group, old_logp, sum_sq, eps=eps)
    return torch.where(still_running(mask, group) == 1, rewards_to_go(token_reward, mask), advantage)


def verl_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """verl's masked mean and variance, with 1e-8 in both divisors.

        mean = Σ x / (n + 1e-8)        var = Σ (x - mean)² / (n + 1e-8) · n / (n - 1)

    What its advantages are whitened by (Schulman et al. 2017, arXiv 1707.06347). The 1e-8 guards an empty mask and
    moves every other result in the ninth digit, which is all that tells it from `moments`.

    x, mask: [N, T]. Returns two scalars.

    Values (1, 2, 3) give 2 and 1 to eight digits. Section 12.
    """
    check_shapes("NT", x, mask)
    count = mask.sum()
    mean = masked(x, mask).sum() / (count + 1e-8)
    var = masked(x - mean, mask).square().sum() / (count + 1e-8)
    return mean, var * count / (count - 1).clamp(min=1)


def verl_whiten(x: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """verl's masked_whiten: scaled by `verl_moments`, and not masked.

        x ← (x - mean) / √(var + 1e-8)

    Schulman et al. 2017 (arXiv 1707.06347), as implemented since. Whoever forgets the mask afterwards trains on
    padding, and a NaN there survives.

    x, mask: [N, T]. shift: False adds the mean back. Returns [N, T], also where the mask is false.

    Values (1, 2, 3) become (-1, 0, 1). Section 12.
    """
    return _scaled(x, *verl_moments(x, mask), shift)


def trl_whiten(x: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """TRL's masked_whiten: the numbers of `whiten`, and not masked.

        x ← (x - mean) / √(var + 1e-8)

    Schulman et al. 2017 (arXiv 1707.06347), as implemented since.

    x, mask: [N, T]. shift: False adds the mean back. Returns [N, T], also where the mask is false.

    Values (1, 2, 3) become (-1, 0, 1). Section 12.
    """
    return _scaled(x, *moments(x, mask), shift)


def openrlhf_whiten(x: Tensor, mask: Tensor, *, divide: bool = True) -> Tensor:
    """OpenRLHF's normalisation of advantages: the population's variance, raised to at least 1e-8.

        x ← (x - mean) / √max(var, 1e-8)        var with n

    REINFORCE++: Hu et al. 2025 (arXiv 2501.03262), by its authors. Against n - 1 it differs by √(n / (n - 1)), which is
    nothing for thousands of tokens.

    x, mask: [N, T], of all experiences of a step. divide: False only subtracts the mean (their no_advantage_std_norm).

    Returns [N, T], 0 outside the mask.

    Values (1, 2, 3) become (-1.2247, 0, 1.2247). Section 12.
    """
    mean, var = moments(x, mask, ddof=0)
    scale = var.clamp(min=1e-8).rsqrt() if divide else torch.ones_like(var)
    return masked(x - mean, mask) * scale


def openrlhf_whiten_rows(x: Tensor, mask: Tensor) -> Tensor:
    """OpenRLHF's masked_normalize: each row by its own mean and deviation.

        x_t ← (x_t - mean_row) / √max(var_row, 1e-8)        var with n

    A row is an answer (compare GAE's whitening over the batch, Schulman et al. 2016, arXiv 1506.02438). So each answer
    gets as much praise as blame, however good it was: not for advantages.

    x, mask: [N, T]. Returns [N, T], 0 outside the mask; a row with one entry becomes 0.

    The row (1, 2, 3) becomes (-1.2247, 0, 1.2247). Section 12.
    """
    check_shapes("NT", x, mask)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centered = masked(x - masked(x, mask).sum(1, keepdim=True) / count, mask)
    return centered * (centered.square().sum(1, keepdim=True) / count).clamp(min=1e-8).rsqrt()


def _alone(group: Tensor) -> Tensor:
    ids = torch.unique(group, return_inverse=True)[1]
    return torch.bincount(ids)[ids] == 1


def _scaled(x: Tensor, mean: Tensor, var: Tensor, shift: bool) -> Tensor:
    scaled = (x - mean) * torch.rsqrt(var + 1e-8)
    return scaled if shift else scaled + mean
