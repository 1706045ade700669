"""What loops that learn from their own samples share: how they begin, a rollout, the leash, the critic, a step's end.

The formulas stand in the loops (`reinforce`, `ppo`, `vapo`); here is what would otherwise be written in each of them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.algorithms.policy_step import check_gap, last_segment_reward, next_weights
from posttrain.batch import TokenBatch
from posttrain.data.rows import Rows, pick, tasks
from posttrain.envs.rollout import rollout
from posttrain.evals.run import evaluate
from posttrain.models.heads import ScalarModel
from posttrain.models.load import Loaded, frozen_copy, frozen_start, load
from posttrain.objectives.kl import k1, k3, kl_estimate
from posttrain.objectives.objective import Objective
from posttrain.objectives.regularizers import Kl, next_beta
from posttrain.objectives.returns import token_rewards
from posttrain.objectives.tokens import masked, values_before
from posttrain.objectives.value import value_loss
from posttrain.records import Group
from posttrain.rewards.base import Rewards, score
from posttrain.rewards.model import shapes
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.torch import TorchSampler
from posttrain.train.demand import Demand, Trained, rollouts
from posttrain.train.invariants import Signal, watch_signal
from posttrain.train.learner import Learner, Outputs, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import Run
from posttrain.train.signal import group_metrics

NEEDS = ("logp", "entropy")
"""What the policy's loss takes; the entropy is measured even where nothing rewards it."""


class Actor(NamedTuple):
    """A policy with all that it takes to sample from it and to grade what it says."""

    loaded: Loaded
    rows: Rows
    rewards: Rewards
    policy: Learner
    reference: nn.Module | None
    """The policy as it was at the start, or at a later step, frozen."""
    sampler: TorchSampler


def make_actor(cfg: Any, run: Run, updates: int, *, reference: bool, moves: bool = False) -> Actor:
    """The policy of a config, which has `model`, `template`, `data`, `reward`, `lora`, `optim` and `slots`.

    updates: optimizer steps of the whole run. reference: whether a frozen one is needed. moves: whether it will follow
    the policy, so that it cannot be the policy without its adapters.
    """
    loaded = load(cfg.model, template=cfg.template)
    rows = tasks(cfg.data, loaded)
    rewards = rewards_for(cfg.reward, rows.train)
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, updates, tokenizer=loaded.chat_tokenizer)
    frozen = (frozen_copy if moves else frozen_start)(policy.model) if reference else None
    return Actor(loaded, rows, rewards, policy, frozen, TorchSampler(policy.model, slots=cfg.slots))


def make_critic(cfg: Any, load: Callable[..., Loaded] = load) -> ScalarModel:
    """A model of its own, with a head that begins at zero unless it comes from a reward model.

    load: how to get a model from a name; `models.load.described` gives one without values.
    """
    body = load(cfg.critic or cfg.model, template=cfg.template).model
    return body if isinstance(body, ScalarModel) else ScalarModel(body)


def critic_demand(cfg: Any, rows: Rows, model: nn.Module, critic: nn.Module) -> Demand:
    """What the largest step of policy and critic needs: the longest prompt, under answers of full length."""
    batch, sampling = rollouts(cfg, rows, model)
    same = {"batch": batch, "rows": -(-cfg.prompts // cfg.minibatches) * cfg.group_size}
    critic = Trained(
        name="critic", model=critic, needs=("values",), optim=cfg.critic_optim, settings="critic_optim", **same
    )
    policy = Trained(name="policy", model=model, needs=NEEDS, optim=cfg.optim, **same)
    return Demand(
        trained=(critic, policy),
        references=(*(model,) * cfg.objective.needs_reference, *shapes(cfg.reward)),
        sampling=sampling,
        steps=cfg.steps,
        updates=cfg.epochs * cfg.minibatches,
        drops_gradients=True,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def sampled(actor: Actor, cfg: Any, run: Run, step: int, state: dict) -> tuple[list[Group], Metrics, Signal]:
    """The scored answers of a step by the policy as it is, what they say of themselves, and whether they can teach."""
    prompts = run.took(step, pick(actor.rows.train, step, cfg.prompts, cfg.run.seed))
    params = replace(cfg.sampling, stop_ids=actor.loaded.stop_ids)
    groups = rollout(actor.sampler, prompts, n=cfg.group_size, params=params, seed=run.seed(step, "rollout"),
                     template=actor.loaded.template, tokenizer=actor.loaded.tokenizer,
                     version=actor.policy.version)  # fmt: skip
    groups = score(groups, actor.rewards)
    metrics = group_metrics(groups)
    run.keep_samples(step, groups)  # before the checks, whose advice is to read them
    return groups, metrics, watch_signal(run, step, groups, state, grouped=False)


def charged(batch: TokenBatch, reward: Tensor, logp: Tensor, leash: Kl, state: dict) -> tuple[Tensor, dict, Metrics]:
    """Rewards per token [N, T], the loop's state after the leash's controller, and what the leash measured.

        r_t = -β · kl_t · [leash in the reward] + [t = last] · reward

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, and its section 2.2 for the controller of β.

    reward: [trajectories]. logp: [N, T] of the policy that sampled, as the learner or the sampler says it.
    """
    score = last_segment_reward(batch, reward)
    if batch.ref_logp is None:
        return token_rewards(score, batch.mask), state, {}
    ratio = logp - batch.ref_logp
    inside = leash.where == "reward"
    kl = kl_estimate(ratio, leash.estimator if inside else "k1")
    rewards = token_rewards(score, batch.mask, kl=kl if inside else None, beta=state["beta"] if inside else 0.0)
    metrics = {
        "kl_ref_answer": (masked(k1(ratio), batch.mask).sum(), len(reward)),
        "kl_beta": (state["beta"], 1),
        "reward_shaped": (rewards.sum(), len(reward)),
    }
    measured = float((kl * batch.mask).sum()) / len(reward)
    return rewards, state | {"beta": next_beta(leash, state["beta"], measured, len(reward))}, metrics


def with_values(batch: TokenBatch, critic: Learner) -> TokenBatch:
    """The batch with what the critic foresees now, at each token before it is chosen."""
    return batch.with_(old_value=values_before(critic.outputs(batch, ("values",)).values))


def critic_terms(out: Outputs, b: TokenBatch, clip: float | None) -> tuple[list[Term], Metrics]:
    """The critic's term of a step."""
    value, metrics = value_loss(values_before(out.values), b.old_value, b.value_target, b.mask, clip=clip)
    return [Term("value", value, b.weights["token"])], metrics


def of_critic(metrics: Metrics) -> Metrics:
    """What a critic's step adds to the log, where loss, lr and grad_norm are the policy's."""
    return {name: x for name, x in metrics.items() if name not in ("loss", "lr", "grad_norm")}


def begins_silent(learner: Learner, signal: Tensor) -> bool:
    """Whether a minibatch has nothing for a learner that has never been updated: its signal is 0 everywhere.

    Rare rewards fall into some minibatches only. Such a step would change no weight, which the learner takes, in its
    first one, for a defect.
    """
    return learner.version == 0 and not bool(signal.any())


@torch.no_grad()
def moved(policy: Learner, batch: TokenBatch) -> float:
    """kl(old ‖ policy) per token after some steps on a batch, in nats: k3 on samples of the old policy."""
    gap = masked(k3(batch.old_logp - policy.outputs(batch).logp), batch.mask)
    return float(gap.sum()) / max(int(batch.mask.sum()), 1)


def next_tie(objective: Objective, state: dict, metrics: Metrics, policy: Learner, batch: TokenBatch) -> dict:
    """The weights of tie and bonus for the next step; a tie with a target goes by where the step has ended."""
    if objective.proximal.target is not None:  # the log's kl_old is the mean along the way, 0 before the first update
        metrics = metrics | {"kl_old": (moved(policy, batch), 1)}
    return next_weights(objective, state, metrics)


def end_step(
    actor: Actor, cfg: Any, run: Run, step: int, metrics: Metrics, parts: dict, state: dict, *, first: bool
) -> None:
    """Hand the weights to the sampler, check the first update, evaluate where it is due, log and save.

    first: whether the policy had never been updated before this step.
    """
    actor.sampler.update(actor.policy)
    if first and actor.policy.version > 0:
        run.check(step, check_gap(metrics, cfg.optim), actor.policy.first)
    if actor.rows.held and run.due(step, cfg.eval_every):
        held = evaluate(actor.sampler, actor.rows.held, actor.loaded, actor.rewards, cfg.sampling.max_tokens)
        metrics = add(metrics, held)
    run.log(step, metrics)
    run.save(step, parts, state)
