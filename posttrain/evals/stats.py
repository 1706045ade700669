"""How sure one may be of an evaluation: intervals for shares and means, paired comparison, pass@k.

Plain Python over lists of numbers. The unit is the task: where a task was asked several times, give its mean, since
answers to one task are no independent evidence.
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


def wilson(right: int, n: int, confidence: float = 0.95) -> Interval:
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


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that k answers drawn without replacement from n, `right` of them right, hold a right one.

        pass@k = 1 - C(n - right, k) / C(n, k)

    Chen et al. 2021 (arXiv 2107.03374), eq. 1: unbiased, where 1 - (1 - right/n)^k is too low. pass@1 = right / n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers, {right} right: expected 0 <= right <= n and 1 <= k <= n")
    return 1.0 - math.prod((n - right - i) / (n - i) for i in range(k))


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
