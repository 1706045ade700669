"""REINFORCE: raise the log-probability of what was sampled, in proportion to how good it turned out to be.

The oldest policy gradient, and the measure of all others: no critic, no ratio, one optimizer step per batch of fresh
samples. What it may have besides is a baseline, which takes variance out of the gradient and leaves its mean alone,
and the reward to go, which spares a token the rewards that came before it. Section 11 of the book tells the story.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from posttrain.algorithms.onpolicy import NEEDS, charged, end_step, make_actor, sampled
from posttrain.algorithms.policy_step import first_weights, members, next_weights, policy_terms, with_logps
from posttrain.algorithms.shaping import Shaping, first_scale, shaped
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.data.rows import Data, Rows, report, tasks
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.advantages import leave_one_out, running_baseline
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.regularizers import Entropy, Kl
from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.tokens import masked
from posttrain.rewards.model import shapes
from posttrain.sample.base import SamplingParams
from posttrain.train.demand import Demand, Trained, probe, rollouts
from posttrain.train.invariants import check_movement
from posttrain.train.learner import Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig

BASELINES = ("none", "running", "leave_one_out")
CREDITS = ("total", "to_go")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The plain policy gradient."""

    model: str = "base"
    """Model to start from, which is also the reference: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:sums+chains", limit=4000, eval_rows=100)
    """Tasks: a prompt per row, with what the reward needs to grade an answer."""
    reward: str = "auto"
    """"auto" (the task's own verifier), "exact_number", "exact_match", a reward model as model:FOLDER, or your own as
    file.py:function."""
    shaping: Shaping = Shaping()
    """Scale and range of the scores, and what a missing end costs."""
    baseline: str = "running"
    """What is subtracted from the return. running: the moving average of earlier batches. leave_one_out: the mean of
    the other answers to the same prompt (RLOO). none: nothing, as in Williams's first form."""
    credit: str = "to_go"
    """to_go: a token is credited with the rewards from itself on. total: with all of its answer's. They differ only
    where tokens have rewards of their own, such as the leash's charge."""
    gamma: float = 1.0
    """Discount per token. 1: a late reward counts fully."""
    kl: Kl = Kl(where="reward", estimator="k1", beta=0.03)
    """The leash to the reference."""
    entropy: Entropy = Entropy()
    """A bonus for entropy."""
    average: Average = Average("sum")
    """How the losses of tokens are averaged over a step; "sum" is the gradient of the mean return."""
    prompts: int = 32
    """Prompts per step."""
    group_size: int = 4
    """Samples per prompt."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Steps: a rollout and one optimizer step each, since samples must be the policy's own."""
    sampling: SamplingParams = SamplingParams(max_tokens=64)
    """Temperature and length of the answers; stop ids come from the template."""
    slots: int = field(default=128, metadata=MAY_CHANGE)
    """Answers written side by side: bounds the sampler's memory; the others wait for a free place."""
    eval_every: int = field(default=25, metadata=MAY_CHANGE)
    """Steps between greedy evaluations on the held-out tasks. 0: none."""
    optim: Optim = Optim(lr=5e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    minibatches = 1
    """Not a setting: a second optimizer step would learn from samples of another policy."""

    def __post_init__(self):
        problems = []
        for name in ("prompts", "group_size", "steps", "slots"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)} must be at least 1")
        for name, known in (("baseline", BASELINES), ("credit", CREDITS)):
            if getattr(self, name) not in known:
                problems.append(f'{name} = "{getattr(self, name)}" is not one of {", ".join(known)}')
        if self.baseline == "leave_one_out" and self.group_size < 2:
            problems.append(
                f'group_size = {self.group_size}: baseline = "leave_one_out" needs another answer to a prompt'
            )
        if not 0 <= self.gamma <= 1:
            problems.append(f"gamma = {self.gamma} must lie between 0 and 1")
        if self.sampling.cuts or self.sampling.temperature == 0:
            problems.append("sampling: training samples must come from the policy itself; use top_p = 1, top_k = 0")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def objective(self) -> Objective:
        """These choices on the menu of the whole family: no ratio and no clip."""
        free = Clip(kind="none")
        return Objective(
            advantage="return", ratio="none", clip=free, average=self.average, kl=self.kl, entropy=self.entropy
        )


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = tasks(cfg.data, load(cfg.model, template=cfg.template))
    n = cfg.prompts * cfg.group_size
    return (
        f"{report(rows)}: {cfg.steps} steps of {cfg.prompts} prompts x {cfg.group_size} samples = {n} answers of at "
        f"most {cfg.sampling.max_tokens} tokens, one optimizer step each."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs: the longest prompt, under answers of full length."""
    batch, sampling = rollouts(cfg, rows, model)
    n = cfg.prompts * cfg.group_size
    return Demand(
        trained=(Trained(name="policy", model=model, batch=batch, rows=n, needs=NEEDS, optim=cfg.optim),),
        references=(*(model,) * cfg.objective.needs_reference, *shapes(cfg.reward)),
        sampling=sampling,
        steps=cfg.steps,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def train(cfg: Config, run: Run) -> Result:
    """REINFORCE: Williams 1992, with the reward to go of Sutton et al. 1999.

    ∇J = E[ Σ_t (G_t - b) ∇ log π(y_t | x, y_<t) ]        G_t = Σ_{k≥t} γ^{k-t} r_k
    """
    if run.finished:
        return run.result
    objective = cfg.objective
    actor = make_actor(cfg, run, cfg.steps, reference=objective.needs_reference)
    policy, parts = actor.policy, {"policy": actor.policy}
    start = {"baseline": 0.0, "weight": 0.0, "silent": 0, "best": None}
    state = run.load(parts, first_weights(objective) | first_scale(cfg.shaping) | start)
    actor.sampler.update(policy)
    probe(run, demand(cfg, actor.rows, policy.model), policy)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return policy_terms(out, b, objective, state, run.seed(step, "tokens"))  # -(G_t - b) · log π_θ(y_t)

    if run.done == 0:
        run.note(report(actor.rows))
    for step in run.steps(cfg.steps):
        groups, metrics, signal = sampled(actor, cfg, run, step, state)  # y ~ π_θ(· | x), graded
        first = policy.version == 0
        if not (signal.silent and first and cfg.baseline != "none"):  # equal rewards at the start: no gradient at all
            batch, reward = collate_groups(groups, actor.loaded.tokenizer.pad_id)
            reward, state = shaped(groups, reward, cfg.shaping, state)
            batch = with_logps(batch, policy, actor.reference, old=False)
            rewards, state, leash = charged(batch, reward, batch.sampled_logp, cfg.kl, state)  # r_t
            batch = batch.with_(advantage=credit(rewards, batch, cfg, state["baseline"]))  # G_t - b
            run.keep_advantages(members(groups), batch)
            batch = weigh(batch, cfg.average)
            metrics = add(metrics | leash, policy.step(Part(batch, loss, NEEDS)))
            state |= next_weights(objective, state, metrics)
            if cfg.baseline == "running":
                state |= running_baseline({k: state[k] for k in ("baseline", "weight")}, answer_sums(rewards, batch))
        end_step(actor, cfg, run, step, metrics, parts, state, first=first)
    run.check(cfg.steps, check_movement(policy.moved_since(actor.loaded.folder)))
    return run.finish()


def credit(rewards: Tensor, batch: TokenBatch, cfg: Config, running: float = 0.0) -> Tensor:
    """[N, T]: what each token is reinforced with, its return less the baseline.

    rewards: [N, T] per token. running: the baseline of "running", from batches before this one.
    """
    returns = rewards_to_go(rewards, batch.mask, gamma=cfg.gamma)
    start = (returns * (batch.mask & (batch.mask.cumsum(1) == 1))).sum(1)  # [N] the return of the whole answer
    if cfg.credit == "total":
        returns = start[:, None].expand_as(returns)
    baseline = torch.full_like(start, running if cfg.baseline == "running" else 0.0)
    if cfg.baseline == "leave_one_out":
        baseline = start - leave_one_out(start, batch.group)  # the mean of the others
    return masked(returns - baseline[:, None], batch.mask)


def answer_sums(rewards: Tensor, batch: TokenBatch) -> Tensor:
    """[trajectories] rewards of each answer, added up over its tokens."""
    return rewards.new_zeros(int(batch.trajectory.max()) + 1).index_add(0, batch.trajectory, rewards.sum(1))
