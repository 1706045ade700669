"""The group-relative family: sample several answers per prompt, score them, reinforce the better ones.

GRPO, Dr. GRPO, RLOO, ReMax, DAPO and their relatives are values of `cfg.objective` (see `objectives.presets`); this
file is the loop they share, and `policy_step` what it makes of the samples. Estimators that need a critic are in `ppo`.
Sections 22 to 24 of the book tell the story.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from posttrain.algorithms.dynamic_sampling import draw, drawn_metrics
from posttrain.algorithms.onpolicy import make_actor
from posttrain.algorithms.policy_step import (
    check_gap,
    first_weights,
    learning_batch,
    members,
    next_weights,
    policy_terms,
)
from posttrain.algorithms.reference import Moving
from posttrain.batch import TokenBatch, weigh
from posttrain.data.rows import Data, Rows, report, tasks
from posttrain.envs.rollout import rollout
from posttrain.errors import ConfigError
from posttrain.evals.run import evaluate
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.records import Group, Task
from posttrain.rewards.base import score
from posttrain.rewards.form import Form, shaped
from posttrain.sample.base import SamplingParams
from posttrain.sample.behind import BehindSampler, Rounding
from posttrain.train.demand import Demand, Trained, probe, rollouts
from posttrain.train.invariants import check_movement, watch_signal
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig
from posttrain.train.signal import group_metrics


@dataclass(frozen=True, kw_only=True)
class Config:
    """Policy gradients on groups of answers."""

    model: str = "base"
    """Model to start from, which is also the reference: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:sums+chains", limit=4000, eval_rows=100)
    """Tasks: a prompt per row, with what the reward needs to grade an answer."""
    reward: str = "auto"
    """"auto" (the task's own verifier), "exact_number", "exact_match", "ended", or your own as file.py:function;
    several as "auto + 0.2 * ended"."""
    form: Form = Form()
    """What the form of an answer does to its reward: overlong punishment and filtering, repetition."""
    objective: Objective = PRESETS["grpo"]
    """The method, as choices; --preset names a row of `posttrain methods`."""
    prompts: int = 8
    """Prompts per step."""
    group_size: int = 16
    """Samples per prompt."""
    draws: int = 4
    """Rollouts per step at most, where objective.keep = "mixed": each after the first replaces the prompts whose
    answers were all worth the same (DAPO's dynamic sampling). 1: they are only left out."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Rollout steps."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimizer steps per pass, each on its share of the groups. More than one makes the ratio move away from 1."""
    reference_every: int = 0
    """Steps after which the policy as it is becomes the reference (DeepSeek-R1-Zero: 400). 0: it stays the start."""
    lag: int = 0
    """For study: samples come from the weights of so many steps ago."""
    rounding: Rounding = "none"
    """For study: the sampler's weights are rounded ("bfloat16", "int8", "int4"), so that it is not the learner."""
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

    PRESETS: ClassVar[dict[str, dict]] = {"objective": PRESETS}  # last: it hides the table of that name

    def __post_init__(self):
        if problems := [*self._numbers(), *self._combinations()]:
            raise ConfigError("\n".join(problems))

    @property
    def updates(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.minibatches

    @property
    def apart(self) -> bool:
        """Whether the sampler is made to differ from the learner."""
        return self.lag > 0 or self.rounding != "none"

    def _numbers(self):
        for name in ("prompts", "group_size", "draws", "steps", "epochs", "minibatches", "slots"):
            if getattr(self, name) < 1:
                yield f"{name} = {getattr(self, name)} must be at least 1"
        for name in ("reference_every", "lag"):
            if getattr(self, name) < 0:
                yield f"{name} = {getattr(self, name)} must be 0 or more: it counts steps"
        if self.minibatches > self.prompts:
            yield f"minibatches = {self.minibatches} cannot exceed prompts = {self.prompts}: groups stay whole"
        if self.form.overlong > self.sampling.max_tokens:
            yield f"form.overlong = {self.form.overlong} exceeds sampling.max_tokens = {self.sampling.max_tokens}"
        if self.sampling.cuts or self.sampling.temperature == 0:
            s = self.sampling
            yield (f"sampling.temperature = {s.temperature}, top_p = {s.top_p}, top_k = {s.top_k}: training samples "
                   "must come from the policy itself; use a positive temperature, top_p = 1 and top_k = 0")  # fmt: skip

    def _combinations(self):
        o = self.objective
        if o.needs_critic:
            yield 'objective.advantage = "gae" needs a critic: use `posttrain train ppo`'
        if o.needs_group and self.group_size < max(2, o.k or 0):
            yield (f'group_size = {self.group_size}: advantage "{o.advantage}" compares answers to one prompt, so it '
                   f"needs at least {max(2, o.k or 0)} (8 to 16 is usual)")  # fmt: skip
        if self.reference_every and not o.needs_reference:
            yield (f"reference_every = {self.reference_every}: this objective has no reference that could move. Set "
                   'objective.kl.where to "loss" or "reward" with a beta, or reference_every = 0')  # fmt: skip
        if self.updates > 1 and not o.corrects_stale:
            yield (f'epochs = {self.epochs}, minibatches = {self.minibatches} with ratio = "none": after the '
                   'first update samples are stale, and nothing corrects it. Use 1, or ratio = "token"')  # fmt: skip
        if o.advantage == "decoupled" and o.kl.where == "reward":
            yield ('objective.kl.where = "reward" with advantage = "decoupled": it reads the rewards by kind, in which '
                   'no KL charge is. Set kl.where to "loss" or "none"')  # fmt: skip
        if o.advantage == "pass_at_k_zscore" and self.form.changes_rewards:
            yield ('form with advantage = "pass_at_k_zscore": it counts right and wrong answers, so that rewards must '
                   'be 1 and 0. Leave form out (not truncated), or use advantage = "pass_at_k"')  # fmt: skip


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows, n = tasks(cfg.data, loaded), cfg.prompts * cfg.group_size
    return (
        f"{report(rows)}: {cfg.steps} steps of {cfg.prompts} prompts x {cfg.group_size} samples = {n} answers of at "
        f"most {cfg.sampling.max_tokens} tokens, {cfg.updates} optimizer step(s) each; every prompt is seen about "
        f"{cfg.steps * cfg.prompts / len(rows.train):.2f} times."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs: the longest prompt, under answers of full length."""
    batch, sampling = rollouts(cfg, rows, model)
    policy = Trained(name="policy", model=model, batch=batch, rows=-(-cfg.prompts // cfg.minibatches) * cfg.group_size,
                     needs=("logp", "entropy"), optim=cfg.optim)  # fmt: skip
    return Demand(
        trained=(policy,),
        references=(model,) * (cfg.objective.needs_reference + (cfg.lag + 2) * cfg.apart),
        sampling=sampling,
        steps=cfg.steps,
        updates=cfg.updates,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def train(cfg: Config, run: Run) -> Result:
    """Group-relative policy gradient. With `objective = GRPO`: Shao et al. 2024 (arXiv 2402.03300), Algorithm 1."""
    if run.finished:
        return run.result
    actor = make_actor(cfg, run, cfg.steps * cfg.updates, reference=cfg.objective.needs_reference,
                       moves=cfg.reference_every > 0)  # fmt: skip
    loaded, rows, rewards, policy, reference, asked = actor  # evaluations ask the policy as it is
    params = replace(cfg.sampling, stop_ids=loaded.stop_ids)
    sampler = BehindSampler(policy.model, slots=cfg.slots, lag=cfg.lag, rounding=cfg.rounding) if cfg.apart else asked
    parts = {"policy": policy} | ({"sampler": sampler} if cfg.apart else {})
    parts |= {"reference": Moving(reference)} if cfg.reference_every else {}
    start = {"baseline": 0.0, "weight": 0.0, "silent": 0, "best": None, "cursor": 0}
    state = run.load(parts, first_weights(cfg.objective) | start)
    sampler.update(policy)
    begin(cfg, run, rows, policy)

    def answered(questions: Sequence[Task], n: int, params: SamplingParams, seed: int) -> list[Group]:
        found = rollout(sampler, questions, n=n, params=params, seed=seed, template=loaded.template,
                        tokenizer=loaded.tokenizer)  # fmt: skip
        return score(found, rewards)

    def greedy(groups: Sequence[Group]) -> list[Group]:
        found = answered([g.task for g in groups], 1, replace(params, temperature=0.0), run.seed(step, "greedy"))
        return shaped(found, cfg.form, params.max_tokens)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return policy_terms(out, b, cfg.objective, state, run.seed(step, "tokens"))

    for step in run.steps(cfg.steps):
        groups, kept = draw(cfg, run, step, rows.train, state, params, answered)
        metrics = group_metrics(groups) | drawn_metrics(cfg, groups, kept, policy.version - sampler.version)
        run.keep_samples(step, groups)  # before the checks, whose advice is to read them
        first, signal = policy.version == 0, watch_signal(run, step, groups, state, grouped=cfg.objective.needs_group)
        if kept and not (signal.silent and first):  # at the reference, the leash has no gradient either
            kept = shaped(kept, cfg.form, params.max_tokens)
            batch, state = learning_batch(kept, policy, reference, cfg.objective, state, rewards=rewards,
                                          form=cfg.form, greedy=greedy, old=cfg.updates > 1)  # fmt: skip
            run.keep_advantages(members(kept), batch)
            count = min(cfg.minibatches, len(batch.group.unique()))
            seeds = [run.seed(step), *(run.seed(step, epoch) for epoch in range(1, cfg.epochs))]
            for seed in seeds if count else ():
                for part in batch.minibatches(count, seed):
                    if policy.version == 0 and not part.advantage.any():  # its groups are silent
                        continue
                    part = weigh(part, cfg.objective.average)
                    part = Part(part, loss, ("logp", "entropy"), coupled=cfg.objective.coupled)
                    metrics = add(metrics, policy.step(part))
            if "kl_old" in metrics:
                state |= next_weights(cfg.objective, state, metrics)
            sampler.update(policy)
            if first and policy.version > 0:
                run.check(step, *() if cfg.apart else (check_gap(metrics, cfg.optim),), policy.first)
        if cfg.reference_every and (step + 1) % cfg.reference_every == 0:
            parts["reference"].follow(policy.model)
        if rows.held and run.due(step, cfg.eval_every):
            metrics = add(metrics, evaluate(asked, rows.held, loaded, rewards, cfg.sampling.max_tokens))
        run.log(step, metrics)
        run.save(step, parts, state)
    run.check(cfg.steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def begin(cfg: Config, run: Run, rows: Rows, policy: Learner) -> None:
    """Does it fit? And notes at the start: what was read, what is unusual about the config."""
    probe(run, demand(cfg, rows, policy.model), policy)
    if run.done == 0:
        run.note(report(rows))
    for note in cfg.objective.notes():
        run.note(note)
    horizon = cfg.objective.average.horizon
    if horizon is not None and horizon != cfg.sampling.max_tokens:
        run.note(f"average.horizon = {horizon}, but answers may have {cfg.sampling.max_tokens} tokens: the loss is "
                 f"{horizon / cfg.sampling.max_tokens:.3g} times smaller than Dr. GRPO means it to be.")  # fmt: skip
    if cfg.apart and not cfg.objective.needs_sampler:
        run.note(f"lag = {cfg.lag}, rounding = {cfg.rounding}: the samples are not the policy's, and this objective "
                 "does not correct for it (mismatch, old, gate.against).")  # fmt: skip
