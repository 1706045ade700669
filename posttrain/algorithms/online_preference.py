"""Preferences between answers that the policy writes itself: sample, judge, pair, learn.

Online DPO, iterative DPO, self-rewarding, XPO and Nash-MD are values of `cfg.way`: who writes the other answer, who
judges, what is learned from the verdict, and when the reference becomes the policy. Every loss of the menu in
`objectives.preference` takes DPO's place. Section 17 of the book tells the story.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from posttrain.algorithms.contests import WAYS, Way, agreement, contests, drift, match_batch, terms, weigh_matches
from posttrain.algorithms.policy_step import with_logps
from posttrain.algorithms.reference import Moving
from posttrain.batch import TokenBatch
from posttrain.data.rows import Data, Rows, pick, report, tasks
from posttrain.envs.rollout import rollout
from posttrain.errors import ConfigError
from posttrain.evals.run import evaluate
from posttrain.models.load import Loaded, frozen_copy, frozen_start, load
from posttrain.models.lora import Lora
from posttrain.objectives.preference import PreferenceLoss
from posttrain.records import Group
from posttrain.rewards.base import GroupReward, Rewards, score
from posttrain.rewards.judge import LanguageJudge
from posttrain.rewards.model import shapes
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.base import Sampler, SamplingParams
from posttrain.sample.mixture import MixtureSampler
from posttrain.sample.torch import TorchSampler
from posttrain.train.demand import Demand, Trained, probe, rollouts
from posttrain.train.invariants import check_movement, watch_signal
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig
from posttrain.train.signal import group_metrics


@dataclass(frozen=True, kw_only=True)
class Config:
    """Preference learning from the policy's own answers."""

    model: str = "base"
    """Model to start from, which is also the reference: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:sums+chains", limit=4000, eval_rows=100)
    """Tasks: a prompt per row, with what the reward needs to judge an answer."""
    reward: str = "auto"
    """"auto" (the task's own verifier), "gold" or "rater" (builtin:about), model:FOLDER, or file.py:function."""
    way: Way = Way()
    """The method; --preset names one of online_dpo, iterative_dpo, self_rewarding, nash_md, xpo."""
    loss: PreferenceLoss = PreferenceLoss()
    """The loss on pairs; of its numbers "win_rate" reads beta alone."""
    prompts: int = 16
    """Prompts per rollout."""
    group_size: int = 4
    """Samples per prompt, those of an opponent included."""
    steps: int = field(default=100, metadata=MAY_CHANGE)
    """Rollouts; with way.renew = 1 they are the rounds."""
    epochs: int = 1
    """Passes over the pairs of a rollout."""
    minibatches: int = 1
    """Optimizer steps per pass."""
    sampling: SamplingParams = SamplingParams(max_tokens=64)
    """Temperature and length of the answers; stop ids come from the template."""
    slots: int = field(default=128, metadata=MAY_CHANGE)
    """Answers written side by side: bounds the sampler's memory; the others wait for a free place."""
    eval_every: int = field(default=25, metadata=MAY_CHANGE)
    """Rollouts between greedy evaluations on the held-out tasks. 0: none."""
    optim: Optim = Optim(lr=2e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    PRESETS: ClassVar[dict[str, dict]] = {"way": WAYS}

    def __post_init__(self):
        problems = []
        for name in ("prompts", "steps", "epochs", "minibatches", "slots"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)} must be at least 1")
        if self.group_size < 2 or (self.way.opponent != "self" and self.group_size % 2):
            problems.append(f"group_size = {self.group_size}: a comparison takes two, and opponents write half of them")
        if self.minibatches > self.prompts:
            problems.append(f"minibatches = {self.minibatches} cannot exceed prompts = {self.prompts}")
        if self.way.learn == "win_rate" and self.epochs * self.minibatches > 1:
            problems.append(
                f'epochs = {self.epochs}, minibatches = {self.minibatches} with way.learn = "win_rate": after the '
                "first update the answers are not the policy's any more, and nothing corrects it. Use 1 and 1"
            )
        if self.way.judge == "self" and self.reward != "auto":
            problems.append(f'reward = "{self.reward}" changes nothing with way.judge = "self"')
        if self.sampling.cuts or self.sampling.temperature == 0:
            problems.append("sampling: training samples must come from the policy itself; use top_p = 1, top_k = 0")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def needs_reference(self) -> bool:
        """Whether a reference is kept."""
        return self.way.opponent != "self" or self.way.learn == "win_rate" or self.loss.needs_reference


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = tasks(cfg.data, load(cfg.model, template=cfg.template))
    return (
        f"{report(rows)}: {cfg.steps} rollouts of {cfg.prompts} prompts x {cfg.group_size} samples of at most "
        f"{cfg.sampling.max_tokens} tokens, {cfg.epochs} passes of {cfg.minibatches} optimizer steps over their pairs."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs: the longest prompt, under answers of full length."""
    batch, sampling = rollouts(cfg, rows, model)
    policy = Trained(name="policy", model=model, batch=batch, rows=-(-cfg.prompts // cfg.minibatches) * cfg.group_size,
                     needs=cfg.loss.needs, together="group", optim=cfg.optim)  # fmt: skip
    return Demand(
        trained=(policy,),
        references=(*(model,) * cfg.needs_reference, *shapes(cfg.reward)),
        sampling=replace(sampling, models=2 if cfg.way.opponent == "mixture" else 1),
        steps=cfg.steps,
        updates=cfg.epochs * cfg.minibatches,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def train(cfg: Config, run: Run) -> Result:
    """Online DPO (Guo et al. 2024, arXiv 2402.04792) and its relatives.

    For each rollout: y_1 ... y_n ~ π_θ(· | x), some of them perhaps by an opponent;  y_w, y_l: the best and the worst
    L(θ) = - mean over prompts of log σ( β · [ log π/π_ref (y_w) - log π/π_ref (y_l) ] )
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = tasks(cfg.data, loaded)
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, cfg.steps * cfg.epochs * cfg.minibatches, tokenizer=loaded.chat_tokenizer)
    parts = {"policy": policy}
    reference = Moving((frozen_copy if cfg.way.renew else frozen_start)(policy.model)) if cfg.needs_reference else None
    if reference and cfg.way.renew:
        parts["reference"] = reference
    sampler = TorchSampler(policy.model, slots=cfg.slots)
    rewards, opponent = judges(cfg, rows, loaded, sampler), rival(cfg, policy, reference)
    state = run.load(parts, {"silent": 0, "best": None})
    sampler.update(policy)
    probe(run, demand(cfg, rows, model), policy)
    if run.done == 0:
        run.note(report(rows))

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return terms(out, b, cfg.loss, cfg.way)

    for step in run.steps(cfg.steps):
        prompts = run.took(step, pick(rows.train, step, cfg.prompts, cfg.run.seed))
        groups = score(answered(cfg, run.seed(step, "rollout"), prompts, loaded, sampler, opponent), rewards)
        metrics, first = group_metrics(groups), policy.version == 0
        run.keep_samples(step, groups)
        watch_signal(run, step, groups, state)
        matches = contests(groups, cfg.way)
        metrics |= {"groups_kept_share": (len({m.task for m in matches}), len(groups))}
        if matches:
            batch = match_batch(matches, cfg.way, loaded.tokenizer.pad_id)
            batch = with_logps(batch, policy, reference and reference.model, old=first)
            metrics = add(metrics, drift(batch))
            for epoch in range(cfg.epochs):
                for part in batch.minibatches(min(cfg.minibatches, len(matches)), run.seed(step, epoch)):
                    part = weigh_matches(part, cfg.loss, cfg.way)
                    part = Part(part, loss, cfg.loss.needs, together="group", coupled=cfg.loss.coupled)
                    metrics = add(metrics, policy.step(part))
            sampler.update(policy)
            if first:
                run.check(step, policy.first, agreement(batch, cfg.optim))
        if rows.held and run.due(step, cfg.eval_every):
            metrics = add(metrics, evaluate(sampler, rows.held, loaded, rewards, cfg.sampling.max_tokens))
        if cfg.way.renew and reference and (step + 1) % cfg.way.renew == 0:
            reference.follow(policy.model)
        run.log(step, metrics)
        run.save(step, parts, state)
    run.check(cfg.steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def judges(cfg: Config, rows: Rows, loaded: Loaded, sampler: TorchSampler) -> Rewards:
    """Who says what an answer is worth: the config's reward, or the policy as it is at that moment."""
    if cfg.way.judge == "self":
        return {"self": (GroupReward(LanguageJudge(sampler.model, loaded.template, loaded.tokenizer)), 1.0)}
    return rewards_for(cfg.reward, rows.train)


def rival(cfg: Config, policy: Learner, reference: Moving | None) -> Sampler | None:
    """Who writes the answers that the policy's have to beat; None where it is the policy itself."""
    match cfg.way.opponent:
        case "self":
            return None
        case "reference":
            return TorchSampler(reference.model, slots=cfg.slots)
        case "mixture":
            return MixtureSampler(policy.model, reference.model, share=cfg.way.share, slots=cfg.slots)


def answered(
    cfg: Config, seed: int, prompts: list, loaded: Loaded, sampler: Sampler, opponent: Sampler | None
) -> list[Group]:
    """The answers to each prompt; where there is an opponent, its own are the second half."""
    params = replace(cfg.sampling, stop_ids=loaded.stop_ids)
    who = {"params": params, "template": loaded.template, "tokenizer": loaded.tokenizer, "version": sampler.version}
    if opponent is None:
        return rollout(sampler, prompts, n=cfg.group_size, seed=seed, **who)
    mine = rollout(sampler, prompts, n=cfg.group_size // 2, seed=seed, **who)
    theirs = rollout(opponent, prompts, n=cfg.group_size // 2, seed=seed + 1, **who)
    return [Group(a.task, a.members + b.members) for a, b in zip(mine, theirs, strict=True)]
