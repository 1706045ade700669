"""From rewards to advantages: one function that knows the menu, over files that know the formulas.

`estimate` takes rewards per token and gives advantages per token, for every estimator without a critic (generalised
advantage estimation needs values and stands in `returns`). A reward is what a grader said; an advantage is what is made
of it here, and neither is written over the other. A reward that is NaN was not given: its answer is left out, which is
something else than a reward of 0. Sections 11, 23 and 24 of the book tell the story.
"""

from collections.abc import Callable
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
    k: size of a set, for the pass@k estimators. old_logp, sum_sq: [N, T], for "optimal_token".
    parts, weights: [N, K] rewards by kind and their weights [K], for "decoupled", which reads these in place of
        token_reward: a KL charge must be in the loss then.

    Returns [N, T], 0 outside the mask. Raises ConfigError for an unknown kind and for a keyword argument that is
    missing or that the kind does not use. Give it the whole batch of a step: groups and batch statistics cannot be cut.

    One prompt, rewards 1 and 0 on the last of three tokens: "leave_one_out" gives 1 and -1 on every token. Section 24.
    """
    check_shapes("NT NT N", token_reward, mask, group)
    _check(kind, gamma, weights, baseline=baseline, greedy=greedy, k=k, parts=parts, old_logp=old_logp, sum_sq=sum_sq)
    owner, first = _trajectories(group, trajectory)
    reward = token_reward.new_zeros(len(first)).index_add(0, owner, masked(token_reward, mask).sum(1))
    if kind == "decoupled":
        check_shapes("NT NK", mask, parts)
        return _spread(decoupled(parts[first], group[first], weights), owner, mask)
    mask = mask & ~reward.isnan()[owner][:, None]
    if kind in _GAMMA:
        returns = _by_trajectory(rewards_to_go, mask, owner, token_reward, gamma=gamma)
        return whiten(returns, mask) if kind == "batch_whiten" else _minus(returns, mask, baseline, greedy)
    if kind == "optimal_token":
        return _by_trajectory(optimal_token, mask, owner, token_reward, group[first], old_logp, sum_sq)
    length = torch.bincount(owner, weights=mask.sum(1).to(reward.dtype))
    advantage = _spread(_of_answers(kind, reward, group[first], length, k), owner, mask)
    return whiten(advantage, mask) if kind == "center_then_whiten" else advantage


def _of_answers(kind: Advantage, reward: Tensor, group: Tensor, length: Tensor, k: int | None) -> Tensor:
    """One advantage per answer, [K], from one reward per answer."""
    match kind:
        case "center" | "center_then_whiten":
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


def _check(kind: str, gamma: float, weights: Tensor | None, **given: object) -> None:
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
    if weights is not None and kind != "decoupled":
        raise ConfigError(f'advantage "{kind}" with weights = given: only "decoupled" has several rewards to weigh.')
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


def _trajectories(group: Tensor, trajectory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row's trajectory as a dense id [N], and the first row of each trajectory [K]."""
    rows = torch.arange(len(group), device=group.device)
    if trajectory is None:
        return rows, rows
    check_shapes("N", group, trajectory)
    ids, owner = torch.unique(trajectory, return_inverse=True)
    return owner, torch.full_like(ids, len(rows), dtype=torch.long).scatter_reduce(0, owner, rows, "amin")


def _spread(advantage: Tensor, owner: Tensor, mask: Tensor) -> Tensor:
    """[N, T]: the number of a row's trajectory on each of its masked tokens."""
    return masked(advantage[owner][:, None].expand(mask.shape), mask)


def _by_trajectory(formula: Callable[..., Tensor], mask: Tensor, owner: Tensor, token_reward: Tensor, *args, **kwargs):
    """formula(token_reward, mask, *args) with the masked tokens of a trajectory in one row, [K, L], without what stood
    between them; its result [K, L] back where they were, [N, T]. Arguments shaped like the mask are joined as well."""
    owners = owner.repeat_interleave(mask.sum(1))  # of the masked tokens, as they stand in the batch
    order = (owners * len(owners) + torch.arange(len(owners), device=mask.device)).argsort()
    length = torch.bincount(owner, weights=mask.sum(1)).long()
    alive = torch.arange(int(length.max()), device=mask.device) < length[:, None]

    def join(x: Tensor) -> Tensor:
        return x.new_zeros(alive.shape).masked_scatter(alive, x[mask][order]) if x.shape == mask.shape else x

    found = formula(join(token_reward), alive, *map(join, args), **kwargs)
    return found.new_zeros(mask.shape).masked_scatter(mask, found[alive][order.argsort()])


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
