"""The adaptive leash.

A fixed β holds no fixed KL. Steer it: where the measured KL is above the target, raise β a little; where it is below,
lower it. The error is relative to the target and cut to ±0.2, so that one strange batch moves β by a little only.
"""

from posttrain.exercises.exercise import Exercise
from posttrain.objectives.kl import adaptive_beta


def next_beta(beta: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """β · (1 + e · samples / horizon), with e = clip(kl / target - 1, -0.2, 0.2).

    beta: of this step. kl: measured in it. samples: answers of this step. horizon: answers over which a lasting error
    of 0.2 changes β by about a fifth. Returns the β of the next step.
    """
    raise NotImplementedError


def solution(beta: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """A proportional controller, on a scale of ratios."""
    error = max(-0.2, min(0.2, kl / target - 1))
    return beta * (1 + error * samples / horizon)


def expected(beta: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """The library's."""
    return adaptive_beta(beta, kl, target=target, samples=samples, horizon=horizon)


def cases():
    """On target; a little off, on both sides; far off, on both sides."""
    step = {"beta": 0.15, "target": 6.0, "samples": 512, "horizon": 10_000}
    return [{"beta": 0.15, "kl": kl} | step for kl in (6.0, 6.6, 5.4, 20.0, 0.1)]


EXERCISE = Exercise(
    stub=next_beta,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "The error is not cut: a batch with three times the KL would move β ten times too far.": (
            lambda beta, kl, target, samples, horizon: beta * (1 + (kl / target - 1) * samples / horizon)
        ),
        "It steers the wrong way: a KL above the target needs a stronger leash, so a larger β.": (
            lambda beta, kl, target, samples, horizon: (
                beta * (1 - max(-0.2, min(0.2, kl / target - 1)) * samples / horizon)
            )
        ),
        "The error is cut above and not below.": (
            lambda beta, kl, target, samples, horizon: beta * (1 + min(0.2, kl / target - 1) * samples / horizon)
        ),
    },
)
