"""Proximal policy optimisation with a critic, as RLHF uses it: the KL leash is charged per token inside the reward.

The critic is a second learner with its own weights, optimizer and schedule; there is no shared trunk and no value
coefficient. Advantages come from generalised advantage estimation over the policy's tokens. Both of PPO's forms are
values of `cfg.objective`: `--preset ppo` clips, `--preset ppo_penalty` charges for leaving the old policy. Sections 13
and 14 of the book tell the story; docs/ppo-details.md says where each implementation detail stands.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from posttrain.algorithms.onpolicy import (
    NEEDS,
    begins_silent,
    charged,
    critic_demand,
    critic_terms,
    end_step,
    make_actor,
    make_critic,
    moved,
    next_tie,
    of_critic,
    sampled,
    with_values,
)
from posttrain.algorithms.policy_step import first_weights, members, policy_terms, with_logps
from posttrain.algorithms.ptx import Ptx, Text, with_text
from posttrain.algorithms.shaping import Shaping, first_scale, shaped
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.data.rows import Data, Rows, report, tasks
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.advantages.batch import whiten
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.returns import explained_variance, gae
from posttrain.sample.base import SamplingParams
from posttrain.train.demand import Demand, probe
from posttrain.train.invariants import check_movement
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """PPO with a critic."""

    model: str = "base"
    """Model to start from, which is also the reference: "base", a run, a Hugging Face folder, or a name on the hub."""
    critic: str | None = None
    """Model whose body the critic takes; a reward model is usual. None: the policy's own start."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:sums+chains", limit=4000, eval_rows=100)
    """Tasks: a prompt per row, with what the reward needs to grade an answer."""
    reward: str = "auto"
    """"auto" (the task's own verifier), "exact_number", "exact_match", a reward model as model:FOLDER, or your own as
    file.py:function."""
    shaping: Shaping = Shaping()
    """Scale and range of the scores, what a missing end costs, and whether rewards are whitened."""
    objective: Objective = PRESETS["ppo"]
    """Ratio, clip or penalty, average and leash; its advantage is "gae"."""
    gamma: float = 1.0
    """Discount per token. 1: a late reward counts fully."""
    lam: float = 0.95
    """λ of generalised advantage estimation: 1 trusts returns, 0 trusts the critic."""
    whiten: bool = True
    """Give the advantages of a rollout mean 0 and deviation 1 over its tokens."""
    value_clip: float | None = 0.2
    """How far a value may move per step before its gradient is cut, in units of reward. None: no clipping."""
    ptx: Ptx = Ptx()
    """Pre-training text beside the answers."""
    prompts: int = 64
    """Prompts per step."""
    group_size: int = 1
    """Samples per prompt."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Rollout steps."""
    epochs: int = 2
    """Passes over each rollout."""
    minibatches: int = 2
    """Optimizer steps per pass."""
    stop_kl: float | None = None
    """Leave out the remaining passes over a rollout once kl(old ‖ policy) per token exceeds this. None: never."""
    warmup_steps: int = 0
    """First steps that train only the critic."""
    sampling: SamplingParams = SamplingParams(max_tokens=64)
    """Temperature and length of the answers; stop ids come from the template."""
    slots: int = field(default=128, metadata=MAY_CHANGE)
    """Answers written side by side: bounds the sampler's memory; the others wait for a free place."""
    eval_every: int = field(default=25, metadata=MAY_CHANGE)
    """Steps between greedy evaluations on the held-out tasks. 0: none."""
    optim: Optim = Optim(lr=3e-4)
    """Optimizer of the policy."""
    critic_optim: Optim = Optim(lr=1e-3)
    """Optimizer of the critic."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights, in the policy; the critic trains all of its own."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    PRESETS: ClassVar[dict[str, dict]] = {"objective": PRESETS}  # last: it hides the table of that name

    def __post_init__(self):
        problems = []
        for name in ("prompts", "group_size", "steps", "epochs", "minibatches", "slots"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)} must be at least 1")
        if not self.objective.needs_critic:
            problems.append(
                f'objective.advantage = "{self.objective.advantage}" needs no critic: use `posttrain train group`'
            )
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} = {getattr(self, name)} must lie between 0 and 1")
        if self.minibatches > self.prompts:
            problems.append(f"minibatches = {self.minibatches} cannot exceed prompts = {self.prompts}")
        if self.stop_kl is not None and not self.stop_kl > 0:
            problems.append(f"stop_kl = {self.stop_kl} must be positive (0.015 is usual); none turns it off")
        if self.sampling.cuts or self.sampling.temperature == 0:
            problems.append("sampling: training samples must come from the policy itself; use top_p = 1, top_k = 0")
        if problems:
            raise ConfigError("\n".join(problems))


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows = tasks(cfg.data, loaded)
    n = cfg.prompts * cfg.group_size
    return (
        f"{report(rows)}: {cfg.steps} steps of {cfg.prompts} prompts x {cfg.group_size} samples = {n} answers of at "
        f"most {cfg.sampling.max_tokens} tokens, {cfg.epochs} passes of {cfg.minibatches} optimizer steps each."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module, critic: nn.Module) -> Demand:
    """What the largest step needs: the longest prompt, under answers of full length, or text as long as it may be."""
    return with_text(critic_demand(cfg, rows, model, critic), cfg.ptx, answers_per_update(cfg))


def answers_per_update(cfg: Config) -> int:
    """Answers in an optimizer step."""
    return max(1, cfg.prompts * cfg.group_size // cfg.minibatches)


def train(cfg: Config, run: Run) -> Result:
    """PPO for language models: Schulman et al. 2017 (arXiv 1707.06347) with the rewards of Ziegler et al. 2019."""
    if run.finished:
        return run.result
    updates = cfg.steps * cfg.epochs * cfg.minibatches
    actor = make_actor(cfg, run, updates, reference=cfg.objective.needs_reference)
    policy = actor.policy
    critic = Learner(make_critic(cfg), cfg.critic_optim, updates, tokenizer=actor.loaded.chat_tokenizer)
    text = Text(cfg.ptx, answers_per_update(cfg), actor.loaded, run)
    parts = {"policy": policy, "critic": critic}
    start = first_weights(cfg.objective) | first_scale(cfg.shaping) | {"silent": 0, "best": None}
    state = run.load(parts, start)
    actor.sampler.update(policy)
    probe(run, demand(cfg, actor.rows, policy.model, critic.model), critic, policy)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return policy_terms(out, b, cfg.objective, state, run.seed(step, "tokens"))

    def value_loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return critic_terms(out, b, cfg.value_clip)

    if run.done == 0:
        run.note(report(actor.rows))
    for step in run.steps(cfg.steps):
        groups, metrics, signal = sampled(actor, cfg, run, step, state)
        batch, score = collate_groups(groups, actor.loaded.tokenizer.pad_id)
        reward, state = shaped(groups, score, cfg.shaping, state)
        batch = with_logps(batch, policy, actor.reference, old=True)
        batch = with_values(batch, critic)
        rewards, state, leash = charged(batch, reward, batch.old_logp, cfg.objective.kl, state)
        batch = with_advantages(batch, rewards, cfg)
        run.keep_advantages(members(groups), batch)
        foreseen = explained_variance(batch.old_value, batch.value_target, batch.mask)
        metrics |= leash | {"explained_variance": (foreseen.nan_to_num(), foreseen.isfinite())}  # equal: left out
        first, count = policy.version == 0, min(cfg.minibatches, len(batch.group.unique()))
        for epoch in range(0 if signal.silent and first else cfg.epochs):  # there is no gradient at all yet
            for mini in batch.minibatches(count, run.seed(step, epoch)):
                mini = weigh(mini, cfg.objective.average)
                if not begins_silent(critic, mini.value_target - mini.old_value):
                    metrics = add(metrics, of_critic(critic.step(Part(mini, value_loss, ("values",)))))
                    critic.drop_gradients()
                if step >= cfg.warmup_steps and not begins_silent(policy, mini.advantage):
                    answers = Part(mini, loss, NEEDS, coupled=cfg.objective.coupled)
                    metrics = add(metrics, policy.step(answers, *text.part(step, policy.version)))
                    policy.drop_gradients()
            if cfg.stop_kl is not None and moved(policy, batch) > cfg.stop_kl:
                break
        if "kl_old" in metrics:
            state |= next_tie(cfg.objective, state, metrics, policy, batch)
        end_step(actor, cfg, run, step, metrics, parts, state, first=first)
    run.check(cfg.steps, check_movement(policy.moved_since(actor.loaded.folder)))
    return run.finish()


def with_advantages(batch: TokenBatch, rewards: Tensor, cfg: Config) -> TokenBatch:
    """The batch with advantages and value targets; targets are made of advantages that are not yet whitened."""
    if cfg.shaping.whiten:
        rewards = whiten(rewards, batch.mask, shift=False)
    advantage, target = gae(rewards, batch.old_value, batch.mask, gamma=cfg.gamma, lam=cfg.lam)
    return batch.with_(
        advantage=whiten(advantage, batch.mask) if cfg.whiten else advantage,
        value_target=target,
    )
