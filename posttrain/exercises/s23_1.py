"""Advantages of a group.

GRPO samples several answers to one prompt and compares each with the group: reward minus the group's mean, over the
group's standard deviation. A group whose rewards are all equal says nothing, and must give exactly 0.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.advantages import zscore


def group_advantages(rewards: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-4), with the sample's standard deviation (divided by G - 1).

    rewards: [P, G], one row per prompt. Returns [P, G].
    """
    raise NotImplementedError


def solution(rewards: Tensor) -> Tensor:
    """A constant row is 0 over 1e-4; its mean may differ from it in the last digit, so that 0 is written."""
    deviation = rewards - rewards.mean(1, keepdim=True)
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return torch.where(equal, 0.0, deviation / (rewards.std(1, keepdim=True) + 1e-4))


def expected(rewards: Tensor) -> Tensor:
    """The library's, with the groups named."""
    groups = torch.arange(len(rewards))[:, None].expand_as(rewards)
    return zscore(rewards.flatten(), groups.flatten()).view_as(rewards)


def cases():
    """Two of eight; one of two; all equal; several groups."""
    return [
        {"rewards": tensor(1, 0, 0, 1, 0, 0, 0, 0)[None]},
        {"rewards": tensor(1, 0)[None]},
        {"rewards": tensor(1, 1, 1, 1)[None]},
        {"rewards": torch.stack([tensor(1, 0, 0, 0), tensor(0, 0, 0, 0), tensor(1, 1, 1, 0)])},
        {"rewards": draw(3, 5, seed=23)},
    ]


def _population(rewards):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True, unbiased=False) + 1e-4)


EXERCISE = Exercise(
    stub=group_advantages,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "That is the population's standard deviation (over G); the task wants the sample's (over G - 1).": _population,
        "That is the reward minus the mean, not divided by the spread: Dr. GRPO's advantage.": (
            lambda rewards: rewards - rewards.mean(1, keepdim=True)
        ),
        "Mean and deviation were taken over all rewards; each prompt's group has its own.": (
            lambda rewards: (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        ),
        "Where all rewards of a group are equal, that divides 0 by 0: keep the 1e-4.": (
            lambda rewards: (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)
        ),
    },
)
