"""From scored groups to the loss of a policy step: what the loops without a critic make of their samples.

Whatever an estimator takes besides rewards is made here: the reward of a greedy answer, rewards by kind, the squares of
a distribution. Which answers are sampled and how often they are used is the loop's affair (`group`). Sections 22 to 24
of the book tell the story.
"""

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor

from posttrain import rng
from posttrain.batch import TokenBatch, collate_groups
from posttrain.errors import ConfigError
from posttrain.objectives.advantages import estimate, running_baseline
from posttrain.objectives.kl import kl_estimate
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import chosen_tokens, policy_loss
from posttrain.objectives.regularizers import next_beta, next_entropy, next_proximal
from posttrain.objectives.returns import token_rewards
from posttrain.records import Group, Stop, Trajectory
from posttrain.rewards.base import Rewards
from posttrain.rewards.form import PART, Form
from posttrain.train.invariants import check_sampler_gap
from posttrain.train.learner import Learner, Optim, Outputs, Term, outputs
from posttrain.train.metrics import Metrics
from posttrain.train.signal import scored, with_variance


def policy_terms(
    out: Outputs, b: TokenBatch, objective: Objective, state: dict, seed: int
) -> tuple[list[Term], Metrics]:
    """The policy's term of a step. seed: of the tokens that are drawn, where the objective draws some."""
    chosen = None
    if objective.coupled:
        place = torch.arange(b.mask.numel(), device=b.mask.device)
        draws = rng.uniform(torch.full_like(place, seed), place).view(b.mask.shape)
        chosen = chosen_tokens(objective, out.logp, b.advantage, b.mask, entropy=out.entropy, draws=draws)
    value, metrics = policy_loss(
        out.logp,
        out.logp.detach() if b.old_logp is None else b.old_logp,  # one update per rollout: the ratio is exactly 1
        b.advantage,
        b.mask,
        objective,
        ref_logp=b.ref_logp,
        sampled_logp=b.sampled_logp,
        entropy=out.entropy,
        chosen=chosen,
        beta=state["beta"] if objective.kl.where == "loss" else None,
        tie=state["tie"] if objective.proximal.estimator != "none" else None,
        bonus=state["bonus"],
    )
    return [Term("policy", value, b.weights["token"])], metrics


def first_weights(objective: Objective) -> dict[str, float]:
    """What the loop's state holds of leash, tie and bonus; of the bonus also its weight before its own gate."""
    bonus = objective.entropy.weight
    return {"beta": objective.kl.beta, "tie": objective.proximal.weight, "entropy": bonus, "bonus": bonus}


def next_weights(objective: Objective, state: dict, metrics: Metrics) -> dict[str, float]:
    """The weights of tie and bonus for the next step, after what was measured in this one."""
    kl_old, entropy = (float(metrics[name][0]) / max(float(metrics[name][1]), 1.0) for name in ("kl_old", "entropy"))
    weight, bonus = next_entropy(objective.entropy, state["entropy"], entropy)
    return {"tie": next_proximal(objective.proximal, state["tie"], kl_old), "entropy": weight, "bonus": bonus}


def usable(groups: list[Group], objective: Objective) -> list[Group]:
    """The groups that a step is made of: without those that hold too few scored answers, or nothing to compare."""
    if objective.keep == "mixed":
        return with_variance(groups)
    return [g for g in groups if len(scored(g)) >= (2 if objective.needs_group else 1)]


def members(groups: Sequence[Group]) -> list[Trajectory]:
    """The scored trajectories, in the order of `collate_groups`: `TokenBatch.trajectory` counts them."""
    return [m for g in groups for m in g.members if m.score is not None and m.score.value is not None and m.segments]


def learning_batch(
    groups: list[Group],
    policy: Learner,
    reference: Any,
    objective: Objective,
    state: dict,
    *,
    rewards: Rewards,
    form: Form,
    greedy: Callable[[Sequence[Group]], list[Group]],
    old: bool,
) -> tuple[TokenBatch, dict]:
    """Everything that the updates of a step read, and the loop's state after it.

    groups: usable and shaped. greedy: a shaped greedy answer to each group's task, made only where it is needed.
    old: whether the ratio needs what the policy says now, since several updates follow.
    """
    batch, reward = collate_groups(groups, policy.tokenizer.pad_id)
    batch = with_logps(batch, policy, reference, old=old)
    given = estimator_inputs(batch, groups, objective, rewards, greedy, policy)
    batch, state = with_advantages(batch, reward, objective, state, **given)
    if form.truncated == "dropped":  # after the advantages: a cut answer's reward counts in its group
        ended = torch.tensor([m.stop is not Stop.LENGTH for m in members(groups)])
        batch = batch.select(ended[batch.trajectory].nonzero().flatten())
    return batch, state


def with_logps(batch: TokenBatch, policy: Learner, reference, *, old: bool) -> TokenBatch:
    """The batch with what the frozen reference says, and where several updates follow, what the policy says now."""
    if reference is not None:
        batch = batch.with_(ref_logp=outputs(reference, batch, ("logp",), policy.optim.micro_tokens).logp)
    return batch.with_(old_logp=policy.outputs(batch).logp) if old else batch


def estimator_inputs(
    batch: TokenBatch, groups: Sequence[Group], objective: Objective, rewards: Rewards, greedy, policy: Learner
) -> dict[str, Tensor]:
    """What the objective's estimator takes besides rewards, as keyword arguments of `estimate`."""
    match objective.advantage:
        case "greedy":
            best = [(scored(g) or [nan])[0] for g in greedy(groups)]
            return {"greedy": torch.tensor(best)[batch.group]}
        case "decoupled":
            parts, weights = kinds(groups, rewards)
            return {"parts": parts[batch.trajectory], "weights": weights}
        case "optimal_token":
            out = policy.outputs(batch, ("logp", "sum_sq"))
            return {"old_logp": out.logp, "sum_sq": out.sum_sq}
        case _:
            return {}


def kinds(groups: Sequence[Group], rewards: Rewards) -> tuple[Tensor, Tensor]:
    """Rewards by kind [trajectories, K], NaN where one was not given, and their weights [K].

    The kinds are the rewards of the run; of a single one the parts that its scores name; and what the form of an answer
    adds. Raises ConfigError where that is one kind only.
    """
    found = members(groups)
    weights = {name: weight for name, (_, weight) in rewards.items() if weight}
    if len(weights) == 1:
        (only,) = weights
        parts = dict.fromkeys(p for m in found for p in m.score.parts if p.startswith(f"{only}."))
        weights = dict.fromkeys(parts, weights[only]) or weights
    if any(PART in m.score.parts for m in found):
        weights[PART] = 1.0
    if len(weights) < 2:
        raise ConfigError(
            f'objective.advantage = "decoupled" scales several rewards each by itself, but there is one: '
            f'{", ".join(weights)}. Name more, as in reward = "auto + 0.2 * ended", or let your function return a '
            "Score with parts."
        )
    table = [[m.score.parts.get(name, nan) for name in weights] for m in found]
    return torch.tensor(table), torch.tensor(list(weights.values()))


def with_advantages(
    batch: TokenBatch, reward: Tensor, objective: Objective, state: dict, **given: Tensor
) -> tuple[TokenBatch, dict]:
    """The batch with an advantage on every token, and the loop's state after it.

    The KL charge enters the reward here, from the sampler's own log-probabilities; a controller may then move beta.
    given: from `estimator_inputs`.
    """
    row_reward = last_segment_reward(batch, reward)
    kl = None
    if objective.kl.where == "reward":
        kl = kl_estimate(batch.sampled_logp - batch.ref_logp, objective.kl.estimator)
    rewards = token_rewards(row_reward, batch.mask, kl=kl, beta=state["beta"] if kl is not None else 0.0)
    baseline = state["baseline"] if objective.advantage == "return" else None
    advantage = estimate(
        objective.advantage,
        rewards,
        batch.mask,
        batch.group,
        trajectory=batch.trajectory,
        baseline=baseline,
        k=objective.k,
        **given,
    )
    state = dict(state)
    if objective.advantage == "return":
        state |= running_baseline({name: state[name] for name in ("baseline", "weight")}, reward)
    if kl is not None:
        measured = float((kl * batch.mask).sum()) / len(reward)
        state["beta"] = next_beta(objective.kl, state["beta"], measured, len(reward))
    return batch.with_(advantage=advantage), state


def last_segment_reward(batch: TokenBatch, reward: Tensor) -> Tensor:
    """[N] the reward of each trajectory on its last segment, 0 on earlier ones."""
    later = batch.trajectory[1:] == batch.trajectory[:-1]
    out = reward[batch.trajectory].clone()
    out[:-1][later] = 0.0
    return out


def check_gap(metrics: Metrics, optim: Optim):
    """Sampler and learner hold the same weights in the same precision: they must agree to its rounding."""
    total, count = metrics["sampler_gap_mean"]
    limit = 0.02 if optim.precision == "bfloat16" else 1e-4
    return check_sampler_gap(float(total) / max(float(count), 1.0), float(metrics["sampler_gap_max"][0]), limit=limit)
