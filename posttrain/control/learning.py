"""What the control loops share: the task, a critic and its targets, parts of a checkpoint, what is logged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain import dist
from posttrain.control.policies import Policy, Value
from posttrain.control.steps import Envs, Episode, StepBatch
from posttrain.errors import ConfigError
from posttrain.objectives.advantages.batch import whiten
from posttrain.objectives.returns import explained_variance, gae
from posttrain.objectives.tokens import masked
from posttrain.objectives.value import value_loss
from posttrain.train.invariants import Check, check_movement, check_sampler_gap
from posttrain.train.learner import Learner, Outputs, Term
from posttrain.train.metrics import Metrics
from posttrain.train.run import Run


@dataclass(frozen=True, kw_only=True)
class Task:
    """An environment, how much of it a step sees, and the networks."""

    env: str = "CartPole-v1"
    """A Gymnasium id: observations are a row of numbers, actions a choice or a row of bounded numbers."""
    envs: int = 8
    """Environments side by side."""
    horizon: int = 256
    """Steps per environment and batch. Episodes go on in the next batch."""
    reward_scale: float = 0.1
    """What rewards are multiplied by before anything is learned from them, so that values are of about unit size. What
    is logged is in the environment's own units."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers, in the policy and in the critic."""

    def __post_init__(self):
        problems = [f"{n} = {getattr(self, n)} must be at least 1" for n in ("envs", "horizon") if getattr(self, n) < 1]
        if not self.reward_scale > 0:
            problems.append(f"reward_scale = {self.reward_scale} must be positive")
        if any(h < 1 for h in self.hidden):
            problems.append(f"hidden = {self.hidden}: each layer has at least one unit")
        if problems:
            raise ConfigError("\n".join(problems))

    def words(self) -> str:
        """What a batch is."""
        n = self.envs * self.horizon
        return f"{self.env}: {self.envs} environments x {self.horizon} steps = {n:,} steps per batch"


class Kept:
    """A network, and the learner that trains it if there is one, as a part of a checkpoint."""

    def __init__(self, model: nn.Module, learner: Learner | None = None):
        self.model, self.learner = model, learner

    def state(self) -> dict[str, Any]:
        """Weights, and what the next optimizer step depends on."""
        return {"weights": self.model.state_dict(), "learner": self.learner.state() if self.learner else {}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state()` was taken."""
        self.model.load_state_dict(state["weights"])
        if self.learner:
            self.learner.load_state(state["learner"])


@dataclass(frozen=True)
class Actor:
    """What every control run holds."""

    envs: Envs
    policy: Policy
    critic: Value
    start: Tensor
    """The policy's weights before training, flat."""


def make_actor(env: str, n: int, hidden: Sequence[int], seed: int) -> Actor:
    """Environments and networks, as functions of the seed. Raises ConfigError under torchrun: one process is enough."""
    if dist.world() > 1:
        raise ConfigError(f"control tasks train in one process, and torchrun started {dist.world()}: start one.")
    envs = Envs(env, n, seed)
    policy = Policy(envs.spaces, hidden, seed)
    return Actor(envs, policy, Value(envs.spaces, hidden, seed), flat(policy))


def flat(model: nn.Module) -> Tensor:
    """A copy of all weights as one vector."""
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@torch.no_grad()
def with_values(batch: StepBatch, critic: nn.Module, *, gamma: float, lam: float, normalise: bool) -> StepBatch:
    """The batch with values, advantages and value targets; a row that was cut off goes on with the critic's guess.

    gamma, lam: of generalised advantage estimation. normalise: whiten the advantages, after the targets are made.
    """
    value = batch.forward(critic, ("values",))["values"]
    after = masked(critic(batch.last_obs), ~batch.ended)
    advantage, target = gae(batch.reward, value, batch.mask, gamma=gamma, lam=lam, last_value=after)
    advantage = whiten(advantage, batch.mask) if normalise else advantage
    return batch.with_(old_value=value, advantage=advantage, value_target=target)


def value_terms(out: Outputs, b: StepBatch, clip: float | None = None) -> tuple[list[Term], Metrics]:
    """The critic's term of a step."""
    value, metrics = value_loss(out.values, b.old_value, b.value_target, b.mask, clip=clip)
    return [Term("value", value, b.weights["token"])], metrics


def as_samples(batch: StepBatch, paid: Tensor) -> list[dict[str, Any]]:
    """Rows of a batch for samples.jsonl, each an episode or a piece of one: seen, done, earned, reinforced with.

    batch: with advantages; its rewards are what is learned from. paid: [N, T] what the environment paid.
    """

    def numbers(x: Tensor, i: int) -> Tensor:
        return x[i][batch.mask[i]].double().round(decimals=4)

    return [
        {
            "observations": numbers(batch.obs, i),
            "actions": numbers(batch.action, i) if batch.action.is_floating_point() else batch.action[i][batch.mask[i]],
            "paid": numbers(paid, i),
            "rewards": numbers(batch.reward, i),
            "advantages": numbers(batch.advantage, i),
            "ended": bool(batch.ended[i]),
        }
        for i in range(len(batch))
    ]


def of_critic(metrics: Metrics) -> Metrics:
    """What a critic's step adds to the log, where loss, lr and grad_norm are the policy's."""
    return {name: x for name, x in metrics.items() if name not in ("loss", "lr", "grad_norm")}


def foreseen(batch: StepBatch) -> Metrics:
    """How much of the returns the critic foresaw; left out where all are equal."""
    found = explained_variance(batch.old_value, batch.value_target, batch.mask)
    return {"explained_variance": (found.nan_to_num(), found.isfinite())}


def of_episodes(episodes: Sequence[Episode], batch: StepBatch, before: int) -> tuple[Metrics, int]:
    """What is logged of a batch in the environment's own units, and how many steps were taken so far.

    before: steps taken before this batch. Episodes that began in an earlier batch count where they end.
    """
    taken = before + int(batch.mask.sum())
    n = len(episodes)
    return {
        "episode_return": (sum(e.reward for e in episodes), n),
        "episode_length": (sum(e.length for e in episodes), n),
        "env_steps": (taken, 1),
    }, taken


def first_checks(run: Run, step: int, metrics: Metrics, policy: Learner) -> None:
    """After the first update: sampler and learner agree, and the weights changed."""
    total, count = metrics["sampler_gap_mean"]
    gap = float(total) / max(float(count), 1.0)
    run.check(step, check_sampler_gap(gap, float(metrics["sampler_gap_max"][0])), policy.first)


def check_end(run: Run, step: int, actor: Actor) -> None:
    """At the end of a run: the policy is another one."""
    moved = float((flat(actor.policy) - actor.start).norm() / actor.start.norm())
    run.check(step, check_movement({"policy": moved}))


def check_kl(kl: float, bound: float) -> Check:
    """A trust region held: kl(old ‖ new), exact and averaged over the batch's steps, against its bound, in nats."""
    return Check(
        "kl_within_bound",
        kl <= bound,
        f"kl(old ‖ new) = {kl:.6f} nats (bound {bound:g})",
        "The line search accepts no such step: this is a defect of the loop, not of the settings.",
        fatal=True,
    )
