"""The group-relative family: sample several answers per prompt, score them, reinforce the better ones.

GRPO, Dr. GRPO, RLOO, REINFORCE, DAPO and their relatives are values of `cfg.objective` (see `objectives.presets`); this
file is the loop they share. Estimators that need a critic are in `ppo.py`. Sections 22
to 24 of the book tell the story.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from posttrain import rng
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.data.rows import Data, Rows, pick, report, tasks
from posttrain.envs.rollout import rollout
from posttrain.errors import ConfigError
from posttrain.evals.run import evaluate
from posttrain.models.load import frozen_start, load
from posttrain.models.lora import Lora
from posttrain.objectives.advantages import NEEDS, estimate, running_baseline
from posttrain.objectives.kl import kl_estimate
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import chosen_tokens, policy_loss
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.regularizers import next_beta, next_entropy, next_proximal
from posttrain.objectives.returns import token_rewards
from posttrain.records import Group
from posttrain.rewards.base import score
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.demand import Demand, Trained, probe, rollouts
from posttrain.train.invariants import check_movement, check_sampler_gap, watch_signal
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term, outputs
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig
from posttrain.train.signal import group_metrics, scored, with_variance


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
    """"auto" (the task's own verifier), "exact_number", "exact_match", or your own as file.py:function."""
    objective: Objective = PRESETS["grpo"]
    """The method, as choices; --preset names a row of `posttrain methods`."""
    prompts: int = 8
    """Prompts per step."""
    group_size: int = 16
    """Samples per prompt."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Rollout steps."""
    minibatches: int = 1
    """Optimizer steps per rollout, each on its share of the groups. More than one makes the ratio move away from 1."""
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
        problems = []
        for name in ("prompts", "group_size", "steps", "minibatches", "slots"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)} must be at least 1")
        if self.objective.needs_critic:
            problems.append('objective.advantage = "gae" needs a critic: use `posttrain train ppo`')
        if extra := NEEDS.get(self.objective.advantage, frozenset()) - {"baseline", "k"}:
            problems.append(
                f'objective.advantage = "{self.objective.advantage}" needs {", ".join(sorted(extra))}, which this loop '
                "does not make: call posttrain.objectives.estimate in a loop of your own, or choose another advantage"
            )
        if self.objective.needs_group and self.group_size < 2:
            problems.append(
                f'group_size = {self.group_size}: advantage "{self.objective.advantage}" compares answers to one '
                "prompt, so it needs at least 2 (8 to 16 is usual)"
            )
        if self.minibatches > self.prompts:
            problems.append(
                f"minibatches = {self.minibatches} cannot exceed prompts = {self.prompts}: groups stay whole"
            )
        if self.minibatches > 1 and not self.objective.corrects_stale:
            problems.append(
                f'minibatches = {self.minibatches} with ratio = "none": after the first update the samples are stale '
                'and nothing corrects for it. Use 1, or objective.ratio = "token"'
            )
        if self.sampling.cuts or self.sampling.temperature == 0:
            problems.append(
                f"sampling.temperature = {self.sampling.temperature}, top_p = {self.sampling.top_p}, top_k = "
                f"{self.sampling.top_k}: training samples must come from the policy itself; use a positive "
                "temperature, top_p = 1 and top_k = 0"
            )
        if problems:
            raise ConfigError("\n".join(problems))


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows = tasks(cfg.data, loaded)
    n = cfg.prompts * cfg.group_size
    return (
        f"{report(rows)}: {cfg.steps} steps of {cfg.prompts} prompts x {cfg.group_size} samples = {n} answers of at "
        f"most {cfg.sampling.max_tokens} tokens, {cfg.minibatches} optimizer step(s) each; every prompt is seen about "
        f"{cfg.steps * cfg.prompts / len(rows.train):.2f} times."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs: the longest prompt, under answers of full length."""
    batch, sampling = rollouts(cfg, rows, model)
    policy = Trained(name="policy", model=model, batch=batch, rows=-(-cfg.prompts // cfg.minibatches) * cfg.group_size,
                     needs=("logp", "entropy"), optim=cfg.optim)  # fmt: skip
    return Demand(
        trained=(policy,),
        references=(model,) * cfg.objective.needs_reference,
        sampling=sampling,
        steps=cfg.steps,
        updates=cfg.minibatches,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def train(cfg: Config, run: Run) -> Result:
    """Group-relative policy gradient. With `objective = GRPO`: Shao et al. 2024 (arXiv 2402.03300), Algorithm 1."""
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = tasks(cfg.data, loaded)
    rewards = rewards_for(cfg.reward, rows.train)
    params = replace(cfg.sampling, stop_ids=loaded.stop_ids)
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, cfg.steps * cfg.minibatches, tokenizer=loaded.chat_tokenizer)
    reference = frozen_start(policy.model) if cfg.objective.needs_reference else None
    sampler = TorchSampler(policy.model, slots=cfg.slots)
    state = run.load(
        {"policy": policy}, {**first_weights(cfg.objective), "baseline": 0.0, "weight": 0.0, "silent": 0, "best": None}
    )
    sampler.update(policy)
    probe(run, demand(cfg, rows, policy.model), policy)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return policy_terms(out, b, cfg.objective, state, run.seed(step, "tokens"))

    if run.done == 0:
        run.note(report(rows))
    for note in cfg.objective.notes():
        run.note(note)
    for step in run.steps(cfg.steps):
        prompts = pick(rows.train, step, cfg.prompts, cfg.run.seed)
        groups = rollout(sampler, prompts, n=cfg.group_size, params=params, seed=run.seed(step, "rollout"),
                         template=loaded.template, tokenizer=loaded.tokenizer, version=policy.version)  # fmt: skip
        groups = score(groups, rewards)
        metrics = group_metrics(groups)
        run.keep_samples(step, groups)  # before the checks, whose advice is to read them
        signal = watch_signal(run, step, groups, state, grouped=cfg.objective.needs_group)
        kept, first = usable(groups, cfg.objective), policy.version == 0
        if kept and not (signal.silent and first):  # at the reference, the leash has no gradient either
            batch, reward = collate_groups(kept, loaded.tokenizer.pad_id)
            batch = with_logps(batch, policy, reference, old=cfg.minibatches > 1)
            batch, state = with_advantages(batch, reward, cfg.objective, state)
            for part in batch.minibatches(min(cfg.minibatches, len(kept)), run.seed(step)):
                part = weigh(part, cfg.objective.average)
                part = Part(part, loss, ("logp", "entropy"), coupled=cfg.objective.coupled)
                metrics = add(metrics, policy.step(part))
            state |= next_weights(cfg.objective, state, metrics)
            sampler.update(policy)
            if first:
                run.check(step, check_gap(metrics, cfg.optim), policy.first)
        if rows.held and run.due(step, cfg.eval_every):
            metrics = add(metrics, evaluate(sampler, rows.held, loaded, rewards, cfg.sampling.max_tokens))
        run.log(step, metrics)
        run.save(step, {"policy": policy}, state)
    run.check(cfg.steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def policy_terms(
    out: Outputs, b: TokenBatch, objective: Objective, state: dict, seed: int
) -> tuple[list[Term], Metrics]:
    """The policy's term of a step. seed: of the tokens that are drawn, where the objective draws some."""
    chosen = None
    if objective.coupled:
        place = torch.arange(b.mask.numel(), device=b.mask.device)
        draws = rng.uniform(torch.full_like(place, seed), place).view(b.mask.shape)
        chosen = chosen_tokens(objective, out.logp, b.advantage, b.mask, entropy=out.entropy, draws=draws)
    value, metrics = policy_loss(
        out.logp,
        out.logp.detach() if b.old_logp is None else b.old_logp,  # one update per rollout: the ratio is exactly 1
        b.advantage,
        b.mask,
        objective,
        ref_logp=b.ref_logp,
        sampled_logp=b.sampled_logp,
        entropy=out.entropy,
        chosen=chosen,
        beta=state["beta"] if objective.kl.where == "loss" else None,
        tie=state["tie"] if objective.proximal.estimator != "none" else None,
        bonus=state["bonus"],
    )
    return [Term("policy", value, b.weights["token"])], metrics


def first_weights(objective: Objective) -> dict[str, float]:
    """What the loop's state holds of leash, tie and bonus; of the bonus also its weight before its own gate."""
    bonus = objective.entropy.weight
    return {"beta": objective.kl.beta, "tie": objective.proximal.weight, "entropy": bonus, "bonus": bonus}


def next_weights(objective: Objective, state: dict, metrics: Metrics) -> dict[str, float]:
    """The weights of tie and bonus for the next step, after what was measured in this one."""
    kl_old, entropy = (float(metrics[name][0]) / max(float(metrics[name][1]), 1.0) for name in ("kl_old", "entropy"))
    weight, bonus = next_entropy(objective.entropy, state["entropy"], entropy)
    return {"tie": next_proximal(objective.proximal, state["tie"], kl_old), "entropy": weight, "bonus": bonus}


def usable(groups: list[Group], objective: Objective) -> list[Group]:
    """The groups that a step is made of: without those that hold too few scored answers, or nothing to compare."""
    if objective.keep == "mixed":
        return with_variance(groups)
    return [g for g in groups if len(scored(g)) >= (2 if objective.needs_group else 1)]


def with_logps(batch: TokenBatch, policy: Learner, reference, *, old: bool) -> TokenBatch:
    """The batch with what the frozen reference says, and where several updates follow, what the policy says now."""
    if reference is not None:
        batch = batch.with_(ref_logp=outputs(reference, batch, ("logp",), policy.optim.micro_tokens).logp)
    return batch.with_(old_logp=policy.outputs(batch).logp) if old else batch


def with_advantages(batch: TokenBatch, reward: Tensor, objective: Objective, state: dict) -> tuple[TokenBatch, dict]:
    """The batch with an advantage on every token, and the loop's state after it.

    The KL charge enters the reward here, from the sampler's own log-probabilities; a controller may then move beta.
    """
    row_reward = last_segment_reward(batch, reward)
    kl = None
    if objective.kl.where == "reward":
        kl = kl_estimate(batch.sampled_logp - batch.ref_logp, objective.kl.estimator)
    rewards = token_rewards(row_reward, batch.mask, kl=kl, beta=state["beta"] if kl is not None else 0.0)
    baseline = state["baseline"] if objective.advantage == "return" else None
    advantage = estimate(
        objective.advantage,
        rewards,
        batch.mask,
        batch.group,
        trajectory=batch.trajectory,
        baseline=baseline,
        k=objective.k,
    )
    state = dict(state)
    if objective.advantage == "return":
        state |= running_baseline({name: state[name] for name in ("baseline", "weight")}, reward)
    if kl is not None:
        measured = float((kl * batch.mask).sum()) / len(reward)
        state["beta"] = next_beta(objective.kl, state["beta"], measured, len(reward))
    return batch.with_(advantage=advantage), state


def last_segment_reward(batch: TokenBatch, reward: Tensor) -> Tensor:
    """[N] the reward of each trajectory on its last segment, 0 on earlier ones."""
    later = batch.trajectory[1:] == batch.trajectory[:-1]
    out = reward[batch.trajectory].clone()
    out[:-1][later] = 0.0
    return out


def check_gap(metrics: Metrics, optim: Optim):
    """Sampler and learner hold the same weights in the same precision: they must agree to its rounding."""
    total, count = metrics["sampler_gap_mean"]
    limit = 0.02 if optim.precision == "bfloat16" else 1e-4
    return check_sampler_gap(float(total) / max(float(count), 1.0), float(metrics["sampler_gap_max"][0]), limit=limit)
