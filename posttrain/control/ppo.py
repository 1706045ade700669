"""Proximal policy optimisation on a control task: several passes of first-order steps over a batch, held by a clip.

`--preset ppo` clips, `ppo_penalty` charges for leaving the old policy and steers its weight, `unclipped` has nothing to
hold it and is there for study. `update` is one batch's worth of all this and serves `segments` as well. Section 13 of
the book tells the story.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from posttrain.control.learning import (
    Actor,
    Kept,
    Task,
    as_samples,
    check_end,
    first_checks,
    foreseen,
    make_actor,
    of_critic,
    of_episodes,
    value_terms,
    with_values,
)
from posttrain.control.steps import StepBatch, collect
from posttrain.errors import ConfigError
from posttrain.objectives.kl import k3
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import policy_loss
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.regularizers import Kl, next_proximal
from posttrain.objectives.surrogate import Clip
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig

FORMS = {
    "ppo": replace(PRESETS["ppo"], kl=Kl()),
    "ppo_penalty": PRESETS["ppo_penalty"],
    "unclipped": replace(PRESETS["ppo"], kl=Kl(), clip=Clip(kind="none")),
}
"""PPO's forms without the leash to a reference, which a policy that starts from nothing does not have."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is made of a batch."""

    objective: Objective = FORMS["ppo"]
    """Clip or penalty, and a bonus for entropy."""
    gamma: float = 0.99
    """Discount per step."""
    lam: float = 0.95
    """λ of generalised advantage estimation."""
    epochs: int = 5
    """Passes over each batch."""
    minibatches: int = 4
    """Optimizer steps per pass."""
    value_clip: float | None = None
    """How far a value may move per batch before its gradient is cut, in units of scaled reward. None: no clipping."""
    stop_kl: float | None = None
    """Leave out the remaining passes once kl(old ‖ policy) per step exceeds this. None: never."""
    optim: Optim = Optim(lr=1e-3, beta2=0.999, max_grad_norm=0.5)
    """Optimizer of the policy."""
    critic_optim: Optim = Optim(lr=3e-3, beta2=0.999, max_grad_norm=0.5)
    """Optimizer of the critic."""

    def __post_init__(self):
        o = self.objective
        problems = [f"{n} = {getattr(self, n)} must be at least 1" for n in ("epochs", "minibatches")
                    if getattr(self, n) < 1]  # fmt: skip
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} = {getattr(self, name)} must lie between 0 and 1")
        if self.stop_kl is not None and not self.stop_kl > 0:
            problems.append(f"stop_kl = {self.stop_kl} must be positive (0.015 is usual); none turns it off")
        if o.advantage != "gae" or o.ratio != "token" or o.average.kind != "token":
            problems.append("objective: advantage = gae, ratio = token and average = token are what PPO is here")
        if o.kl.where != "none" or o.needs_sampler or o.coupled or o.entropy.target is not None:
            problems.append(
                "objective: on a control task there is no reference, no second engine and no choice of tokens; leave "
                "kl, mismatch, old, gate.against, focus, proximal.share and entropy.target as they are"
            )
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Config:
    """PPO on a control task."""

    task: Task = Task()
    """The environment, the size of a batch, the networks."""
    update: Update = Update()
    """What is made of a batch: objective, advantages, passes, optimizers."""
    steps: int = field(default=50, metadata=MAY_CHANGE)
    """Batches."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    PRESETS: ClassVar[dict[str, dict]] = {"update": {name: Update(objective=o) for name, o in FORMS.items()}}

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps} must be at least 1")
        check_minibatches(self.update, self.task)


def check_minibatches(update: Update, task: Task) -> None:
    """Raise ConfigError where a batch has fewer steps than it is to be cut into."""
    if update.minibatches > task.envs * task.horizon:
        raise ConfigError(
            f"update.minibatches = {update.minibatches} cannot exceed the batch's {task.envs * task.horizon} steps"
        )


def plan(cfg: Config) -> str:
    """The arithmetic of a run, in words, without training."""
    u = cfg.update
    return f"{cfg.task.words()}, {cfg.steps} batches. Each: {u.epochs} passes of {u.minibatches} optimizer steps."


def train(cfg: Config, run: Run) -> Result:
    """PPO: Schulman et al. 2017 (arXiv 1707.06347), algorithm 1, with a critic of its own."""
    if run.finished:
        return run.result
    task, u = cfg.task, cfg.update
    actor = make_actor(task.env, task.envs, task.hidden, run.settings.seed)
    policy, critic = learners(actor, u, cfg.steps)
    parts = {"policy": Kept(actor.policy, policy), "critic": Kept(actor.critic, critic), "envs": actor.envs}
    state = run.load(parts, {"env_steps": 0, "tie": u.objective.proximal.weight})
    run.plan(plan(cfg))

    for step in run.steps(cfg.steps):
        batch, episodes = collect(actor.envs, actor.policy, run.seed(step, "actions"), task.horizon)
        metrics, state["env_steps"] = of_episodes(episodes, batch, state["env_steps"])
        paid = batch.reward
        batch = valued(batch.with_(reward=task.reward_scale * paid), critic, u)
        run.keep_samples(step, as_samples(batch, paid))
        first = policy.version == 0
        found, state["tie"] = improve(policy, critic, batch, u, run.seed(step, "minibatches"), state["tie"])
        metrics = add(metrics, found)
        if first:
            first_checks(run, step, metrics, policy)
        run.log(step, metrics)
        run.save(step, parts, state)
    check_end(run, cfg.steps, actor)
    return run.finish()


def learners(actor: Actor, u: Update, steps: int) -> tuple[Learner, Learner]:
    """Of policy and critic, for so many batches."""
    total = steps * u.epochs * u.minibatches
    return Learner(actor.policy, u.optim, total), Learner(actor.critic, u.critic_optim, total)


def valued(batch: StepBatch, critic: Learner, u: Update) -> StepBatch:
    """A batch as collected, with the rewards to learn from: with values, whitened advantages and value targets."""
    return with_values(batch, critic.model, gamma=u.gamma, lam=u.lam, normalise=True)


def improve(
    policy: Learner, critic: Learner, batch: StepBatch, u: Update, seed: int, tie: float
) -> tuple[Metrics, float]:
    """All passes over one batch.

    batch: from `valued`. seed: of the minibatches. tie: weight of the penalty, if the
    objective has one. Returns what is logged, and the penalty's weight for the next batch.
    """
    metrics = foreseen(batch)
    batch = batch.flat()
    batch = batch.with_(old_logp=policy.outputs(batch).logp)

    def loss(out: Outputs, b: StepBatch) -> tuple[list[Term], Metrics]:
        value, found = policy_loss(
            out.logp, b.old_logp, b.advantage, b.mask, u.objective, sampled_logp=b.sampled_logp, entropy=out.entropy,
            tie=tie if u.objective.proximal.estimator != "none" else None,
        )  # fmt: skip
        return [Term("policy", value, b.weights["token"])], found

    def value(out: Outputs, b: StepBatch) -> tuple[list[Term], Metrics]:
        return value_terms(out, b, u.value_clip)

    updates, away = 0, 0.0
    for epoch in range(u.epochs):
        for mini in batch.minibatches(u.minibatches, seed + epoch):
            mini = mini.weigh(u.objective.average)
            metrics = add(metrics, of_critic(critic.step(Part(mini, value, ("values",)))))
            metrics = add(metrics, policy.step(Part(mini, loss, ("logp", "entropy"))))
            updates += 1
        away = moved(policy, batch)
        if u.stop_kl is not None and away > u.stop_kl:
            break
    ended = {"kl_trust": (away, 1), "kl_trust_max": (away, 1), "minibatch_steps": (updates, 1)}
    return metrics | ended, next_proximal(u.objective.proximal, tie, away)


@torch.no_grad()
def moved(policy: Learner, batch: StepBatch) -> float:
    """kl(old ‖ policy) per step after some updates on a flat batch, in nats: k3 on the old policy's actions."""
    return float(k3(batch.old_logp - policy.outputs(batch).logp).mean())
