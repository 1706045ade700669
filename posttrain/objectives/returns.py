"""Credit over time: rewards on tokens, returns, and generalised advantage estimation.

Time counts the policy's own tokens. What a tool or a user wrote in between is stepped over: it neither discounts nor
cuts the bootstrap, so a two-turn episode is one stream. Peers disagree here: verl steps over masked tokens as we do,
OpenRLHF gives them value and reward 0, which ends the bootstrap at every tool answer. Values follow the convention of
the library: entry t is about token t, and is the value of the state in which it was chosen (`values_before`). Section
12 of the explainer tells the story.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked


def last_token(mask: Tensor) -> Tensor:
    """[N, T], true at the last masked token of each row: where an outcome reward lands. Nowhere in an empty row."""
    check_shapes("NT", mask)
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def token_rewards(score: Tensor, mask: Tensor, *, kl: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """Rewards per token: the outcome at the last one, and the KL charge at each.

        r_t = -β · kl_t + [t = last] · score

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, per token.

    score: [N], of the finished answer. mask: [N, T].
    kl: [N, T] estimate of kl(policy ‖ reference) at each token, k1 as a rule, from log-probabilities at sampling time;
        detached here. beta: its weight; without kl it must be 0.

    Returns [N, T], 0 outside the mask; a row without tokens gets nothing. The rewards of an answer add up to
    score - β Σ kl_t.
    """
    check_shapes("N NT", score, mask)
    if kl is None and beta != 0:
        raise ConfigError(f"token_rewards: beta = {beta} without a kl to weigh. Pass kl, or set beta to 0.")
    rewards = torch.where(last_token(mask), score[:, None], torch.zeros((), dtype=score.dtype, device=score.device))
    if kl is None:
        return rewards
    check_shapes("NT", mask, kl)
    return rewards - beta * masked(kl.detach(), mask)


def rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Discounted sum of the rewards from each token on.

        G_t = r_t + γ G_{t+1}, over the masked tokens

    rewards, mask: [N, T]; rewards outside the mask are not read. gamma: discount per token of the policy.
    Returns [N, T], 0 outside the mask.

    Rewards (1, 0, 2) with γ = 0.5 give (1.5, 1, 2).
    """
    check_shapes("NT", rewards, mask)
    rewards = masked(rewards, mask)
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
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
    gamma: discount. lam: λ, a number or one per row [N] (VAPO lets it grow with the answer's length).
    last_value: [N], V after the last token, for answers that were cut off; None: 0, the episode has ended.

    Returns (advantages, value targets), both [N, T], 0 outside the mask, without gradient. Whiten after this.

    λ = 0 gives δ_t; λ = 1 gives Σ_{k≥t} γ^{k-t} r_k - V_t, so that targets are plain returns.
    """
    check_shapes("NT", rewards, values, mask)
    rewards, values = masked(rewards.detach(), mask), masked(values.detach(), mask)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    value_next = following if last_value is None else last_value.detach().to(values.dtype)
    for t in range(values.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * value_next - values[:, t]
        following = torch.where(here, delta + gamma * lam * following, following)
        value_next = torch.where(here, values[:, t], value_next)
        advantages[:, t] = following
    advantages = masked(advantages, mask)
    return advantages, advantages + values


def length_adaptive_lambda(mask: Tensor, alpha: float = 0.05) -> Tensor:
    """λ that reaches back over a fixed share of the answer, however long.

        λ = 1 - 1 / (α · length), not below 0

    VAPO: Yue et al. 2025 (arXiv 2504.05118), eq. 9. mask: [N, T]. Returns [N]; 100 tokens give 0.8, 1000 give 0.98.
    """
    return (1 - 1 / (alpha * mask.sum(1).clamp(min=1).to(torch.get_default_dtype()))).clamp(min=0)


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """How much of the returns a critic foresees: 1 - var(target - V) / var(target), over the masked tokens. A scalar.

    values, targets, mask: [N, T] of the whole batch. 1 is perfect, 0 a constant guess, below 0 worse than one; NaN when
    all targets are equal.
    """
    check_shapes("NT", values, targets, mask)
    target, error = targets[mask], (targets - values)[mask]
    return 1 - error.var(correction=0) / target.var(correction=0)
