"""From scored answers to matches, and from matches to a loss: what online preference learning makes of its samples."""

from dataclasses import dataclass
from typing import Literal

import torch

from posttrain.algorithms.preference import loss_terms, weighed
from posttrain.batch import TokenBatch, collate, collate_pairs, weigh_rows
from posttrain.errors import ConfigError
from posttrain.objectives.average import Average
from posttrain.objectives.preference import PreferenceLoss, best_and_worst, nash_md
from posttrain.objectives.tokens import answers
from posttrain.records import Group, Trajectory
from posttrain.train.invariants import Check, check_sampler_gap
from posttrain.train.learner import Optim, Outputs, Term
from posttrain.train.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Way:
    """Who writes, who judges, and what is learned from the verdict."""

    opponent: Literal["self", "reference", "mixture"] = "self"
    """self: the best of the policy's answers meets the worst. reference, mixture: each answer meets one by the
    reference, or by the geometric mixture of both policies; half of `group_size` each."""
    judge: Literal["reward", "self"] = "reward"
    """reward: the config's. self: the policy marks its own answers (self-rewarding)."""
    learn: Literal["pairs", "win_rate"] = "pairs"
    """pairs: the loss on winner and loser. win_rate: a policy gradient on how often an answer wins (Nash-MD)."""
    share: float = 0.5
    """What the reference counts in the mixture."""
    optimism: float = 0.0
    """XPO's α: answers of the reference are pushed down, which makes room for others. Needs opponent = "reference"."""
    sharpness: float | None = None
    """A win is σ(sharpness · difference of rewards), for rewards that are log-odds. None: the higher reward wins."""
    renew: int = 0
    """Rollouts after which the reference becomes the policy. 1: iterative DPO, in rounds. 0: never."""

    def __post_init__(self):
        if not 0 <= self.share <= 1 or self.renew < 0 or (self.sharpness is not None and self.sharpness <= 0):
            raise ConfigError(
                f"way.share = {self.share}, renew = {self.renew}, sharpness = {self.sharpness}: a share lies in "
                "[0, 1], rollouts are counted from 0, and a sharpness is positive"
            )
        if self.optimism and (self.opponent != "reference" or self.learn != "pairs"):
            raise ConfigError('way.optimism weighs answers of the reference in pairs: set opponent = "reference"')
        if self.learn == "win_rate" and self.opponent == "self":
            raise ConfigError('way.learn = "win_rate" needs an opponent: set opponent = "mixture" (Nash-MD)')


WAYS: dict[str, Way] = {
    # Guo et al. 2024 (arXiv 2402.04792)
    "online_dpo": Way(),
    # Pang et al. 2024 (arXiv 2404.19733), with loss.name = "rpo"; each rollout is a round, so make it large
    "iterative_dpo": Way(renew=1),
    # Yuan et al. 2024 (arXiv 2401.10020)
    "self_rewarding": Way(judge="self", renew=1),
    # Munos et al. 2023 (arXiv 2312.00886)
    "nash_md": Way(opponent="mixture", learn="win_rate"),
    # Xie et al. 2024 (arXiv 2405.21046)
    "xpo": Way(opponent="reference", optimism=1e-5),
}


@dataclass(frozen=True)
class Match:
    """Two answers to one prompt of which one is better; where only wins count, also a draw."""

    task: str
    mine: Trajectory
    """By the policy; where it plays itself, the better one."""
    other: Trajectory
    gap: float
    """Reward of mine less that of the other."""


def contests(groups: list[Group], way: Way) -> list[Match]:
    """The matches of a rollout. Answers that could not be scored take no part; equal ones only where wins count.

    Where the policy plays itself the best answer to a prompt meets the worst; else its k-th the opponent's k-th.
    """
    if way.opponent == "self":
        flat = [(g, m) for g, group in enumerate(groups) for m in group.members if worth(m) is not None]
        if not flat:
            return []
        reward = torch.tensor([worth(m) for _, m in flat], dtype=torch.float64)
        best, worst = best_and_worst(reward, torch.tensor([g for g, _ in flat]))
        pairs = [(flat[i][1], flat[j][1]) for i, j in zip(best.tolist(), worst.tolist(), strict=True)]
    else:
        half = [(group.members, len(group.members) // 2) for group in groups]
        pairs = [(a, b) for said, n in half for a, b in zip(said[:n], said[n:], strict=True)]
    found = [Match(a.task.id, a, b, worth(a) - worth(b)) for a, b in pairs if None not in (worth(a), worth(b))]
    return [m for m in found if m.gap or way.learn == "win_rate"]


def worth(m: Trajectory) -> float | None:
    """The reward of an answer; None where it could not be scored, or is no answer at all."""
    return m.score.value if m.score is not None and m.segments else None


def match_batch(matches: list[Match], way: Way, pad_id: int) -> TokenBatch:
    """Rows of winners and losers; or where wins count, the policy's own answers with their win rate less a half.

    The weights "rival" mark what an opponent wrote.
    """
    if way.learn == "win_rate":
        batch = collate([m.mine.segments[0] for m in matches], pad_id=pad_id)
        batch = batch.with_(margin=torch.tensor([win_rate(m.gap, way.sharpness) - 0.5 for m in matches]))
        rival = torch.zeros(len(batch))
    else:
        sides = [(m.mine, m.other) if m.gap > 0 else (m.other, m.mine) for m in matches]
        batch = collate_pairs(
            [(a.segments[0], b.segments[0]) for a, b in sides], [abs(m.gap) for m in matches], pad_id=pad_id
        )
        theirs = [x is m.other and way.opponent != "self" for m, pair in zip(matches, sides, strict=True) for x in pair]
        rival = torch.tensor(theirs, dtype=torch.float32)
    temperature = torch.full((len(batch),), matches[0].mine.temperature or 1.0)
    return batch.with_(weights={"rival": rival}, temperature=temperature)


def win_rate(gap: float, sharpness: float | None) -> float:
    """How often an answer beats another whose reward is lower by `gap`."""
    if sharpness is None:
        return 0.5 + 0.5 * ((gap > 0) - (gap < 0))
    return float(torch.sigmoid(torch.tensor(sharpness * gap, dtype=torch.float64)))


def weigh_matches(batch: TokenBatch, loss: PreferenceLoss, way: Way) -> TokenBatch:
    """The averages of one optimizer step: over pairs, or over answers where wins count."""
    return weighed(batch, loss) if way.learn == "pairs" else weigh_rows(batch, Average("sequence"), "row")


def terms(out: Outputs, b: TokenBatch, loss: PreferenceLoss, way: Way) -> tuple[list[Term], Metrics]:
    """The loss of a step: that of the menu on pairs, with XPO's optimism beside it, or Nash-MD's policy gradient."""
    if way.learn == "win_rate":
        value, found = nash_md(out.logp, b.ref_logp, b.mask, b.margin + 0.5, beta=loss.strength)
        return [Term("nash_md", value, b.weights["row"])], {"win_rate": (found["win_rate"].sum(), len(b))}
    found, metrics = loss_terms(out, b, loss)
    if way.optimism:  # XPO: Σ α · log π(y) over what the reference wrote
        total = answers(out.logp, b.mask)[0]
        found.append(Term("optimism", total, way.optimism * b.weights["rival"] * b.weights["pair"]))
    return found, metrics


def drift(batch: TokenBatch) -> Metrics:
    """How far the answers' author has moved from the reference: kl(policy ‖ reference) per answer, estimate k1."""
    if batch.ref_logp is None:
        return {}
    mine = batch.weights["rival"] == 0
    gap = ((batch.sampled_logp - batch.ref_logp) * batch.mask).sum(1)
    return {"kl_ref_answer": (gap[mine].sum(), mine.sum())}


def agreement(batch: TokenBatch, optim: Optim) -> Check:
    """That sampler and learner said the same of the policy's own answers, before the first step."""
    mask = batch.mask & (batch.weights["rival"] == 0)[:, None]
    gap = torch.where(mask, (batch.sampled_logp - batch.old_logp).abs(), 0.0)
    limit = 0.02 if optim.precision == "bfloat16" else 1e-4
    return check_sampler_gap(float(gap.sum() / mask.sum().clamp(min=1)), float(gap.max()), limit=limit)
