"""Advantages that are scaled by the whole batch, and the running baseline of plain REINFORCE.

Scaling by the batch keeps gradients of a steady size and is biased, since each sample is in its own statistics. The
statistics here are those of the tensors given: call these functions on the whole batch of a step, never on a
micro-batch. Two things that look alike differ: statistics over tokens (`whiten`), where long answers count more often,
and statistics over answers (`batch_zscore`). A reward that is NaN was not given: it has no say and gets 0. Sections 11,
12 and 24 of the book tell the story.
"""

import torch
from torch import Tensor

from posttrain.objectives.advantages.group import center, mixed
from posttrain.objectives.tokens import check_shapes, masked


def moments(x: Tensor, mask: Tensor, *, ddof: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and variance over the masked entries.

        mean = Σ x / n        var = Σ (x - mean)² / (n - ddof)

    What `whiten` scales by (Schulman et al. 2017, arXiv 1707.06347, as implemented since).

    x, mask: [N, T], of the whole batch. ddof: 1 for the sample's variance, 0 for the population's.

    Returns two scalars, 0 for an empty mask; the variance of one lone entry is 0.

    Values (1, 2, 3) give 2 and 1, with ddof = 0 2 and 2/3. Section 12.
    """
    check_shapes("NT", x, mask)
    x = masked(x, mask)
    count = mask.sum()
    mean = x.sum() / count.clamp(min=1)
    return mean, masked(x - mean, mask).square().sum() / (count - ddof).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, *, shift: bool = True, eps: float = 1e-8, ddof: int = 1) -> Tensor:
    """x with mean 0 and variance 1 over the masked tokens of the batch.

        x ← (x - mean) / √(var + ε)

    The normalisation of advantages in PPO and REINFORCE++: Hu et al. 2025 (arXiv 2501.03262).

    x, mask: [N, T]. shift: False adds the mean back, for rewards, whose sign matters.
    eps: added to the variance. ddof: 1 for the sample's variance (TRL, verl), 0 for the population's (OpenRLHF).

    Returns [N, T], 0 outside the mask; one lone token becomes 0 (or its own value, without shift).

    Rewards (1, 2, 3) become (-1, 0, 1), without shift (1, 2, 3). Section 12.
    """
    mean, var = moments(x, mask, ddof=ddof)
    scaled = masked(x - mean, mask) * torch.rsqrt(var + eps)
    return scaled if shift else masked(scaled + mean, mask)


def center_then_whiten(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Reward minus the group's mean, on every token, whitened over the batch.

        A = whiten( r_i - mean_g(r) )        over the tokens of the batch

    REINFORCE++-baseline: Hu et al. 2025 (arXiv 2501.03262). The deviation is that of the *centred* rewards, and long
    answers count more often.

    reward: [N], NaN where none was given. group: [N] ids of prompts. mask: [N, T].

    Returns [N, T], 0 outside the mask; the mean over the masked tokens is 0.

    Two answers of one group with rewards 1 and 0 and as many tokens each get opposite advantages. Section 24.
    """
    check_shapes("N NT", reward, mask)
    mask = mask & ~reward.isnan()[:, None]
    return whiten(center(reward, group)[:, None].expand(mask.shape), mask)


def center_then_scale(reward: Tensor, group: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Reward minus the group's mean, over the standard deviation of all rewards of the batch.

        A_i = (r_i - mean_g(r)) / (std_B(r) + ε)        std with n - 1

    LitePPO: Liu et al. 2025 (arXiv 2508.08221). The deviation is that of the *raw* rewards, so that prompts which are
    all easy or all hard make it wide; `center_then_whiten` has another number.

    reward: [N], NaN where none was given. group: [N] ids of prompts. eps: keeps the division finite.

    Returns [N]; easy, hard and even prompts are scaled alike, which `zscore` does not do.

    Two groups (1, 0) and (1, 1) have std 0.5 and give ±1 and 0. Section 24.
    """
    return center(reward, group) / (_std(reward) + eps)


def center_live(reward: Tensor, group: Tensor, *, scale: float = 1.0) -> Tensor:
    """Reward minus the group's mean, blown up by as much as the groups without a signal water the average down.

        A_i = α (r_i - mean_g(r)) / F        α = answers / answers in groups whose rewards differ

    GPG: Chu et al. 2025 (arXiv 2504.02546). Averaged over all answers of the batch it is `center`'s average over those
    that teach. verl counts something else: `posttrain.objectives.peers`.

    reward: [N], NaN where none was given. group: [N] ids of prompts. scale: F; 1 in the paper, for the group's own
        standard deviation would bring back the bias of `zscore`.

    Returns [N]; all 0 where no group has a signal.

    Groups (1, 0) and (1, 1) have α = 2 and give (1, -1) and (0, 0). Section 24.
    """
    live = mixed(reward, group)
    alpha = (~reward.isnan()).sum() / live.sum().clamp(min=1)
    return masked(alpha * center(reward, group) / scale, live)


def batch_center(reward: Tensor) -> Tensor:
    """Reward minus the mean of the batch: the plainest baseline, for one answer per prompt.

        A_i = r_i - mean_B(r)

    Williams 1992 (reinforcement comparison). Easy prompts get above it whatever is answered; a group's mean does not
    have that noise.

    reward: [N], NaN where none was given. Returns [N], with mean 0 over the rewards that were.

    Rewards (1, 0, 0, 1) give 0.5 and -0.5. Section 11.
    """
    return center(reward, torch.zeros_like(reward, dtype=torch.long))


def batch_zscore(reward: Tensor, *, given: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """Reward minus the mean of the batch, over its standard deviation: `whiten` over answers, not tokens.

        A_i = (r_i - mean_B(r)) / (std_B(r) + ε)        std with n - 1

    Hu et al. 2025 (arXiv 2501.03262) normalise so over the global batch; also applied to advantages, as TRL's RLOO and
    the last step of `decoupled` do.

    reward: [N], NaN where none was given. eps: keeps the division finite.
    given: [N], boolean, for advantages in place of rewards: where the answer had a reward, for an advantage of 0 does
        not tell. None: where reward is not NaN.

    Returns [N], 0 where none was given.

    Rewards (1, 2, 3) give (-1, 0, 1). Section 24.
    """
    if given is not None:
        check_shapes("N", reward, given)
        reward = torch.where(given, reward, torch.nan)
    return batch_center(reward) / (_std(reward) + eps)


def running_baseline(state: dict[str, float], rewards: Tensor, *, decay: float = 0.9) -> dict[str, float]:
    """The moving average that plain REINFORCE subtracts from its returns, after one more batch.

        b ← (decay · w · b + (1 - decay) · mean(r)) / (decay · w + 1 - decay)        w ← decay · w + 1 - decay

    Williams 1992 (reinforcement comparison). The weight w corrects the start: after one batch b is its mean.

    state: {"baseline": b, "weight": w}, at the start both 0; it is not changed. rewards: [N]. decay: share of the past
        that stays, 0.9 remembers about ten batches.

    Returns the new state. Subtract `baseline` from the rewards of a batch *before* that batch is fed in here, else the
    baseline depends on the action it judges.

    Batches whose means are 1, 1, 1 give 1 from the first on; after 0 and 1 with decay 0.5 the baseline is 2/3.
    Section 11.
    """
    old = decay * state["weight"]
    weight = old + 1 - decay
    return {"baseline": (old * state["baseline"] + (1 - decay) * float(rewards.mean())) / weight, "weight": weight}


def _std(reward: Tensor) -> Tensor:
    """Over the rewards that were given, with n - 1."""
    given = ~reward.isnan()
    variance = moments(reward[None], given[None])[1]
    return masked(torch.where(variance > 0, variance, 1.0).sqrt(), variance > 0)  # no infinite slope at 0
