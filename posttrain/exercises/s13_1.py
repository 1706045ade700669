"""The clipped surrogate.

PPO maximises, for each token, the smaller of two numbers: the ratio times the advantage, and the same with the ratio
cut to [1 - ε, 1 + ε]. Write this objective. It is to be maximised, so it has no minus in front. Its gradient is graded
as well: that is where clipping acts.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.surrogate import Clip, clipped_gain


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) for every token, with ρ = exp(logp - old_logp).

    logp, old_logp: [T] log-probabilities of the sampled tokens, now and when they were sampled. advantage: [T].
    Returns [T], with a gradient in logp.
    """
    raise NotImplementedError


def solution(logp: Tensor, old_logp: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """The minimum is what keeps mistakes unprotected."""
    ratio = torch.exp(logp - old_logp)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def expected(logp: Tensor, old_logp: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """The library's, for one row."""
    log_ratio, mask = (logp - old_logp)[None], torch.ones_like(logp, dtype=torch.bool)[None]
    clip = Clip(low=epsilon, high=epsilon)
    return clipped_gain(log_ratio, logp[None], advantage[None], mask, clip)[0]


def cases():
    """Not moved; each of the four corners; a batch."""
    corners = [(1.0, 1.0), (1.3, 1.0), (0.7, 1.0), (0.7, -1.0), (1.3, -1.0), (5.0, -2.0)]
    by_hand = [
        {"logp": tensor(0.1 * ratio).log(), "old_logp": tensor(0.1).log(), "advantage": tensor(a), "epsilon": 0.2}
        for ratio, a in corners
    ]
    batch = {
        "logp": draw(8, seed=5, scale=0.4) - 2,
        "old_logp": draw(8, seed=6, scale=0.1) - 2,
        "advantage": draw(8, seed=7),
    }
    return [*by_hand, batch | {"epsilon": 0.1}]


def _clip_alone(logp, old_logp, advantage, epsilon):
    return (logp - old_logp).exp().clamp(1 - epsilon, 1 + epsilon) * advantage


EXERCISE = Exercise(
    stub=clipped_surrogate,
    solution=solution,
    expected=expected,
    cases=cases,
    through=("logp",),
    mistakes={
        "The outer minimum is missing: with the clipped term alone, a token that became likelier while its advantage "
        "is negative would get no gradient back.": _clip_alone,
        "That is the surrogate without a clip: nothing ends a move that has gone far enough.": (
            lambda logp, old_logp, advantage, epsilon: (logp - old_logp).exp() * advantage
        ),
        "That is the loss. The objective is to be maximised: leave out the minus.": (
            lambda logp, old_logp, advantage, epsilon: -solution(logp, old_logp, advantage, epsilon)
        ),
        "That takes the larger of the two terms; it must be the smaller one.": (
            lambda logp, old_logp, advantage, epsilon: torch.maximum(
                (logp - old_logp).exp() * advantage, _clip_alone(logp, old_logp, advantage, epsilon)
            )
        ),
    },
)
