"""REINFORCE on a control task: whole episodes, one step of the policy, and nothing kept from the batch.

`baseline` and `credit` are the two ways in which the same gradient gets less variance: what is subtracted from a
return, and which rewards an action answers for. Section 11 of the book tells the story. Episodes that reach the time
limit count as over: without a critic nobody knows what would have come.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from posttrain.control.learning import (
    Kept,
    as_samples,
    check_end,
    first_checks,
    make_actor,
    of_critic,
    of_episodes,
    value_terms,
)
from posttrain.control.policies import Policy
from posttrain.control.steps import StepBatch, collect
from posttrain.errors import ConfigError
from posttrain.objectives.advantages.batch import running_baseline
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import policy_loss
from posttrain.objectives.regularizers import Entropy
from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.tokens import masked
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig

Baseline = Literal["none", "running", "value"]
Credit = Literal["to_go", "total"]
NEEDS = ("logp", "entropy")
"""What the loss takes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """REINFORCE on a control task."""

    env: str = "CartPole-v1"
    """A Gymnasium id: observations are a row of numbers, actions a choice or a row of bounded numbers."""
    episodes: int = 16
    """Whole episodes per step, each in an environment of its own."""
    baseline: Baseline = "value"
    """What is subtracted from a return. none; running: the moving average of whole returns; value: a critic's guess,
    fitted to the batches before this one."""
    credit: Credit = "to_go"
    """to_go: an action answers for the rewards after it. total: for all rewards of its episode."""
    gamma: float = 0.99
    """Discount per step."""
    entropy: Entropy = Entropy()
    """A bonus for being undecided."""
    reward_scale: float = 0.01
    """What rewards are multiplied by before anything is learned from them; 0.01 gives CartPole's returns unit size."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers, in the policy and in the critic."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Steps, each of one batch of episodes and one update of the policy."""
    critic_updates: int = 20
    """Updates of the critic on each batch, after the policy's."""
    optim: Optim = Optim(lr=1e-2, beta2=0.999)
    """Optimizer of the policy."""
    critic_optim: Optim = Optim(lr=3e-3, beta2=0.999)
    """Optimizer of the critic."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        problems = [
            f"{name} = {getattr(self, name)} must be at least 1"
            for name in ("episodes", "steps", "critic_updates")
            if getattr(self, name) < 1
        ]
        for name, known in (("baseline", ("none", "running", "value")), ("credit", ("to_go", "total"))):
            if getattr(self, name) not in known:
                problems.append(f'{name} = "{getattr(self, name)}" is not one of {", ".join(known)}')
        if self.credit == "total" and self.baseline == "value":
            problems.append(
                'credit = "total" with baseline = "value": the critic guesses what is still to come, not what has '
                'been. Set baseline to "running", or credit to "to_go"'
            )
        if self.entropy.target is not None:
            problems.append("entropy.target: the bonus has a fixed weight here; set entropy.weight alone")
        if not 0 <= self.gamma <= 1:
            problems.append(f"gamma = {self.gamma} must lie between 0 and 1")
        if not self.reward_scale > 0:
            problems.append(f"reward_scale = {self.reward_scale} must be positive")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def objective(self) -> Objective:
        """These choices on the menu of the whole family: no ratio and no clip."""
        free = Clip(kind="none")
        return Objective(advantage="return", ratio="none", clip=free, average=Average("sum"), entropy=self.entropy)


def plan(cfg: Config) -> str:
    """The arithmetic of a run, in words, without training."""
    return f"{cfg.env}: {cfg.steps} steps of {cfg.episodes} whole episodes, one update of the policy each."


def train(cfg: Config, run: Run) -> Result:
    """REINFORCE: Williams 1992, with the reward to go of Sutton et al. 1999.

    ∇J = E[ Σ_t (G_t - b(s_t)) ∇ log π(a_t | s_t) ]        G_t = Σ_{k≥t} γ^{k-t} r_k
    """
    if run.finished:
        return run.result
    actor = make_actor(cfg.env, cfg.episodes, cfg.hidden, run.settings.seed)
    policy = Learner(actor.policy, cfg.optim, cfg.steps)
    critic = Learner(actor.critic, cfg.critic_optim, cfg.steps * cfg.critic_updates)
    parts = {"policy": Kept(actor.policy, policy), "critic": Kept(actor.critic, critic), "envs": actor.envs}
    state = run.load(parts, {"env_steps": 0, "baseline": 0.0, "weight": 0.0})
    run.plan(plan(cfg))

    for step in run.steps(cfg.steps):
        batch, episodes = collect(actor.envs, actor.policy, run.seed(step, "actions"))  # τ ~ π_θ
        metrics, state["env_steps"] = of_episodes(episodes, batch, state["env_steps"])
        paid = batch.reward
        batch = credited(batch.with_(reward=cfg.reward_scale * paid), actor.critic, cfg, state["baseline"])
        run.keep_samples(step, as_samples(batch, paid))
        batch = batch.weigh(cfg.objective.average)
        first = policy.version == 0
        metrics = add(metrics, policy.step(Part(batch, bound(cfg), NEEDS)))
        if first:
            first_checks(run, step, metrics, policy)
        if cfg.baseline == "running":
            state |= running_baseline({k: state[k] for k in ("baseline", "weight")}, batch.value_target[:, 0])
        for _ in range(cfg.critic_updates if cfg.baseline == "value" else 0):
            fitted = batch.weigh(Average("token"))
            metrics = add(metrics, of_critic(critic.step(Part(fitted, value_terms, ("values",)))))
        run.log(step, metrics)
        run.save(step, parts, state)
    check_end(run, cfg.steps, actor)
    return run.finish()


@torch.no_grad()
def credited(batch: StepBatch, critic: torch.nn.Module, cfg: Config, running: float = 0.0) -> StepBatch:
    """The batch with advantages, returns less the baseline, and with the returns as value targets.

    running: the baseline of "running", from batches before this one.
    """
    returns = rewards_to_go(batch.reward, batch.mask, gamma=cfg.gamma)
    value = batch.forward(critic, ("values",))["values"] if cfg.baseline == "value" else torch.zeros_like(returns)
    credit = returns[:, :1].expand_as(returns) if cfg.credit == "total" else returns
    less = value if cfg.baseline == "value" else (running if cfg.baseline == "running" else 0.0)
    return batch.with_(advantage=masked(credit - less, batch.mask), value_target=returns, old_value=value)


def bound(cfg: Config):
    """The loss of a step: -(G_t - b) · log π_θ(a_t | s_t)."""

    def loss(out: Outputs, b: StepBatch) -> tuple[list[Term], Metrics]:
        value, metrics = policy_loss(
            out.logp, out.logp.detach(), b.advantage, b.mask, cfg.objective,
            sampled_logp=b.sampled_logp, entropy=out.entropy,
        )  # fmt: skip
        return [Term("policy", value, b.weights["token"])], metrics

    return loss


def gradient(policy: Policy, batch: StepBatch, cfg: Config) -> Tensor:
    """[weights] the gradient of the return that a batch from `credited` estimates, for study: no weight is changed."""
    batch = batch.weigh(cfg.objective.average)
    out = Outputs(**batch.forward(policy, NEEDS))
    (term,), _ = bound(cfg)(out, batch)
    return -torch.cat([g.flatten() for g in torch.autograd.grad((term.weight * term.value).sum(), policy.parameters())])
