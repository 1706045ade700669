"""Learning from comparisons of clips: Christiano et al. 2017, the template of all RLHF.

Nobody writes a reward down. A labeller says which of two short clips is better, an ensemble learns a reward under which
the answers are likely, PPO maximises it, and the clips of the better policy are compared in turn. The environment's own
reward is logged as `episode_return` and learned from by nobody, except that the synthetic labeller judges by it.
`--labeller terminal` asks you. Section 07 of the book tells the story.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from posttrain import rng
from posttrain.control import predictor as rewards
from posttrain.control.labellers import LABELLERS, Clip, Labeller, labeller, unscale
from posttrain.control.learning import Actor, Kept, Task, as_samples, check_end, first_checks, make_actor, of_episodes
from posttrain.control.ppo import Update, check_minibatches, improve, learners, valued
from posttrain.control.predictor import Answers, Comparisons, Ensemble, Predictor, features
from posttrain.control.spaces import Spaces
from posttrain.control.steps import StepBatch, collect
from posttrain.errors import ConfigError, RunError
from posttrain.train.learner import Learner
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A reward learned from comparisons of clips of a control task, and PPO on it."""

    task: Task = Task(env="Pendulum-v1", envs=16, horizon=200)
    """The environment, the size of a batch, the networks. Episodes must all be of one length: where some end early, to
    stay alive is rewarded without anybody having said so."""
    labeller: Literal["synthetic", "terminal"] = "synthetic"
    """synthetic: judges by the environment's reward. terminal: you are shown two clips side by side and asked."""
    errors: float = 0.1
    """Share of the synthetic labeller's answers that are wrong."""
    comparisons: int = 300
    """Comparisons over the whole run, those that the labeller cannot tell among them."""
    first_share: float = 0.25
    """Share of them that is made before the policy learns anything. The rest come at a falling rate."""
    segment: int = 25
    """Steps in a clip; 25 of Pendulum-v1 are 1.25 seconds."""
    queries: Literal["disagreement", "random"] = "disagreement"
    """Which pairs are asked about: those on which the ensemble's members differ most, or any."""
    candidates: int = 10
    """Pairs looked at for each one that is asked about. Only with queries = "disagreement"."""
    predictor: Predictor = Predictor()
    """The learned reward."""
    update: Update = Update(gamma=0.9, epochs=10, minibatches=8)
    """PPO on the learned reward."""
    steps: int = field(default=40, metadata=MAY_CHANGE)
    """Batches of the policy."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        problems = [
            f"{name} = {getattr(self, name)} must be at least 1"
            for name in ("comparisons", "segment", "candidates", "steps")
            if getattr(self, name) < 1
        ]
        for name, known in (("labeller", LABELLERS), ("queries", ("disagreement", "random"))):
            if getattr(self, name) not in known:
                problems.append(f'{name} = "{getattr(self, name)}" is not one of {", ".join(known)}')
        if not 0 <= self.errors <= 0.5:
            problems.append(f"errors = {self.errors}: from 0 to 0.5; beyond, the opposite is taught")
        if not 0 < self.first_share <= 1:
            problems.append(f"first_share = {self.first_share} must be above 0 and at most 1; 0.25 is the paper's")
        if self.queries == "disagreement" and self.predictor.members < 2:
            problems.append('queries = "disagreement" needs predictor.members of 2 or more; or take "random"')
        if self.segment > self.task.horizon:
            problems.append(f"segment = {self.segment} is longer than task.horizon = {self.task.horizon}")
        if problems:
            raise ConfigError("\n".join(problems))
        check_minibatches(self.update, self.task)


def plan(cfg: Config) -> str:
    """The arithmetic of a run, in words, without training."""
    first = asked_by(cfg, 0)
    u = cfg.update
    return (
        f"{cfg.task.words()}, {cfg.steps} batches of {u.epochs} passes x {u.minibatches} optimizer steps. "
        f"{cfg.comparisons} comparisons of clips of {cfg.segment} steps by the {cfg.labeller} labeller, {first} of "
        f"them before the policy learns anything: {2 * cfg.comparisons * cfg.segment:,} of "
        f"{cfg.steps * cfg.task.envs * cfg.task.horizon:,} steps are judged."
    )


def train(cfg: Config, run: Run) -> Result:
    """Deep RL from human preferences: Christiano et al. 2017 (arXiv 1706.03741), sections 2.2.1 to 2.2.4."""
    if run.finished:
        return run.result
    task, seed = cfg.task, run.settings.seed
    actor = make_actor(task.env, task.envs, task.hidden, seed)
    spaces = actor.envs.spaces
    policy, critic = learners(actor, cfg.update, cfg.steps)
    judged, learner = ensemble(cfg, actor, seed)
    parts = {"policy": Kept(actor.policy, policy), "critic": Kept(actor.critic, critic), "envs": actor.envs,
             "predictor": Kept(learner.model, learner), "comparisons": judged}  # fmt: skip
    start = {"env_steps": 0, "tie": cfg.update.objective.proximal.weight, "asked": 0}
    state = run.load(parts, start)
    said = labeller(cfg.labeller, task.env, run, errors=cfg.errors)
    run.plan(plan(cfg))

    for step in run.steps(cfg.steps):
        batch, episodes = collect(actor.envs, actor.policy, run.seed(step, "actions"), task.horizon)
        check_lengths(batch, cfg)
        metrics, state["env_steps"] = of_episodes(episodes, batch, state["env_steps"])
        pairs = choose(batch, asked_by(cfg, step) - state["asked"], learner.model, cfg, spaces, run.seed(step, "pairs"))
        judged.data = judged.data.joined(answered(batch, pairs, said, state["asked"], cfg, spaces, seed))
        state["asked"] += len(pairs)
        check_answers(judged, state["asked"], cfg)
        updates = cfg.predictor.first_updates if step == 0 else cfg.predictor.updates
        found, judged.decay = rewards.fit(learner, judged.data, cfg.predictor, updates, judged.decay, run.seed(step))
        metrics = add(metrics, found)
        learned, spread = rewards.reward(learner.model, batch, judged.data, spaces)
        metrics |= of_reward(learned, spread, batch) | {
            "comparisons": len(judged.data), "abstained_comparisons": state["asked"] - len(judged.data)
        }  # fmt: skip
        paid = batch.reward
        batch = valued(batch.with_(reward=task.reward_scale * learned), critic, cfg.update)
        run.keep_samples(step, as_samples(batch, paid))
        first = policy.version == 0
        found, state["tie"] = improve(policy, critic, batch, cfg.update, run.seed(step, "minibatches"), state["tie"])
        metrics = add(metrics, found)
        if first:
            first_checks(run, step, metrics, policy)
        run.log(step, metrics)
        run.save(step, parts, state)
    check_end(run, cfg.steps, actor)
    return run.finish()


def ensemble(cfg: Config, actor: Actor, seed: int) -> tuple[Answers, Learner]:
    """The comparisons, none so far, and the learner of the reward."""
    spaces = actor.envs.spaces
    seen = spaces.seen + (spaces.choices or spaces.moves)
    model = Ensemble(seen, cfg.predictor, rng.fold(seed, "predictor"))
    total = cfg.predictor.first_updates + cfg.steps * cfg.predictor.updates
    none = rewards.empty(cfg.segment, seen, cfg.predictor.members)
    return Answers(none, cfg.predictor.decay), Learner(model, cfg.predictor.optim, total)


def asked_by(cfg: Config, step: int) -> int:
    """Comparisons asked for by the end of a step: a share at first, then at a rate ∝ 1 / (1 + 2 · step / steps)."""
    first = max(1, round(cfg.first_share * cfg.comparisons))
    if cfg.steps == 1:
        return first
    rates = [1 / (1 + 2 * s / cfg.steps) for s in range(1, cfg.steps)]
    return first + round((cfg.comparisons - first) * sum(rates[:step]) / sum(rates))


def check_lengths(batch: StepBatch, cfg: Config) -> None:
    """Raise ConfigError where an episode ended before its limit."""
    if bool(batch.ended.any()):
        raise ConfigError(
            f"an episode of {cfg.task.env} ended early. Then how long one lasts tells the policy the task, whatever "
            "the labeller says, and clips differ in what may follow. Take a task whose episodes are all of one length, "
            "such as Pendulum-v1."
        )


def check_answers(judged: Answers, asked: int, cfg: Config) -> None:
    """Raise RunError where there is no answer to learn from."""
    if not len(judged.data):
        raise RunError(
            f"none of the first {asked} comparisons could be told, so there is no reward to learn. Clips of "
            f"{cfg.segment} steps may be too short: raise segment, and start into a new folder (--out)."
        )


def windows(batch: StepBatch, k: int, n: int, seed: int) -> list[tuple[int, int]]:
    """n clips of k steps as (row, first step), drawn evenly among all that lie within one row."""
    room = (batch.mask.sum(1) - k + 1).clamp(min=0)
    ends = room.cumsum(0)
    place = torch.arange(n)
    at = (rng.uniform(torch.full_like(place, seed), place) * int(ends[-1])).long()
    row = torch.searchsorted(ends, at, right=True)
    return list(zip(row.tolist(), (at - (ends - room)[row]).tolist(), strict=True))


def clips(batch: StepBatch, places: list[tuple[int, int]], k: int, spaces: Spaces) -> Tensor:
    """[B, K, F] what the predictor sees of clips."""
    row = torch.tensor([r for r, _ in places], dtype=torch.long)[:, None]
    time = torch.tensor([t for _, t in places], dtype=torch.long)[:, None] + torch.arange(k)
    return features(batch.obs[row, time], batch.action[row, time], spaces)


@torch.no_grad()
def choose(
    batch: StepBatch, n: int, model: Ensemble, cfg: Config, spaces: Spaces, seed: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """n pairs of clips to ask about, each a (row, first step).

    queries = "disagreement": of `candidates` times as many the ones with the largest variance of the members' P(first).
    """
    k, drawn = cfg.segment, n * (cfg.candidates if cfg.queries == "disagreement" else 1)
    if n == 0:
        return []
    found = windows(batch, k, 2 * drawn, seed)
    pairs = list(zip(found[:drawn], found[drawn:], strict=True))
    if cfg.queries == "random":
        return pairs
    gap = model(clips(batch, found[:drawn], k, spaces)) - model(clips(batch, found[drawn:], k, spaces))
    unsure = torch.sigmoid(gap.sum(2)).var(0, correction=0)  # [drawn]
    best = unsure.argsort(descending=True, stable=True)[:n]
    return [pairs[i] for i in best.tolist()]


def answered(
    batch: StepBatch, pairs: list, said: Labeller, number: int, cfg: Config, spaces: Spaces, seed: int
) -> Comparisons:
    """What the labeller says of some pairs, without those that it could not tell. number: of the first pair."""
    k = cfg.segment

    def clip(row: int, t: int) -> Clip:
        at = slice(t, t + k)
        return Clip(unscale(batch.obs[row, at], spaces.scale), batch.action[row, at], batch.reward[row, at])

    labels = [said(number + i, clip(*a), clip(*b)) for i, (a, b) in enumerate(pairs)]
    told = torch.tensor([i for i, x in enumerate(labels) if x is not None], dtype=torch.long)
    draws = rewards.poisson(len(pairs), cfg.predictor.members, number, rng.fold(seed, "bootstrap"))
    all_of_them = Comparisons(
        clips(batch, [a for a, _ in pairs], k, spaces), clips(batch, [b for _, b in pairs], k, spaces),
        torch.tensor([0.0 if x is None else x for x in labels]), draws,
    )  # fmt: skip
    return all_of_them.select(told)


def of_reward(learned: Tensor, spread: Tensor, batch: StepBatch) -> Metrics:
    """What is logged of the learned reward: its mean, the members' disagreement, its likeness to the true one."""
    mine, true = learned[batch.mask], batch.reward[batch.mask]
    same = torch.corrcoef(torch.stack([mine, true]))[0, 1]
    return {
        "learned_reward": (mine.sum(), len(mine)),
        "ensemble_std": (spread[batch.mask].sum(), len(mine)),
        "reward_correlation": (same.nan_to_num(), same.isfinite()),
    }
