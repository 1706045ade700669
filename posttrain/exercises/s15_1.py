"""How far best-of-n moves.

Draw n answers and keep the one with the highest reward. What distribution does that give, and how far is it from the
one that was drawn from? For answers that can be listed and whose rewards differ, both are exact.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.selection import best_of_n_kl as library


def best_of_n_kl(p: Tensor, n: int) -> Tensor:
    """kl(best of n ‖ p) in nats, where answer v has probability p[v], and later answers have higher rewards.

    The best of n is answer v if all n are v or earlier, and not all are earlier. p: [V], adding up to 1. n: at least 1.
    Returns one number.
    """
    raise NotImplementedError


def solution(p: Tensor, n: int) -> Tensor:
    """P(best is v) = F(v)^n - F(v - 1)^n, with F the cumulative sum."""
    up_to = p.cumsum(0)
    before = up_to - p
    best = up_to**n - before**n
    return (torch.xlogy(best, best) - torch.xlogy(best, p)).sum()


def expected(p: Tensor, n: int) -> Tensor:
    """The library's, with the rewards written out."""
    return library(p, torch.arange(len(p), dtype=p.dtype), n)


def cases():
    """One draw; two answers; four; a hundred equal ones; an answer that is never drawn."""
    return [
        {"p": tensor(0.4, 0.3, 0.2, 0.1), "n": 1},
        {"p": tensor(0.5, 0.5), "n": 2},
        {"p": tensor(0.4, 0.3, 0.2, 0.1), "n": 4},
        {"p": torch.full((100,), 0.01, dtype=torch.float64), "n": 16},
        {"p": torch.cat([draw(5, seed=13).softmax(-1), tensor(0.0)]), "n": 3},
    ]


def _usual(p, n):
    return torch.log(torch.tensor(float(n), dtype=p.dtype)) - (n - 1) / n


def _reversed(p, n):
    return solution(p.flip(0), n)


EXERCISE = Exercise(
    stub=best_of_n_kl,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "That is log n - (n - 1)/n, exact for endlessly many different answers, and a bound here.": _usual,
        "That keeps the worst of n: later answers have higher rewards.": _reversed,
    },
)
