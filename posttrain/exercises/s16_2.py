"""The reward that a policy implies.

A policy trained with a leash says what reward it was trained on. Read it off, for every answer, and say how often the
chosen answer has the higher one.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw
from posttrain.objectives.preference import implicit_reward


def implicit_rewards(logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    """β [log π(y|x) - log π_ref(y|x)] of each answer, the logarithms summed over its tokens.

    logp, ref_logp: [N, T] of the answers' tokens, under the policy and the reference. mask: [N, T], true at the tokens
    that belong to the answer. Returns [N].
    """
    raise NotImplementedError


def solution(logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    """A sum, since the probability of an answer is a product."""
    return beta * torch.where(mask, logp - ref_logp, 0.0).sum(1)


def expected(logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The library's, per token, added up."""
    return implicit_reward(logp, ref_logp, mask, beta=beta).sum(1)


def cases():
    """Unmoved; one answer; answers of different lengths, with absurd numbers in the padding."""
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    logp = torch.where(mask, draw(3, 4, seed=21) - 2, -1e4)
    whole = torch.ones(1, 2, dtype=torch.bool)
    one = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    return [
        {"logp": one, "ref_logp": one, "mask": whole, "beta": 0.1},
        {"logp": one, "ref_logp": one - 1, "mask": whole, "beta": 0.1},
        {"logp": logp, "ref_logp": draw(3, 4, seed=22) - 2, "mask": mask, "beta": 0.3},
    ]


EXERCISE = Exercise(
    stub=implicit_rewards,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "The mask is not used: padding counts as part of the answer.": (
            lambda logp, ref_logp, mask, beta: beta * (logp - ref_logp).sum(1)
        ),
        "That is the mean over tokens. The probability of an answer is a product, so its logarithm is a sum.": (
            lambda logp, ref_logp, mask, beta: solution(logp, ref_logp, mask, beta) / mask.sum(1)
        ),
        "β is missing.": lambda logp, ref_logp, mask, beta: solution(logp, ref_logp, mask, 1.0),
        "The sign is wrong: an answer that became likelier has a positive reward.": (
            lambda logp, ref_logp, mask, beta: solution(logp, ref_logp, mask, -beta)
        ),
    },
)
