"""How OpenRLHF lays rewards and values on tokens: places outside the mask are states of value 0. Sections 12, 14.

In an answer without holes this is what we do. In a dialogue with tools it is not: a tool's tokens count as time, and
the value after the policy's words is taken to be 0, so that nothing behind a tool's answer reaches what came before it
except through λ.
"""

import torch
from torch import Tensor

from posttrain.objectives.returns import gae, last_token, rewards_to_go
from posttrain.objectives.tokens import check_shapes, masked


def openrlhf_token_rewards(
    score: Tensor, kl: Tensor, mask: Tensor, *, beta: float, clip: tuple[float, float] | None = None
) -> Tensor:
    """OpenRLHF's compute_reward: as `token_rewards`, but the KL charge stays at masked places.

        r_t = -β · kl_t + [t = last] · clip(score, low, high),    at every t

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, per token. Harmless there, because their KL is masked before; with
    any other it charges for what a tool wrote.

    score: [N]. kl, mask: [N, T]. beta: weight of the KL. clip: range of the score, ±10 in OpenRLHF.

    Returns [N, T], -β kl outside the mask.

    Score 20 with clip (-10, 10), kl (0.1, 0.2), mask (1, 0), β = 1 give (9.9, -0.2). Section 14.
    """
    check_shapes("N NT NT", score, kl, mask)
    score = score if clip is None else score.clamp(*clip)
    return masked(score[:, None], last_token(mask)) - beta * kl.detach()


def openrlhf_gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """OpenRLHF's get_advantages_and_returns: a masked place is a state with value and reward 0, not one to step over.

        δ_t = m_t r_t + γ m_{t+1} V_{t+1} - m_t V_t        A_t = δ_t + γλ A_{t+1},    at every t

    GAE: Schulman et al. 2016 (arXiv 1506.02438), eq. 16. At a tool's answer the bootstrap is cut: the policy's last
    token before it looks as if the episode had ended with nothing.

    rewards, values, mask: [N, T]. gamma: discount. lam: λ.

    Returns (advantages, value targets), both [N, T], without gradient; not masked, so that places between the policy's
    tokens hold what passes through them.

    Rewards (0, 0, 1), values 0.5 everywhere, mask (1, 0, 1) and γ = 1: λ = 0 gives (-0.5, 0.5, 0.5), where ours is 0 at
    the first token; λ = 1 gives (0.5, 1, 0.5). Section 12.
    """
    check_shapes("NT", rewards, values, mask)
    return gae(masked(rewards, mask), masked(values, mask), torch.ones_like(mask), gamma=gamma, lam=lam)


def openrlhf_rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """OpenRLHF's get_cumulative_returns: a masked place is a step of time without reward.

        G_t = m_t r_t + γ G_{t+1},    at every t

    REINFORCE: Williams 1992. With γ = 1, or without holes, the returns of the policy's tokens are those of
    `rewards_to_go`.

    rewards, mask: [N, T]. gamma: discount per place.

    Returns [N, T]; not masked.

    Rewards (1, 9, 2), mask (1, 0, 1) and γ = 0.5 give (1.5, 1, 2). Section 11.
    """
    check_shapes("NT", rewards, mask)
    return rewards_to_go(masked(rewards, mask), torch.ones_like(mask), gamma=gamma)
