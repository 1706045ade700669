"""From rewards to advantages: one function that knows the menu, over files that know the formulas.

`estimate` takes rewards per token and gives advantages per token, for every estimator without a critic (generalised
advantage estimation needs values and stands in `returns`). A reward is what a grader said; an advantage is what is made
of it here, and neither is written over the other. A reward that is NaN was not given: its answer is left out, which is
something else than a reward of 0. Sections 11, 23 and 24 of the book tell the story.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.advantages.batch import (
    batch_center,
    batch_zscore,
    center_live,
    center_then_scale,
    center_then_whiten,
    moments,
    running_baseline,
    whiten,
)
from posttrain.objectives.advantages.group import (
    center,
    group_std,
    leave_one_out,
    length_weighted,
    mean_ratio,
    mixed,
    zscore,
)
from posttrain.objectives.advantages.pass_at_k import pass_at_k, pass_at_k_zscore
from posttrain.objectives.advantages.several import decoupled, weighted_sum
from posttrain.objectives.advantages.token import optimal_token, still_running
from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.tokens import check_shapes, masked

Advantage = Literal[
    "return", "greedy", "center", "zscore", "leave_one_out", "mean_ratio", "length_weighted", "pass_at_k",
    "pass_at_k_zscore", "batch_center", "batch_zscore", "batch_whiten", "center_then_whiten", "center_then_scale",
    "center_live", "decoupled", "optimal_token", "gae",
]  # fmt: skip
ADVANTAGES: tuple[Advantage, ...] = get_args(Advantage)
NEEDS_GROUP = frozenset(
    {
        "center", "zscore", "leave_one_out", "mean_ratio", "length_weighted", "pass_at_k", "pass_at_k_zscore",
        "center_then_whiten", "center_then_scale", "center_live", "decoupled", "optimal_token",
    }
)  # fmt: skip
"""Estimators whose baseline is the other answers to the same prompt: useless with one answer per prompt."""
NEEDS: dict[str, frozenset[str]] = {
    "return": frozenset({"baseline"}),
    "greedy": frozenset({"greedy"}),
    "pass_at_k": frozenset({"k"}),
    "pass_at_k_zscore": frozenset({"k"}),
    "decoupled": frozenset({"parts"}),
    "optimal_token": frozenset({"old_logp", "sum_sq"}),
}
"""What an estimator needs besides rewards, mask and group: keyword arguments of `estimate`."""
_MEANS = {
    "baseline": '"return" subtracts a baseline (0.0 for none), and no other estimator does',
    "greedy": '"greedy" subtracts the reward of the greedy answer to the same prompt, [N], and no other estimator does',
    "k": "the pass@k estimators count the best of sets of k answers, and no others do",
    "parts": '"decoupled" scales each of several rewards by itself, [N, K], and no other estimator does',
    "old_logp": '"optimal_token" weighs by the probabilities of the tokens, [N, T], and no other estimator does',
    "sum_sq": '"optimal_token" weighs by Σ_v π_v² of each distribution, [N, T], and no other estimator does',
}
_GAMMA = ("return", "greedy", "batch_whiten")


def estimate(
    kind: Advantage,
    token_reward: Tensor,
    mask: Tensor,
    group: Tensor,
    *,
    trajectory: Tensor | None = None,
    gamma: float = 1.0,
    baseline: float | None = None,
    greedy: Tensor | None = None,
    k: int | None = None,
    parts: Tensor | None = None,
    weights: Tensor | None = None,
    old_logp: Tensor | None = None,
    sum_sq: Tensor | None = None,
) -> Tensor:
    """Advantages of every token, by one of the estimators that need no critic.

        of each token's return G_t = Σ_{k≥t} γ^{k-t} r_k:
            return            G_t - baseline                       REINFORCE, Williams 1992
            greedy            G_t - r(greedy answer)               ReMax, arXiv 2310.10505
            batch_whiten      whitened over the batch              REINFORCE++, arXiv 2501.03262
            optimal_token     minus the best baseline at its place OTB, arXiv 2602.07078
        of the answer's summed reward r_i, on all its tokens, by the function of the same name:
            center, zscore, leave_one_out, mean_ratio, length_weighted, pass_at_k, pass_at_k_zscore      in its group
            batch_center, batch_zscore                                                                   in the batch
            center_then_whiten, center_then_scale, center_live, decoupled                                in both

    token_reward: [N, T] from `token_rewards`: outcome, step rewards and KL charge are already in it. A NaN under the
        mask says that the answer has no reward: it gets 0 and no say. Take it out of the loss's mask as well.
    mask: [N, T]. group: [N] ids of prompts.
    trajectory: [N] ids where one answer has several rows (segments, in order): its rewards add up, and it counts once.
    gamma: discount per token of the policy; other than 1 only where tokens have returns of their own.
    baseline: the number that "return" subtracts, from `running_baseline`.
    greedy: [N] reward of the greedy answer to the row's prompt.
    k: size of a set for the pass@k estimators; at least 2 for pass_at_k.
    parts, weights: [N, K] rewards by kind and their weights [K], for "decoupled", which reads these in place of
        token_reward: a KL charge must be in the loss then.
    old_logp, sum_sq: [N, T], for "optimal_token".

    Returns [N, T], 0 outside the mask. Raises ConfigError for an unknown kind and for a keyword argument that is
    missing or that the kind does not use. Give it the whole batch of a step: groups and batch statistics cannot be cut.

    One prompt, rewards 1 and 0 on the last of three tokens: "leave_one_out" gives 1 and -1 on every token. Section 24.
    """
    check_shapes("NT NT N", token_reward, mask, group)
    _check(kind, gamma, baseline=baseline, greedy=greedy, k=k, parts=parts, old_logp=old_logp, sum_sq=sum_sq)
    owner, first = _trajectories(mask, trajectory)
    if kind == "decoupled":
        check_shapes("NT NK", mask, parts)
        reward = decoupled(parts[first], group[first], weights)
    else:
        reward = token_reward.new_zeros(len(first)).index_add(0, owner, masked(token_reward, mask).sum(1))
    mask = mask & ~reward.isnan()[owner][:, None]
    if kind in ("return", "greedy", "batch_whiten", "optimal_token"):
        order, alive = _in_one_row(mask, owner, len(first))
        if kind == "optimal_token":
            rewards, logp, sums = (_join(x, mask, order, alive) for x in (token_reward, old_logp, sum_sq))
            return _part(optimal_token(rewards, alive, group[first], logp, sums), mask, order, alive)
        returns = rewards_to_go(_join(token_reward, mask, order, alive), alive, gamma=gamma)
        returns = _part(returns, mask, order, alive)
        return whiten(returns, mask) if kind == "batch_whiten" else _minus(returns, mask, baseline, greedy)
    if kind == "center_then_whiten":
        return whiten(center(reward, group[first])[owner][:, None].expand(mask.shape), mask)
    if kind != "decoupled":
        length = torch.bincount(owner, weights=mask.sum(1).to(reward.dtype))
        reward = _of_answers(kind, reward, group[first], length, k)
    return masked(reward[owner][:, None].expand(mask.shape), mask)


def _of_answers(kind: Advantage, reward: Tensor, group: Tensor, length: Tensor, k: int | None) -> Tensor:
    """One advantage per answer, [K], from one reward per answer."""
    match kind:
        case "center":
            return center(reward, group)
        case "zscore":
            return zscore(reward, group)
        case "leave_one_out":
            return leave_one_out(reward, group)
        case "mean_ratio":
            return mean_ratio(reward, group)
        case "length_weighted":
            return length_weighted(reward, group, length)
        case "pass_at_k":
            return pass_at_k(reward, group, k=k)
        case "pass_at_k_zscore":
            return pass_at_k_zscore(reward, group, k=k)
        case "batch_center":
            return batch_center(reward)
        case "batch_zscore":
            return batch_zscore(reward)
        case "center_then_scale":
            return center_then_scale(reward, group)
        case "center_live":
            return center_live(reward, group)
        case _:
            raise ConfigError(f'advantage "{kind}" is not one of {", ".join(ADVANTAGES)}.')


def _check(kind: str, gamma: float, **given: object) -> None:
    """Refuse a kind that is not on the menu, and arguments that it lacks or would not use."""
    if kind == "gae":
        raise ConfigError('advantage "gae" needs values of a critic: use posttrain.objectives.gae.')
    if kind not in ADVANTAGES:
        raise ConfigError(f'advantage "{kind}" is not one of {", ".join(ADVANTAGES)}.')
    for name, value in given.items():
        if (name in NEEDS.get(kind, ())) != (value is not None):
            raise ConfigError(
                f'advantage "{kind}" with {name} = {"None" if value is None else "given"}: {_MEANS[name]}.'
            )
    if gamma != 1 and kind not in _GAMMA:
        raise ConfigError(
            f'advantage "{kind}" with gamma = {gamma}: it reads the whole reward of an answer, and discounts nothing. '
            f"Set gamma to 1, or choose one of {', '.join(_GAMMA)}."
        )


def _minus(returns: Tensor, mask: Tensor, baseline: float | None, greedy: Tensor | None) -> Tensor:
    """Returns less one number, or less one per row; a row whose greedy answer has no reward gets 0."""
    if greedy is None:
        return masked(returns - baseline, mask)
    check_shapes("NT N", mask, greedy)
    return masked(returns - greedy[:, None], mask & ~greedy.isnan()[:, None])


def _trajectories(mask: Tensor, trajectory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row's trajectory as a dense id [N], and the first row of each trajectory [K]."""
    rows = torch.arange(mask.shape[0], device=mask.device)
    if trajectory is None:
        return rows, rows
    check_shapes("NT N", mask, trajectory)
    ids, owner = torch.unique(trajectory, return_inverse=True)
    return owner, torch.full_like(ids, len(rows), dtype=torch.long).scatter_reduce(0, owner, rows, "amin")


def _in_one_row(mask: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How the masked tokens of the batch are permuted to stand by trajectory [M], and which places of [K, L] they fill
    there: a trajectory's tokens in one row, without what stood between them."""
    places = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
    order = (owner[:, None] * mask.numel() + places)[mask].argsort()
    length = torch.zeros(count, dtype=torch.long, device=mask.device).index_add(0, owner, mask.sum(1))
    return order, torch.arange(int(length.max()), device=mask.device) < length[:, None]


def _join(x: Tensor, mask: Tensor, order: Tensor, alive: Tensor) -> Tensor:
    return x.new_zeros(alive.shape).masked_scatter(alive, x[mask][order])


def _part(joined: Tensor, mask: Tensor, order: Tensor, alive: Tensor) -> Tensor:
    return joined.new_zeros(mask.shape).masked_scatter(mask, joined[alive][order.argsort()])


__all__ = [
    "ADVANTAGES",
    "NEEDS",
    "NEEDS_GROUP",
    "Advantage",
    "batch_center",
    "batch_zscore",
    "center",
    "center_live",
    "center_then_scale",
    "center_then_whiten",
    "decoupled",
    "estimate",
    "group_std",
    "leave_one_out",
    "length_weighted",
    "mean_ratio",
    "mixed",
    "moments",
    "optimal_token",
    "pass_at_k",
    "pass_at_k_zscore",
    "running_baseline",
    "still_running",
    "weighted_sum",
    "whiten",
    "zscore",
]
