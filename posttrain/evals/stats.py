"""How sure one may be of an evaluation: intervals for shares, means and win rates, and paired comparison.

Plain Python over lists of numbers; what is estimated (pass@k, votes, ratings) is in `posttrain.objectives`. The unit is
the task: where a task was asked several times, give its mean, since answers to one task are no independent evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from posttrain import rng


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(right: float, n: int, confidence: float = 0.95) -> Interval:
    """Interval for a share, right of n, that stays inside [0, 1] and is honest for small n and extreme shares.

        centre = (p + z²/2n) / (1 + z²/n),   half = z √(p(1-p)/n + z²/4n²) / (1 + z²/n)

    Wilson 1927. z is the normal quantile of the confidence: 1.96 for 0.95. With right = 0 the upper end is z²/(n + z²).
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"{right} right answers of {n}: expected 0 <= right <= n and n >= 1")
    z, p = _z(confidence), right / n
    scale = 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / scale, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return Interval(p, max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < n else 1.0)


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = 2000, confidence: float = 0.95) -> Interval:
    """Percentile interval for the mean of one value per task, by drawing tasks with replacement.

    Efron 1979. Deterministic in its arguments. With fewer than about 20 values it is too narrow; `wilson` is not.
    """
    import numpy as np

    _z(confidence)
    if len(values) == 0:
        raise ValueError("an interval needs one value at least")
    x = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(rng.fold(seed, "bootstrap"))
    means = np.array([x[draw.integers(len(x), size=len(x))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(fmean(values), float(low), float(high))


def paired(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Interval for mean(ours) - mean(theirs) on the same tasks in the same order: hard tasks are hard for both.

    The bootstrap of the differences, much narrower than two intervals side by side. It holds 0: no proof of a change.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} and {len(theirs)} values: a paired comparison needs the same tasks on both sides"
        )
    return bootstrap([a - b for a, b in zip(ours, theirs, strict=True)], seed, resamples, confidence)


def win_rate(wins: int, ties: int, losses: int, confidence: float = 0.95) -> Interval:
    """Share of comparisons won, a tie counting half for each side.

        p = (wins + ties / 2) / n

    The interval is Wilson's. Since a tie varies less than a win or a loss, it is a little too wide where there are many
    (Stiennon et al. 2020, arXiv 2009.01325, report shares so). 300 wins in 500: 0.600 [0.556, 0.642].
    """
    return wilson(wins + ties / 2, wins + ties + losses, confidence)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
