"""Credit over time: rewards on tokens, returns, and generalised advantage estimation.

Time counts the policy's own tokens. What a tool or a user wrote in between is stepped over: it neither discounts nor
cuts the bootstrap, so a two-turn episode is one stream. Peers disagree here: verl steps over masked tokens as we do,
OpenRLHF gives them value and reward 0, which ends the bootstrap at every tool answer (`peers.openrlhf_gae`). Values
follow the convention of the library: entry t is about token t, and is the value of the state in which it was chosen
(`values_before`). Sections 11, 12 and 14 of the book tell the story.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked


def last_token(mask: Tensor) -> Tensor:
    """Where an outcome reward lands: the last masked token of each row.

        last_t = mask_t and no mask after t

    The end of the episode in Ziegler et al. 2019 (arXiv 1909.08593), section 2.

    mask: [N, T]. Returns [N, T], boolean; nowhere true in an empty row.

    The mask (0, 1, 1, 0, 1, 0) has it at entry 4. Section 14.
    """
    check_shapes("NT", mask)
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def token_rewards(
    score: Tensor,
    mask: Tensor,
    *,
    kl: Tensor | None = None,
    beta: float = 0.0,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Rewards per token: the outcome at the last one, and the KL charge at each.

        r_t = -β · kl_t + [t = last] · clip(score, low, high)

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, per token.

    score: [N] of the finished answer, NaN where none was given; or [N, T] where steps or turns are rewarded, which is
        taken as it stands.
    mask: [N, T].
    kl: [N, T] estimate of kl(policy ‖ reference) at each token, k1 as a rule, from log-probabilities at sampling time;
        detached here. beta: its weight; without kl it must be 0.
    clip: the range the score is cut to before anything is charged, for the outliers of a learned reward (OpenRLHF
        ±10); None: as it is.

    Returns [N, T], 0 outside the mask; a row without tokens gets nothing. The rewards of an answer add up to
    score - β Σ kl_t. Raises ConfigError for a beta without kl.

    π = (0.5, 0.4, 0.9), π_ref = (0.25, 0.5, 0.9), β = 0.1 and score 1 give (-0.0693, 0.0223, 1). Section 14.
    """
    check_shapes("N NT" if score.dim() == 1 else "NT", score, mask)
    if kl is None and beta != 0:
        raise ConfigError(f"token_rewards: beta = {beta} without a kl to weigh. Pass kl, or set beta to 0.")
    score = score if clip is None else score.clamp(*clip)
    rewards = masked(score, mask) if score.dim() == 2 else masked(score[:, None], last_token(mask))
    if kl is None:
        return rewards
    check_shapes("NT", mask, kl)
    return rewards - beta * masked(kl.detach(), mask)


def rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Discounted sum of the rewards from each token on.

        G_t = r_t + γ G_{t+1}, over the masked tokens

    REINFORCE: Williams 1992; that earlier rewards may be left out, Sutton et al. 1999 (the policy gradient theorem).

    rewards, mask: [N, T]; rewards outside the mask are not read. gamma: discount per token of the policy.

    Returns [N, T], 0 outside the mask.

    Rewards (1, 0, 2) with γ = 0.5 give (1.5, 1, 2). Section 11.
    """
    check_shapes("NT", rewards, mask)
    returns = torch.empty_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = torch.where(mask[:, t], rewards[:, t] + gamma * following, following)
        returns[:, t] = following
    return masked(returns, mask)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    last_value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the policy's tokens.

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γλ A_{t+1}        target_t = A_t + V_t

    Schulman et al. 2016 (arXiv 1506.02438), eq. 16. t + 1 is the next masked token of the row.

    rewards, values, mask: [N, T]; values entry t is V of the state in which token t was chosen.
    gamma: discount. lam: λ, a number or one per row [N]; `length_adaptive_lambda` lets it grow with the answer.
    last_value: [N], V after the last token, for answers that were cut off; None: 0, the episode has ended.

    Returns (advantages, value targets), both [N, T], 0 outside the mask, without gradient. Whiten after this.

    λ = 0 gives δ_t; λ = 1 gives Σ_{k≥t} γ^{k-t} r_k - V_t, so that targets are plain returns. Rewards (0, 0, 0, 1) and
    values (0.2, 0.5, 0.4, 0.8) with λ = 0.5 give (0.375, 0.15, 0.5, 0.2). Section 12.
    """
    check_shapes("NT", rewards, values, mask)
    rewards, values = rewards.detach(), masked(values.detach(), mask)
    advantages = torch.empty_like(values)
    following = values.new_zeros(len(values))
    value_next = following if last_value is None else last_value.detach().to(values.dtype)
    for t in range(values.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * value_next - values[:, t]
        following = torch.where(here, delta + gamma * lam * following, following)
        value_next = torch.where(here, values[:, t], value_next)
        advantages[:, t] = following
    advantages = masked(advantages, mask)
    return advantages, advantages + values


def decoupled_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    target_lam: float | Tensor = 1.0,
    last_value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation with one λ for the policy and another for the critic.

        A_t = GAE(λ_policy)_t        target_t = GAE(λ_critic)_t + V_t

    VC-PPO: Yuan et al. 2025 (arXiv 2503.01491); VAPO takes it over (arXiv 2504.05118). With λ < 1 a reward at the end
    reaches a target l tokens earlier with weight λ^l only, so that a long answer's first values are never learned; the
    policy may still trade that for less variance.

    rewards, values, mask: [N, T]. gamma: discount. lam: λ_policy, a number or one per row [N]. target_lam: λ_critic.
    last_value: [N] or None. All as in `gae`.

    Returns (advantages, value targets), both [N, T], 0 outside the mask, without gradient.

    Rewards (0, 0, 0, 1) and values (0.2, 0.5, 0.4, 0.8) with λ_policy = 0.5 give `gae`'s advantages
    (0.375, 0.15, 0.5, 0.2), and the targets are all 1. Section 24.
    """
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=lam, last_value=last_value)
    _, targets = gae(rewards, values, mask, gamma=gamma, lam=target_lam, last_value=last_value)
    return advantages, targets


def length_adaptive_lambda(mask: Tensor, alpha: float = 0.05) -> Tensor:
    """λ that reaches back over a fixed share of the answer, however long.

        λ = 1 - 1 / (α · length), not below 0

    VAPO: Yue et al. 2025 (arXiv 2504.05118), eq. 9.

    mask: [N, T]. alpha: about the share of the answer that a reward reaches back over, for Σ_t λ^t ≈ α · length.

    Returns [N], for `gae` or `decoupled_gae`; 0 for answers of at most 1/α tokens.

    100 tokens give 0.8, 1000 give 0.98. Section 24.
    """
    check_shapes("NT", mask)
    return (1 - 1 / (alpha * mask.sum(1).to(torch.get_default_dtype()))).clamp(min=0)


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """How much of the returns a critic foresees.

        EV = 1 - var(target - V) / var(target), over the masked tokens

    As logged by OpenAI Baselines (PPO: Schulman et al. 2017, arXiv 1707.06347).

    values, targets, mask: [N, T] of the whole batch.

    Returns a scalar: 1 is perfect, 0 a constant guess, below 0 worse than one; not finite if all targets are equal.

    Targets (0, 2) and values (0, 1) give 0.75. Section 12.
    """
    check_shapes("NT", values, targets, mask)
    target, error = targets[mask], (targets - values)[mask]
    return 1 - error.var(correction=0) / target.var(correction=0)
