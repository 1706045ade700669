"""One rollout of PPO used for eight passes, under each rule that is to keep the policy near the one that sampled.

Two ordinary steps from the embedded base, the same in every arm; then 64 answers, and eight passes of four updates
over them under the arm's own rule. After each pass the ratio of every token is read. Section 13 of the book replays 64
of these tokens, whole answers of one minibatch.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.algorithms.onpolicy import (
    NEEDS,
    Actor,
    begins_silent,
    charged,
    critic_terms,
    make_actor,
    make_critic,
    sampled,
    with_values,
)
from posttrain.algorithms.policy_step import first_weights, members, next_weights, policy_terms, with_logps
from posttrain.algorithms.ppo import Config, with_advantages
from posttrain.algorithms.shaping import first_scale, shaped
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column, ppo_config
from posttrain.objectives.kl import k3
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.surrogate import Clip, clipped_tokens, importance
from posttrain.records import Group
from posttrain.train.learner import Learner, Part
from posttrain.train.run import Run

WARM, EPOCHS, SHOWN = 2, 8, 64
BAND = Clip()
"""ε = 0.2: by these edges the tokens of every arm are counted."""
RULES = {
    "clip": PRESETS["ppo"],
    "none": replace(PRESETS["ppo"], clip=Clip(kind="none")),
    "higher": replace(PRESETS["ppo"], clip=Clip(low=0.2, high=0.5)),
    "dual": PRESETS["ppo_dual_clip"],
    "penalty": replace(PRESETS["ppo"], clip=Clip(kind="none"), proximal=PRESETS["ppo_penalty"].proximal),
    "sequence": replace(PRESETS["ppo"], ratio="sequence"),
}


class Learners(NamedTuple):
    """Policy and critic with what a rollout takes."""

    actor: Actor
    critic: Learner
    cfg: Config
    run: Run


def rolled(at: Learners, step: int) -> tuple[list[Group], TokenBatch, Tensor]:
    """A scored rollout, with all that the updates read, and its rewards."""
    groups, _, _ = sampled(at.actor, at.cfg, at.run, step, {"silent": 0, "best": None})
    batch, score = collate_groups(groups, at.actor.loaded.tokenizer.pad_id)
    reward, _ = shaped(groups, score, at.cfg.shaping, first_scale(at.cfg.shaping))
    batch = with_values(with_logps(batch, at.actor.policy, at.actor.reference, old=True), at.critic)
    rewards, _, _ = charged(batch, reward, batch.old_logp, at.cfg.objective.kl, {"beta": at.cfg.objective.kl.beta})
    return groups, with_advantages(batch, rewards, at.cfg), score


def passed(at: Learners, batch: TokenBatch, objective: Objective, state: dict, step: int, epoch: int) -> None:
    """One pass: an update of critic and policy for each minibatch."""
    for mini in batch.minibatches(at.cfg.minibatches, at.run.seed(step, epoch)):
        mini = weigh(mini, objective.average)
        if not begins_silent(at.critic, mini.value_target - mini.old_value):
            at.critic.step(Part(mini, lambda out, b: critic_terms(out, b, at.cfg.value_clip), ("values",)))
            at.critic.drop_gradients()
        if not begins_silent(at.actor.policy, mini.advantage):
            at.actor.policy.step(Part(mini, lambda out, b: policy_terms(out, b, objective, state, 0), NEEDS))
            at.actor.policy.drop_gradients()


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Ratios of all tokens after each pass, what the next answers are worth, and the tokens that the book shows."""
    objective = RULES[settings["rule"]]
    cfg = ppo_config(seed, lr=settings["lr"], prompts=settings["prompts"], minibatches=4, steps=WARM + 1)
    with Run.open(scratch / "run", cfg) as run:
        updates = cfg.minibatches * (WARM * cfg.epochs + EPOCHS)
        actor = make_actor(cfg, run, updates, reference=True)
        at = Learners(actor, Learner(make_critic(cfg), cfg.critic_optim, updates), cfg, run)
        for step in range(WARM):
            _, batch, _ = rolled(at, step)
            for epoch in range(cfg.epochs):
                passed(at, batch, cfg.objective, first_weights(cfg.objective), step, epoch)
            actor.sampler.update(actor.policy)
        groups, batch, reward = rolled(at, WARM)
        ratios, state = [torch.zeros_like(batch.old_logp)], first_weights(objective)
        for epoch in range(EPOCHS):
            passed(at, batch, objective, state, WARM, epoch)
            ratios.append((actor.policy.outputs(batch).logp - batch.old_logp) * batch.mask)
            if objective.proximal.target is not None:  # PPO's rule, after each pass instead of each rollout
                kl = distance(ratios[-1], batch.mask)
                state |= next_weights(objective, state, {"kl_old": (kl, 1), "entropy": (0, 1)})
        actor.sampler.update(actor.policy)
        _, _, after = rolled(at, WARM + 1)
    figures = {"reward_before": float(reward.mean()), "reward_after": float(after.mean()), **told(ratios, batch)}
    return figures | {"page": shown(at, groups, batch, reward, ratios)}


def distance(log_ratio: Tensor, mask: Tensor) -> float:
    """kl(old ‖ policy) per token, from samples of the old policy."""
    return float(k3(-log_ratio)[mask].mean())


def told(ratios: list[Tensor], batch: TokenBatch) -> dict[str, Any]:
    """Per pass: tokens beyond the band, tokens that the clip would hold, distance; and how far held ones still went."""
    mask, a = batch.mask, batch.advantage
    held = [torch.stack(clipped_tokens(r, a, BAND)[:2]).any(0) & mask for r in ratios]
    beyond = [((r.exp() < 0.8) | (r.exp() > 1.2)) & mask for r in ratios]
    early, asked = held[EPOCHS // 2], a.sign()
    further = ((ratios[-1] - ratios[EPOCHS // 2]) * asked)[early]
    answers = importance(ratios[-1], torch.zeros_like(a), mask, "sequence_sum")[mask]
    return {
        "outside": [float(x.sum() / mask.sum()) for x in beyond],
        "held": [float(x.sum() / mask.sum()) for x in held],
        "kl": [distance(r, mask) for r in ratios],
        "wrong_way": float((beyond[-1] & ~held[-1]).sum() / mask.sum()),
        "farthest": float(ratios[-1].abs().max()),
        "farthest_answer": float(answers.abs().max()),
        "further": float(further.mean()) if early.any() else 0.0,
        "further_share": float((further > 0).float().mean()) if early.any() else 0.0,
    }


def shown(at: Learners, groups: list[Group], batch: TokenBatch, reward: Tensor, ratios: list[Tensor]) -> dict[str, Any]:
    """64 tokens of the first minibatch: whole answers, in its order, as long as they fit."""
    first = next(iter(batch.minibatches(at.cfg.minibatches, at.run.seed(WARM, 0))))
    rows = {int(t): i for i, t in enumerate(batch.trajectory)}
    said, left, answers = members(groups), SHOWN, []
    tokenizer = at.actor.loaded.tokenizer
    for trajectory in first.trajectory.tolist():
        row = rows[trajectory]
        places = batch.mask[row].nonzero().flatten().tolist()
        if len(places) > left:
            continue
        left -= len(places)
        answers.append({
            "prompt": said[trajectory].task.prompt[-1].content,
            "reward": round(float(reward[trajectory]), 3),
            "tokens": [tokenizer.decode([int(batch.tokens[row, t])]) for t in places],
            "logp": [round(float(batch.old_logp[row, t]), 3) for t in places],
            "advantage": [round(float(batch.advantage[row, t]), 3) for t in places],
            "log_ratio": [[round(float(r[row, t]), 4) for t in places] for r in ratios],
        })  # fmt: skip
    return {"answers": answers}


def read(cells: Cells) -> list[Figure]:
    """With a clip and without; what the clip does not do; the other rules."""
    free = cells["none"]

    def figure(what: str, before: list[float], after: list[float], sign: int, text: str) -> Figure:
        gap, low, high = paired(after, before)
        seen = low > 0 if sign > 0 else high < 0
        a, b = interval(before)[0], interval(after)[0]
        return Figure(what=what, before=a, after=b, low=low, high=high, seen=seen,
                      text=f"{text}: {a:.3f} → {b:.3f}, {gap:+.3f} [{low:+.3f}, {high:+.3f}]")  # fmt: skip

    def last(arm: str, name: str) -> list[float]:
        return [cells[arm][seed][name][-1] for seed in sorted(cells[arm])]

    def log_kl(arm: str) -> list[float]:
        return [math.log10(x) for x in last(arm, "kl")]

    zeros = [0.0] * len(free)
    figures = [
        figure(
            f"outside the band: none, then {arm}",
            last("none", "outside"),
            last(arm, "outside"),
            -1,
            f"share of tokens outside 0.8 to 1.2 after eight passes, {arm} instead of no bound",
        )
        for arm in ("clip", "penalty")
    ]
    figures += [
        figure(
            f"log10 of KL: none, then {arm}",
            log_kl("none"),
            log_kl(arm),
            -1,
            f"log10 of kl(old ‖ policy) per token after eight passes, {arm} instead of no bound",
        )
        for arm in ("clip", "penalty")
    ]
    figures += [
        figure("clip fraction", [fmean(c["held"][1:2]) for c in by_seed(cells["clip"])], last("clip", "held"), 1,
               "share of tokens without gradient, after the first pass and the eighth"),
        figure("outside with a clip", zeros, last("clip", "outside"), 1,
               "share of tokens outside the band under the clip, which does not bound them"),
        figure("held tokens go on", zeros, column(cells["clip"], "further"), 1,
               "log ratio that tokens without gradient after the fourth pass still gain until the eighth, outwards"),
        figure("held tokens go on: none, then clip", column(free, "further"), column(cells["clip"], "further"), -1,
               "the same without a bound, where these tokens keep their gradient, and with the clip"),
        figure("right answers: none, then clip", column(free, "reward_after"), column(cells["clip"], "reward_after"), 1,
               "right among the next answers, clip instead of no bound"),
    ]  # fmt: skip
    return figures


def by_seed(cells: Mapping[int, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cells of an arm in the order of their seeds."""
    return [cells[seed] for seed in sorted(cells)]


def page(pages: Mapping[str, Mapping[int, Any]]) -> Any:
    """The tokens of the first seed: what they are once, and their log-ratios under each rule, [pass][token]."""
    one = {arm: pages[arm][min(pages[arm])]["answers"] for arm in pages}
    start = next(iter(one.values()))
    ratios = {arm: [[x for a in answers for x in a["log_ratio"][k]] for k in range(len(start[0]["log_ratio"]))]
              for arm, answers in one.items()}  # fmt: skip
    keys = ("prompt", "reward", "tokens", "logp", "advantage")
    return {"answers": [{key: a[key] for key in keys} for a in start], "log_ratio": ratios}


STUDY = Study(
    name="clip_epochs",
    claim="reused for eight passes, a rollout drives its tokens out of the band; the clip holds back most, and not all",
    source="Schulman et al. 2017 (arXiv 1707.06347), sections 3 and 4",
    arms={rule: {"rule": rule, "lr": 2e-4, "prompts": 64} for rule in RULES},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
    page=page,
    sections=("13",),
)
