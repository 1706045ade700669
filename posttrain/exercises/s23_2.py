"""Pass at k, without bias.

Of n answers to a problem, c were right. How likely is it that k answers hold a right one? With the share c/n in the
place of the success rate the estimate is too low. Count instead: of all ways to choose k of the n, how many miss?
"""

import math

from torch import Tensor

from posttrain.exercises.exercise import Exercise
from posttrain.objectives.selection import unbiased_pass_at_k


def pass_at_k(right: list[int], n: int, k: int) -> list[float]:
    """1 - C(n - c, k) / C(n, k) for each problem.

    right: c of each problem, from 0 to n. k: from 1 to n. Returns a number per problem.
    """
    raise NotImplementedError


def solution(right: list[int], n: int, k: int) -> list[float]:
    """`math.comb` is 0 where fewer than k answers are wrong."""
    return [1 - math.comb(n - c, k) / math.comb(n, k) for c in right]


def expected(right: list[int], n: int, k: int) -> Tensor:
    """The library's."""
    import torch

    return unbiased_pass_at_k(torch.tensor(right), n, k)


def cases():
    """One draw; four of sixteen; all and none; many."""
    return [
        {"right": [2], "n": 16, "k": 1},
        {"right": [2], "n": 16, "k": 4},
        {"right": [0, 16, 15], "n": 16, "k": 4},
        {"right": list(range(0, 65, 8)), "n": 64, "k": 16},
    ]


EXERCISE = Exercise(
    stub=pass_at_k,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "That puts the share c/n in the place of the success rate: 1 - (1 - c/n)^k, which is too low.": (
            lambda right, n, k: [1 - (1 - c / n) ** k for c in right]
        ),
        "That is the chance that all k are right.": lambda right, n, k: [
            math.comb(c, k) / math.comb(n, k) for c in right
        ],
        "That is the chance that none is right: take it from 1.": (
            lambda right, n, k: [math.comb(n - c, k) / math.comb(n, k) for c in right]
        ),
    },
)
