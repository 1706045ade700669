"""What is made of a grader's score before it is credited to tokens: its scale, its range, and what a missing end costs.

A learned score has no zero and no unit, so that a leash of a given strength means nothing until its scale is fixed; and
an answer that ran into the length limit has no end at which a reward model could judge it. Section 14 of the book tells
both.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.normalize import clip_reward, moments_std, rescale, update_moments
from posttrain.records import Group, Stop
from posttrain.rewards.shaping import replace_truncated


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """From scores to rewards, in this order: scale, clip, missing end; whitening comes after the KL charge."""

    scale: Literal["none", "start", "running"] = "none"
    """start: the gain and bias that give the first rollout's scores mean 0 and deviation 1 (Ziegler et al. 2019), for
    the whole run. running: the same by all scores so far. none: as the grader gives them."""
    clip: float | None = None
    """Scores are cut to at most this size, in units of the scaled score. None: as they are."""
    missing_end: Literal["keep", "subtract", "replace"] = "keep"
    """What happens to an answer that was cut off at max_tokens. subtract: it loses `end_value` (TRL). replace: its
    score is `end_value`, whatever it said (Ziegler et al. and N+: -1). keep: it is graded as it stands."""
    end_value: float = 0.0
    """What `missing_end` subtracts, or puts in the score's place."""
    whiten: bool = False
    """Divide the rewards of all tokens, KL charge included, by their deviation over the batch; their mean stays."""

    def __post_init__(self):
        if self.scale not in ("none", "start", "running"):
            raise ConfigError(f'scale = "{self.scale}" is not one of none, start, running.')
        if self.missing_end not in ("keep", "subtract", "replace"):
            raise ConfigError(f'missing_end = "{self.missing_end}" is not one of keep, subtract, replace.')
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip = {self.clip}: must be positive; a limit of 0 would make all rewards equal.")
        if self.missing_end == "keep" and self.end_value:
            raise ConfigError(
                f'end_value = {self.end_value} changes nothing with missing_end = "keep": set it to "subtract" or '
                '"replace", or leave end_value out.'
            )
        if self.missing_end == "subtract" and not self.end_value > 0:
            raise ConfigError(
                f'end_value = {self.end_value} with missing_end = "subtract": what an answer loses must be positive '
                "(1 is usual where scores have deviation 1)."
            )


def first_scale(shaping: Shaping) -> dict[str, dict[str, float]]:
    """What a loop's state holds of the scale; nothing where scores keep theirs."""
    return {} if shaping.scale == "none" else {"scores": {"count": 0.0, "mean": 0.0, "sum_sq": 0.0}}


def shaped(groups: list[Group], reward: Tensor, shaping: Shaping, state: dict) -> tuple[Tensor, dict]:
    """Rewards [trajectories] from the scores that `collate_groups` returns, and the loop's state after them.

    A scale needs scores that differ: until the first such batch all rewards are 0.
    """
    if shaping.scale != "none":
        scores = state["scores"]
        if shaping.scale == "running" or not moments_std(scores) > 0:
            scores = update_moments(scores, reward, torch.ones_like(reward, dtype=torch.bool))
            state = state | {"scores": scores}
        std = moments_std(scores)
        reward = rescale(reward, mean=scores["mean"], std=std) if std > 0 else torch.zeros_like(reward)
    if shaping.clip is not None:
        reward = clip_reward(reward, shaping.clip)
    if shaping.missing_end != "keep":
        cut = was_cut(groups)
        values = [
            replace_truncated(
                r, c, value=r - shaping.end_value if shaping.missing_end == "subtract" else shaping.end_value
            )
            for r, c in zip(reward.tolist(), cut, strict=True)
        ]
        reward = torch.tensor(values)
    return reward, state


def was_cut(groups: list[Group]) -> list[bool]:
    """Of each scored trajectory, in the order of `collate_groups`: whether the token budget ended it."""
    return [
        m.stop == Stop.LENGTH
        for g in groups
        for m in g.members
        if m.score is not None and m.score.value is not None and m.segments
    ]
