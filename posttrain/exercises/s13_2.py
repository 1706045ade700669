"""Generalised advantage estimation.

From the rewards of an answer's tokens and a critic's values, compute each token's advantage. Go from the last token to
the first: the advantage of a token is its surprise δ, plus γλ times the advantage of the next token.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.returns import gae


def advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = δ_t + γ λ A_{t+1}, with δ_t = r_t + γ V_{t+1} - V_t. After the last token all is over: V and A are 0.

    rewards, values: [T]; values[t] is V of the state in which token t was chosen. Returns [T].
    """
    raise NotImplementedError


def solution(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """One pass, backwards."""
    found = torch.zeros_like(rewards)
    next_value = next_advantage = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * next_value - values[t]
        found[t] = next_advantage = delta + gamma * lam * next_advantage
        next_value = values[t]
    return found


def expected(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """The library's, for one row."""
    mask = torch.ones_like(rewards, dtype=torch.bool)[None]
    return gae(rewards[None], values[None], mask, gamma=gamma, lam=lam)[0][0]


def cases():
    """One token; a reward at the end; both ends of λ; at random."""
    ends = {"rewards": tensor(0, 0, 0, 1), "values": tensor(0.2, 0.5, 0.4, 0.8)}
    return [
        {"rewards": tensor(1.0), "values": tensor(0.4), "gamma": 1.0, "lam": 0.95},
        ends | {"gamma": 1.0, "lam": 0.0},
        ends | {"gamma": 1.0, "lam": 1.0},
        ends | {"gamma": 1.0, "lam": 0.5},
        {"rewards": draw(9, seed=8), "values": draw(9, seed=9), "gamma": 0.9, "lam": 0.8},
    ]


def _no_bootstrap(rewards, values, gamma, lam):
    found, following = torch.zeros_like(rewards), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        found[t] = following = rewards[t] - values[t] + gamma * lam * following
    return found


EXERCISE = Exercise(
    stub=advantages,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "The value of the next state is missing in δ.": _no_bootstrap,
        "λ is not used: those are the returns minus the values, which is λ = 1.": (
            lambda rewards, values, gamma, lam: solution(rewards, values, gamma, 1.0)
        ),
        "Those are the surprises δ alone, which is λ = 0.": (
            lambda rewards, values, gamma, lam: solution(rewards, values, gamma, 0.0)
        ),
        "Those are the targets of the critic: the value must be taken off again.": (
            lambda rewards, values, gamma, lam: solution(rewards, values, gamma, lam) + values
        ),
        "λ decays, but γ does not: the factor in front of the next advantage is γλ.": (
            lambda rewards, values, gamma, lam: solution(rewards, values, gamma, lam / gamma)
        ),
    },
)
