"""From rewards to advantages: one function that knows the menu, over files that know the formulas.

`estimate` takes rewards per token and gives advantages per token, for every estimator without a critic (generalised
advantage estimation needs values and stands in `returns`). A reward is what a grader said; an advantage is what is made
of it here, and neither is written over the other.
"""

from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.advantages.batch import center_then_whiten, running_baseline, whiten
from posttrain.objectives.advantages.group import center, leave_one_out, mean_ratio, mixed, zscore
from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.tokens import check_shapes, masked

Advantage = Literal[
    "return", "center", "zscore", "leave_one_out", "mean_ratio", "batch_whiten", "center_then_whiten", "gae"
]
ADVANTAGES = ("return", "center", "zscore", "leave_one_out", "mean_ratio", "batch_whiten", "center_then_whiten", "gae")
NEEDS_GROUP = frozenset({"center", "zscore", "leave_one_out", "mean_ratio", "center_then_whiten"})
"""Estimators whose baseline is the other answers to the same prompt: useless with one answer per prompt."""


def estimate(
    kind: Advantage,
    token_reward: Tensor,
    mask: Tensor,
    group: Tensor,
    *,
    trajectory: Tensor | None = None,
    baseline: float | None = None,
) -> Tensor:
    """Advantages of every token, by one of the estimators that need no critic.

        return              Σ_{k≥t} r_k - baseline                        REINFORCE
        batch_whiten        Σ_{k≥t} r_k, whitened over the batch          REINFORCE++
        center, zscore, leave_one_out, mean_ratio, center_then_whiten     of the answer's summed reward, on every token

    token_reward: [N, T] from `token_rewards`: outcome, step rewards and KL charge are already in it.
    mask: [N, T]. group: [N] ids of prompts.
    trajectory: [N] ids where one answer has several rows (segments, in order): its rewards add up, and it counts once.
    baseline: the number that "return" subtracts, from `running_baseline`; only there.

    Returns [N, T], 0 outside the mask. Give it the whole batch of a step: groups and batch statistics cannot be cut.
    """
    check_shapes("NT NT N", token_reward, mask, group)
    if (kind == "return") != (baseline is not None):
        raise ConfigError(
            f'advantage "{kind}" with baseline = {baseline}: "return" subtracts a baseline (0.0 for none), and no '
            "other estimator does."
        )
    token_reward = masked(token_reward, mask)
    first, owner = _owners(mask, trajectory)
    if kind in ("return", "batch_whiten"):
        returns = rewards_to_go(token_reward, mask) + _later_rows(token_reward.sum(1), owner)[:, None]
        return masked(returns - baseline, mask) if kind == "return" else whiten(returns, mask)
    reward = token_reward.new_zeros(len(first)).index_add(0, owner, token_reward.sum(1))
    group = group[first]
    match kind:
        case "center":
            advantage = center(reward, group)
        case "zscore":
            advantage = zscore(reward, group)
        case "leave_one_out":
            advantage = leave_one_out(reward, group)
        case "mean_ratio":
            advantage = mean_ratio(reward, group)
        case "center_then_whiten":
            return whiten(center(reward, group)[owner][:, None].expand(mask.shape), mask)
        case "gae":
            raise ConfigError('advantage "gae" needs values of a critic: use posttrain.objectives.gae.')
        case _:
            raise ConfigError(f'advantage "{kind}" is not one of {", ".join(ADVANTAGES)}.')
    return masked(advantage[owner][:, None].expand(mask.shape), mask)


def _owners(mask: Tensor, trajectory: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first row of each trajectory [K], and each row's trajectory as a dense id [N]."""
    rows = torch.arange(mask.shape[0], device=mask.device)
    if trajectory is None:
        return rows, rows
    check_shapes("NT N", mask, trajectory)
    owner = torch.unique(trajectory, return_inverse=True)[1]
    first = torch.full((int(owner.max()) + 1,), len(rows), device=mask.device).scatter_reduce(0, owner, rows, "amin")
    return first, owner


def _later_rows(total: Tensor, owner: Tensor) -> Tensor:
    """What the later rows of the same trajectory earn, [N]: a first segment's tokens are credited for it."""
    later = torch.zeros_like(total)
    seen = torch.zeros_like(total)
    for row in range(len(total) - 1, -1, -1):
        later[row] = seen[owner[row]]
        seen[owner[row]] += total[row]
    return later


__all__ = [
    "ADVANTAGES",
    "NEEDS_GROUP",
    "Advantage",
    "center",
    "center_then_whiten",
    "estimate",
    "leave_one_out",
    "mean_ratio",
    "mixed",
    "running_baseline",
    "whiten",
    "zscore",
]
