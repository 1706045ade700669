"""Proximal policy optimisation with a critic, as RLHF uses it: the KL leash is charged per token inside the reward.

The critic is a second learner with its own weights, optimizer and schedule; there is no shared trunk and no value
coefficient. Advantages come from generalised advantage estimation over the policy's tokens. Sections 13 and 14 of the
book tell the story; the details it counts are named at their lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from posttrain.algorithms.group import (
    check_gap,
    first_weights,
    last_segment_reward,
    next_weights,
    policy_terms,
    with_logps,
)
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.data.rows import Data, Rows, pick, report, tasks
from posttrain.envs.rollout import rollout
from posttrain.errors import ConfigError
from posttrain.evals.run import evaluate
from posttrain.models.heads import ScalarModel
from posttrain.models.load import Loaded, frozen_start, load
from posttrain.models.lora import Lora
from posttrain.objectives.advantages.batch import whiten
from posttrain.objectives.kl import kl_estimate
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.regularizers import next_beta
from posttrain.objectives.returns import explained_variance, gae, token_rewards
from posttrain.objectives.tokens import values_before
from posttrain.objectives.value import value_loss
from posttrain.rewards.base import score
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.demand import Demand, Trained, probe, rollouts
from posttrain.train.invariants import check_movement, watch_signal
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig
from posttrain.train.signal import group_metrics

NEEDS = ("logp", "entropy")
"""What the policy's loss takes; the entropy is measured even where nothing rewards it."""


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
    """"auto" (the task's own verifier), "exact_number", "exact_match", or your own as file.py:function."""
    objective: Objective = PRESETS["ppo"]
    """Ratio, clip, average and leash; its advantage is "gae"."""
    gamma: float = 1.0
    """Discount per token. 1: a late reward counts fully."""
    lam: float = 0.95
    """λ of generalised advantage estimation: 1 trusts returns, 0 trusts the critic."""
    value_clip: float | None = 0.2
    """How far a value may move per step before its gradient is cut, in units of reward. None: no clipping."""
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
    """What the largest step needs: the longest prompt, under answers of full length."""
    batch, sampling = rollouts(cfg, rows, model)
    same = {"batch": batch, "rows": -(-cfg.prompts // cfg.minibatches) * cfg.group_size}
    trained = (
        Trained(
            name="critic", model=critic, needs=("values",), optim=cfg.critic_optim, settings="critic_optim", **same
        ),
        Trained(name="policy", model=model, needs=NEEDS, optim=cfg.optim, **same),
    )
    return Demand(
        trained=trained,
        references=(model,) * cfg.objective.needs_reference,
        sampling=sampling,
        steps=cfg.steps,
        updates=cfg.epochs * cfg.minibatches,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def train(cfg: Config, run: Run) -> Result:
    """PPO for language models: Schulman et al. 2017 (arXiv 1707.06347) with the rewards of Ziegler et al. 2019."""
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = tasks(cfg.data, loaded)
    rewards = rewards_for(cfg.reward, rows.train)
    params = replace(cfg.sampling, stop_ids=loaded.stop_ids)
    updates = cfg.steps * cfg.epochs * cfg.minibatches
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, updates, tokenizer=loaded.chat_tokenizer)
    critic = Learner(make_critic(cfg), cfg.critic_optim, updates, tokenizer=loaded.chat_tokenizer)
    reference = frozen_start(policy.model) if cfg.objective.needs_reference else None
    sampler = TorchSampler(policy.model, slots=cfg.slots)
    parts = {"policy": policy, "critic": critic}
    state = run.load(parts, {**first_weights(cfg.objective), "silent": 0, "best": None})
    sampler.update(policy)
    probe(run, demand(cfg, rows, policy.model, critic.model), critic, policy)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return policy_terms(out, b, cfg.objective, state, run.seed(step, "tokens"))

    def critic_loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        value, metrics = value_loss(values_before(out.values), b.old_value, b.value_target, b.mask, clip=cfg.value_clip)
        return [Term("value", value, b.weights["token"])], metrics

    if run.done == 0:
        run.note(report(rows))
    for step in run.steps(cfg.steps):
        prompts = pick(rows.train, step, cfg.prompts, cfg.run.seed)
        groups = rollout(sampler, prompts, n=cfg.group_size, params=params, seed=run.seed(step, "rollout"),
                         template=loaded.template, tokenizer=loaded.tokenizer, version=policy.version)  # fmt: skip
        groups = score(groups, rewards)
        metrics = group_metrics(groups)
        run.keep_samples(step, groups)  # before the checks, whose advice is to read them
        signal = watch_signal(run, step, groups, state, grouped=False)
        batch, reward = collate_groups(groups, loaded.tokenizer.pad_id)
        batch = with_logps(batch, policy, reference, old=True)
        batch = batch.with_(old_value=values_before(critic.outputs(batch, ("values",)).values))
        batch, state = with_advantages(batch, reward, cfg, state)
        foreseen = explained_variance(batch.old_value, batch.value_target, batch.mask)
        metrics["explained_variance"] = (foreseen.nan_to_num(), foreseen.isfinite())  # equal targets: left out
        first, count = policy.version == 0, min(cfg.minibatches, len(batch.group.unique()))
        for epoch in range(0 if signal.silent and first else cfg.epochs):  # there is no gradient at all yet
            for mini in batch.minibatches(count, run.seed(step, epoch)):
                mini = weigh(mini, cfg.objective.average)
                fit = critic.step(Part(mini, critic_loss, ("values",)))
                metrics = add(metrics, {k: v for k, v in fit.items() if k not in ("loss", "lr", "grad_norm")})
                if step >= cfg.warmup_steps:
                    metrics = add(metrics, policy.step(Part(mini, loss, NEEDS, coupled=cfg.objective.coupled)))
        if "kl_old" in metrics:
            state |= next_weights(cfg.objective, state, metrics)
        sampler.update(policy)
        if first and policy.version > 0:
            run.check(step, check_gap(metrics, cfg.optim), policy.first)
        if rows.held and run.due(step, cfg.eval_every):
            metrics = add(metrics, evaluate(sampler, rows.held, loaded, rewards, cfg.sampling.max_tokens))
        run.log(step, metrics)
        run.save(step, parts, state)
    run.check(cfg.steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def make_critic(cfg: Config, load: Callable[..., Loaded] = load) -> ScalarModel:
    """A model of its own, with a head that begins at zero unless it comes from a reward model.

    load: how to get a model from a name; `models.load.described` gives one without values.
    """
    body = load(cfg.critic or cfg.model, template=cfg.template).model
    return body if isinstance(body, ScalarModel) else ScalarModel(body)


def with_advantages(batch: TokenBatch, reward: Tensor, cfg: Config, state: dict) -> tuple[TokenBatch, dict]:
    """The batch with whitened advantages and value targets, and the loop's state after the KL controller moved."""
    kl = None
    if cfg.objective.kl.where == "reward":
        kl = kl_estimate(batch.old_logp - batch.ref_logp, cfg.objective.kl.estimator)
    rewards = token_rewards(
        last_segment_reward(batch, reward), batch.mask, kl=kl, beta=state["beta"] if kl is not None else 0.0
    )
    advantage, target = gae(rewards, batch.old_value, batch.mask, gamma=cfg.gamma, lam=cfg.lam)
    state = dict(state)
    if kl is not None:
        measured = float((kl * batch.mask).sum()) / len(reward)
        state["beta"] = next_beta(cfg.objective.kl, state["beta"], measured, len(reward))
    return batch.with_(advantage=whiten(advantage, batch.mask), value_target=target), state
