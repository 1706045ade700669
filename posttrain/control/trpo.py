"""Trust region policy optimisation: the largest improvement within a bound on how far the policy itself may move.

A step is measured in kl(old ‖ new), averaged over the states of the batch and exact at each, since the whole
distribution is known. The direction is the natural gradient, found with conjugate gradients from products with the
Fisher matrix; the length is first right for a quadratic KL and then shortened until gain and bound hold as they are.
Section 13 of the book tells the story.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from posttrain.control.learning import (
    Kept,
    Task,
    as_samples,
    check_end,
    check_kl,
    flat,
    foreseen,
    make_actor,
    of_critic,
    of_episodes,
    value_terms,
    with_values,
)
from posttrain.control.policies import Policy
from posttrain.control.steps import StepBatch, collect
from posttrain.errors import ConfigError
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import policy_loss
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.trust_region import Accepted, fisher_product, line_search, natural_step
from posttrain.train.learner import Learner, Optim, Part
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig

SURROGATE = Objective(advantage="gae", clip=Clip(kind="none"), average=Average("token"))
"""mean ρ_t A_t: what the step improves. The trust region stands in place of a clip."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """TRPO on a control task."""

    task: Task = Task()
    """The environment, the size of a batch, the networks."""
    gamma: float = 0.99
    """Discount per step."""
    lam: float = 0.97
    """λ of generalised advantage estimation."""
    delta: float = 0.01
    """The bound on kl(old ‖ new) per step, in nats, averaged over states."""
    damping: float = 0.1
    """Added to the Fisher matrix's diagonal."""
    iterations: int = 10
    """Of conjugate gradient."""
    shrink: float = 0.8
    """What the step is multiplied by after each trial that fails."""
    tries: int = 10
    """Trials of the line search; after the last the policy stays."""
    line_search: bool = True
    """False takes the whole step untested: the natural policy gradient of Kakade 2001, for study."""
    steps: int = field(default=50, metadata=MAY_CHANGE)
    """Steps, each of one batch and one update of the policy."""
    critic_updates: int = 40
    """Updates of the critic on each batch."""
    critic_optim: Optim = Optim(lr=3e-3, beta2=0.999)
    """Optimizer of the critic."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        problems = [
            f"{name} = {getattr(self, name)} must be at least 1"
            for name in ("steps", "iterations", "tries", "critic_updates")
            if getattr(self, name) < 1
        ]
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} = {getattr(self, name)} must lie between 0 and 1")
        if not self.delta > 0:
            problems.append(f"delta = {self.delta} must be positive; 0.01 nats is usual")
        if not self.damping >= 0:
            problems.append(f"damping = {self.damping} cannot be negative; 0.1 is usual")
        if not 0 < self.shrink < 1:
            problems.append(f"shrink = {self.shrink} must lie between 0 and 1")
        if problems:
            raise ConfigError("\n".join(problems))


def plan(cfg: Config) -> str:
    """The arithmetic of a run, in words, without training."""
    return (
        f"{cfg.task.words()}, {cfg.steps} batches. Each: a natural-gradient step of at most {cfg.delta:g} nats from up "
        f"to {cfg.iterations + 1} Fisher products, and {cfg.critic_updates} updates of the critic."
    )


def train(cfg: Config, run: Run) -> Result:
    """TRPO: Schulman et al. 2015 (arXiv 1502.05477), appendix C.

    max_θ mean ρ_t(θ) A_t   subject to   mean_s kl(π_old(·|s) ‖ π_θ(·|s)) ≤ δ
    """
    if run.finished:
        return run.result
    task = cfg.task
    actor = make_actor(task.env, task.envs, task.hidden, run.settings.seed)
    critic = Learner(actor.critic, cfg.critic_optim, cfg.steps * cfg.critic_updates)
    parts = {"policy": Kept(actor.policy), "critic": Kept(actor.critic, critic), "envs": actor.envs}
    state = run.load(parts, {"env_steps": 0})
    run.plan(plan(cfg))

    for step in run.steps(cfg.steps):
        batch, episodes = collect(actor.envs, actor.policy, run.seed(step, "actions"), task.horizon)
        metrics, state["env_steps"] = of_episodes(episodes, batch, state["env_steps"])
        paid = batch.reward
        batch = batch.with_(reward=task.reward_scale * paid)
        batch = with_values(batch, actor.critic, gamma=cfg.gamma, lam=cfg.lam, normalise=True)
        run.keep_samples(step, as_samples(batch, paid))
        batch = batch.flat().weigh(Average("token"))
        accepted, found = improve(actor.policy, batch, cfg)
        if cfg.line_search:
            run.check(step, *(c for c in (check_kl(accepted.kl, cfg.delta),) if not c.ok or step == 0))
        metrics = add(metrics, found) | foreseen(batch)
        for _ in range(cfg.critic_updates):
            metrics = add(metrics, of_critic(critic.step(Part(batch, value_terms, ("values",)))))
        run.log(step, metrics)
        run.save(step, parts, state)
    check_end(run, cfg.steps, actor)
    return run.finish()


def improve(policy: Policy, batch: StepBatch, cfg: Config) -> tuple[Accepted, Metrics]:
    """One step of the policy inside the trust region; its weights are changed.

    batch: flat and weighed, with advantages. Returns what the line search accepted, and what is logged of it; of the
    untested natural gradient its whole step, with the KL that it made.
    """
    surrogate, kl = objectives(policy, batch)
    theta, products = flat(policy), 0
    at = theta.clone().requires_grad_()
    gain, metrics = surrogate(at)
    (gradient,) = torch.autograd.grad(gain, at)

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return fisher_product(kl, theta, v, damping=cfg.damping)

    @torch.no_grad()
    def evaluate(candidate: Tensor) -> tuple[float, float]:
        return float(surrogate(candidate)[0] - gain), float(kl(candidate))

    delta = natural_step(gradient, product, delta=cfg.delta, iterations=cfg.iterations)
    if cfg.line_search:
        found = line_search(evaluate, theta, delta, delta=cfg.delta, shrink=cfg.shrink, tries=cfg.tries)
    else:
        found = Accepted(theta + delta, 0, *evaluate(theta + delta))
    torch.nn.utils.vector_to_parameters(found.theta, policy.parameters())
    return found, metrics | {
        "kl_trust": (found.kl, 1),
        "kl_trust_max": (found.kl, 1),
        "surrogate_gain": (found.gain, 1),
        "search_trials": (cfg.tries if found.trial is None else found.trial + 1, 1),
        "search_failed_share": (found.trial is None, 1),
        "fisher_products": (products, 1),
        "grad_norm": (float(gradient.norm()), 1),
    }


def objectives(
    policy: Policy, batch: StepBatch
) -> tuple[Callable[[Tensor], tuple[Tensor, Metrics]], Callable[[Tensor], Tensor]]:
    """Gain and KL of a batch as functions of all weights as one vector [D], the policy now being the old one.

    The first returns (mean ρ A, metrics), the second mean kl(old ‖ new), both differentiable.
    """
    shapes = {name: p.shape for name, p in policy.named_parameters()}
    with torch.no_grad():
        old = policy(batch.obs[:, 0])
        old_logp = old.logp(batch.action[:, 0])[:, None]

    def at(theta: Tensor):
        pieces = theta.split([shape.numel() for shape in shapes.values()])
        weights = {n: x.view(shape) for (n, shape), x in zip(shapes.items(), pieces, strict=True)}
        return functional_call(policy, weights, (batch.obs[:, 0],))

    def surrogate(theta: Tensor) -> tuple[Tensor, Metrics]:
        new = at(theta)
        logp, entropy = new.logp(batch.action[:, 0])[:, None], new.entropy()[:, None]
        loss, metrics = policy_loss(
            logp, old_logp, batch.advantage, batch.mask, SURROGATE, sampled_logp=batch.sampled_logp, entropy=entropy
        )
        return -(batch.weights["token"] * loss).sum(), metrics

    return surrogate, lambda theta: old.kl(at(theta)).mean()
