"""VAPO: a critic that is worth having when answers are long.

PPO with a critic fails on long answers in a way that group methods do not: the critic starts ignorant, and λ < 1 keeps
a late reward from ever reaching it. VAPO trains the critic before the policy, gives it full returns, lets the policy's
λ grow with the answer, and adds the likelihood of right answers as a second term. Around that it is PPO with DAPO's
clip and average, on groups of answers. Section 24 of the book tells the story.
"""

from dataclasses import dataclass, field

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
    next_tie,
    of_critic,
    sampled,
    with_values,
)
from posttrain.algorithms.policy_step import first_weights, members, policy_terms, with_logps
from posttrain.algorithms.shaping import Shaping, first_scale, shaped
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.data.rows import Data, Rows, report, tasks
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.advantages.batch import whiten
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.returns import decoupled_gae, explained_variance, length_adaptive_lambda
from posttrain.objectives.supervised import cross_entropy
from posttrain.sample.base import SamplingParams
from posttrain.train.demand import Demand, probe
from posttrain.train.invariants import check_movement
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """VAPO: value-based PPO for long answers."""

    model: str = "base"
    """Model to start from, and where the objective has a leash also its reference: "base", a run, a Hugging Face
    folder, or a name on the hub."""
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
    """Scale and range of the scores, and what a missing end costs."""
    objective: Objective = PRESETS["vapo"]
    """Ratio, clip (higher above than below), average over tokens, leash; its advantage is "gae"."""
    pretrain_steps: int = 10
    """First steps, which train the critic alone, towards full returns of the policy as it starts (the paper: 50)."""
    alpha: float = 0.05
    """λ of the policy is 1 - 1 / (alpha · length): a reward reaches back over about this share of the answer. For
    answers of at most 1 / alpha tokens λ is 0, so short tasks want more."""
    critic_lam: float = 1.0
    """λ of the critic's targets. 1: full returns, whatever the length."""
    positive: float = 0.1
    """Weight μ of the likelihood of right answers. 0: without that term."""
    right: float = 1.0
    """An answer is right from this score on, as the grader gives it."""
    value_clip: float | None = None
    """How far a value may move per step before its gradient is cut, in units of reward. None: no clipping."""
    prompts: int = 8
    """Prompts per step."""
    group_size: int = 16
    """Samples per prompt."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Rollout steps, the critic's first ones among them."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimizer steps per pass."""
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

    def __post_init__(self):
        problems = []
        for name in ("prompts", "group_size", "steps", "epochs", "minibatches", "slots"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)} must be at least 1")
        if not self.objective.needs_critic:
            problems.append(
                f'objective.advantage = "{self.objective.advantage}": VAPO estimates it with a critic, "gae"'
            )
        if not 0 <= self.pretrain_steps < self.steps:
            problems.append(f"pretrain_steps = {self.pretrain_steps} must leave the policy some of {self.steps} steps")
        if not self.alpha > 0 or not 0 <= self.critic_lam <= 1:
            problems.append(f"alpha = {self.alpha} must be positive, critic_lam = {self.critic_lam} between 0 and 1")
        if self.positive < 0:
            problems.append(f"positive = {self.positive}: a negative weight would unlearn right answers; 0.1 is usual")
        if self.minibatches > self.prompts:
            problems.append(f"minibatches = {self.minibatches} cannot exceed prompts = {self.prompts}")
        if self.sampling.cuts or self.sampling.temperature == 0:
            problems.append("sampling: training samples must come from the policy itself; use top_p = 1, top_k = 0")
        if problems:
            raise ConfigError("\n".join(problems))


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = tasks(cfg.data, load(cfg.model, template=cfg.template))
    n = cfg.prompts * cfg.group_size
    return (
        f"{report(rows)}: {cfg.steps} steps of {cfg.prompts} prompts x {cfg.group_size} samples = {n} answers of at "
        f"most {cfg.sampling.max_tokens} tokens, {cfg.epochs} passes of {cfg.minibatches} optimizer steps each; the "
        f"first {cfg.pretrain_steps} train the critic alone."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module, critic: nn.Module) -> Demand:
    """What the largest step needs."""
    return critic_demand(cfg, rows, model, critic)


def train(cfg: Config, run: Run) -> Result:
    """VAPO: Yue et al. 2025 (arXiv 2504.05118), with the critic of VC-PPO (arXiv 2503.01491).

    L = L_clip-higher(A_λ(length)) + μ · NLL(right answers)        V → returns (λ = 1)
    """
    if run.finished:
        return run.result
    updates = cfg.steps * cfg.epochs * cfg.minibatches
    actor = make_actor(cfg, run, updates, reference=cfg.objective.needs_reference)
    policy = actor.policy
    critic = Learner(make_critic(cfg), cfg.critic_optim, updates, tokenizer=actor.loaded.chat_tokenizer)
    parts = {"policy": policy, "critic": critic}
    start = first_weights(cfg.objective) | first_scale(cfg.shaping) | {"silent": 0, "best": None}
    state = run.load(parts, start)
    actor.sampler.update(policy)
    probe(run, demand(cfg, actor.rows, policy.model, critic.model), critic, policy)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        terms, metrics = policy_terms(out, b, cfg.objective, state, run.seed(step, "tokens"))
        return [*terms, *positive_terms(out, b, cfg.positive, metrics)], metrics

    def value_loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return critic_terms(out, b, cfg.value_clip)

    if run.done == 0:
        run.note(report(actor.rows))
    for step in run.steps(cfg.steps):
        groups, metrics, signal = sampled(actor, cfg, run, step, state)
        batch, score = collate_groups(groups, actor.loaded.tokenizer.pad_id)
        batch = batch.with_(label=(score >= cfg.right).float()[batch.trajectory])
        reward, state = shaped(groups, score, cfg.shaping, state)
        batch = with_logps(batch, policy, actor.reference, old=True)
        batch = with_values(batch, critic)
        rewards, state, leash = charged(batch, reward, batch.old_logp, cfg.objective.kl, state)
        batch = with_advantages(batch, rewards, cfg)
        run.keep_advantages(members(groups), batch)
        foreseen = explained_variance(batch.old_value, batch.value_target, batch.mask)
        metrics |= leash | {"explained_variance": (foreseen.nan_to_num(), foreseen.isfinite())}
        first, count = policy.version == 0, min(cfg.minibatches, len(batch.group.unique()))
        for epoch in range(0 if signal.silent and first else cfg.epochs):
            for mini in batch.minibatches(count, run.seed(step, epoch)):
                mini = weigh_right(weigh(mini, cfg.objective.average))
                if not begins_silent(critic, mini.value_target - mini.old_value):
                    metrics = add(metrics, of_critic(critic.step(Part(mini, value_loss, ("values",)))))
                    critic.drop_gradients()
                if step >= cfg.pretrain_steps and not begins_silent(policy, mini.advantage):
                    metrics = add(metrics, policy.step(Part(mini, loss, NEEDS, coupled=cfg.objective.coupled)))
                    policy.drop_gradients()
        if "kl_old" in metrics:
            state |= next_tie(cfg.objective, state, metrics, policy, batch)
        end_step(actor, cfg, run, step, metrics, parts, state, first=first)
    run.check(cfg.steps, check_movement(policy.moved_since(actor.loaded.folder)))
    return run.finish()


def with_advantages(batch: TokenBatch, rewards: Tensor, cfg: Config) -> TokenBatch:
    """The batch with whitened advantages, whose λ grows with the answer, and the critic's own targets."""
    lam = length_adaptive_lambda(batch.mask, cfg.alpha)
    advantage, target = decoupled_gae(rewards, batch.old_value, batch.mask, lam=lam, target_lam=cfg.critic_lam)
    return batch.with_(advantage=whiten(advantage, batch.mask), value_target=target)


def weigh_right(batch: TokenBatch) -> TokenBatch:
    """The batch with the average over all tokens of right answers, made once for the whole optimizer step."""
    right = batch.mask & (batch.label > 0)[:, None]
    return batch.with_(weights={**batch.weights, "right": token_weights(right, Average("token"))})


def positive_terms(out: Outputs, b: TokenBatch, weight: float, metrics: Metrics) -> list[Term]:
    """The likelihood of right answers as a term, and its cross-entropy among the metrics; nothing where μ is 0."""
    if not weight:
        return []
    right = b.mask & (b.label > 0)[:, None]
    value, found = cross_entropy(out.logp, right)
    metrics["positive_nll"] = found["nll"]
    return [Term("positive", value, weight * b.weights["right"])]
