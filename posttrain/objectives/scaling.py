"""Curves with two or three parameters: how over-optimisation, coverage and RL compute behave, and their fits.

Each law stands beside its least-squares fit in closed form, so that the book's curve and the measurement's are one
function. Sections 15, 21 and 24 of the explainer tell the stories.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.errors import ConfigError, DataError
from posttrain.objectives.tokens import check_shapes


class Law(NamedTuple):
    """The parameters of a law of two."""

    alpha: Tensor
    beta: Tensor


class Peak(NamedTuple):
    """Where a curve is highest."""

    distance: Tensor
    """d* = √kl."""
    gold: Tensor
    """The gold reward there."""


class Growth(NamedTuple):
    """The parameters of ScaleRL's curve."""

    ceiling: Tensor
    """A, the reward with endless compute."""
    exponent: Tensor
    """B, how steeply it is approached."""
    midpoint: Tensor
    """C_mid, the compute that gains half."""


def gold_best_of_n(distance: Tensor, law: Law) -> Tensor:
    """Gold reward of best-of-n against how far it has moved from the sampler.

        R(d) = d · (α - β d),   d = √kl

    Gao et al. 2022 (arXiv 2210.10760), section 3.1.

    distance: [M], √ of kl(best-of-n ‖ sampler) in nats, of whole answers. law: α, β. Returns [M].

    Starts at 0. With α = 1, β = 1/4 the top is 1, at d = 2. Section 15.
    """
    return distance * (law.alpha - law.beta * distance)


def gold_rl(distance: Tensor, law: Law) -> Tensor:
    """Gold reward of reinforcement learning against how far the policy has moved.

        R(d) = d · (α - β log d),   d = √kl

    Gao et al. 2022 (arXiv 2210.10760), section 3.1. The logarithm is what tells it from best-of-n.

    distance: [M], √ of kl(policy ‖ initial policy) in nats, of whole answers. law: α, β. Returns [M]; 0 at d = 0.

    With α = 0.5, β = 0.2 the top is 0.8963, at d = 4.4817, and R is 0 again at 12.182. Section 15.
    """
    return law.alpha * distance - law.beta * torch.special.xlogy(distance, distance)


def fit_best_of_n(distance: Tensor, gold: Tensor) -> Law:
    """α and β of `gold_best_of_n`, by least squares on the gold reward.

        min Σ_m (R_m - α d_m + β d_m²)²

    Gao et al. 2022 (arXiv 2210.10760) fit this law; it is linear in α and β, so the solution is closed.

    distance, gold: [M], M ≥ 2 points, gold 0 at the start. Returns the law. Raises DataError for fewer than two
    different distances.

    Points of the law give its parameters back. Section 15.
    """
    return _two_terms(distance, -distance.square(), gold)


def fit_rl(distance: Tensor, gold: Tensor) -> Law:
    """α and β of `gold_rl`, by least squares on the gold reward.

        min Σ_m (R_m - α d_m + β d_m log d_m)²

    Gao et al. 2022 (arXiv 2210.10760). Fitting R / d against log d is a straight line too, but counts the points near
    the start many times over.

    distance, gold: [M], M ≥ 2 points, gold 0 at the start. Returns the law. Raises DataError for fewer than two
    different distances.

    Points of the law give its parameters back. Section 15.
    """
    return _two_terms(distance, -torch.special.xlogy(distance, distance), gold)


def peak_best_of_n(law: Law) -> Peak:
    """Where `gold_best_of_n` is highest.

        d* = α / (2β),   R(d*) = α² / (4β)

    Gao et al. 2022 (arXiv 2210.10760), by differentiating its law. law: scalars α, β with β > 0; else ConfigError.

    Returns distance and gold reward. α = 1, β = 1/4: (2, 1). Section 15.
    """
    _check_falling(law)
    return Peak(law.alpha / (2 * law.beta), law.alpha.square() / (4 * law.beta))


def peak_rl(law: Law) -> Peak:
    """Where `gold_rl` is highest.

        d* = exp(α/β - 1),   R(d*) = β d*

    Gao et al. 2022 (arXiv 2210.10760), by differentiating its law. law: scalars α, β with β > 0; else ConfigError.

    Returns distance and gold reward. α = 0.5, β = 0.2: (4.4817, 0.8963). Section 15.
    """
    _check_falling(law)
    distance = torch.exp(law.alpha / law.beta - 1)
    return Peak(distance, law.beta * distance)


def coverage(k: Tensor, law: Law) -> Tensor:
    """Share of tasks that at least one of k answers solves, by the exponentiated power law.

        log C(k) = α k^β,   α < 0, β < 0

    Brown et al. 2024 (arXiv 2407.21787).

    k: [M] answers per task. law: α, β. Returns [M]. One answer solves exp(α). Section 21.
    """
    return torch.exp(law.alpha * k.to(law.alpha.dtype).pow(law.beta))


def fit_coverage(k: Tensor, share: Tensor) -> Law:
    """α and β of `coverage`, by the least-squares line through log(-log C) against log k.

        log(-log C(k)) = log(-α) + β log k

    Brown et al. 2024 (arXiv 2407.21787) fit this law; the line is our way to do it.

    k: [M]. share: [M], pass@k averaged over tasks, strictly between 0 and 1; else DataError. Returns the law.

    Points of the law give its parameters back. Section 21.
    """
    check_shapes("M", k, share)
    if not bool(((share > 0) & (share < 1)).all()):
        raise DataError(f"shares {share.tolist()[:8]}: the law holds strictly between 0 and 1. Leave other points out.")
    x = k.to(share.dtype).log()
    line = _two_terms(torch.ones_like(x), x, (-share.log()).log())
    return Law(-line.alpha.exp(), line.beta)


def scale_rl(compute: Tensor, growth: Growth, start: float) -> Tensor:
    """Reward against the compute spent on reinforcement learning.

        R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B)

    ScaleRL: Khatri et al. 2025 (arXiv 2510.13786).

    compute: [M], positive, in any unit. growth: A, B, C_mid. start: R_0, the reward before training. Returns [M].

    At C = C_mid it is half-way from R_0 to A. Section 24.
    """
    gained = torch.sigmoid(growth.exponent * (compute.log() - growth.midpoint.log()))
    return start + (growth.ceiling - start) * gained


def fit_scale_rl(compute: Tensor, reward: Tensor, start: float, ceilings: Tensor) -> Growth:
    """A, B and C_mid of `scale_rl`: a straight line for each ceiling that is tried, and the best ceiling.

        logit((R - R_0) / (A - R_0)) = B (log C - log C_mid)

    Khatri et al. 2025 (arXiv 2510.13786) also search A on a grid. Their fits leave out the first stretch of a run.

    compute, reward: [M], M ≥ 2. start: R_0, below every reward. ceilings: [K] values of A to try; those not above
        every reward are passed over, and one must remain.

    Returns the Growth with the least squared error in the reward. Raises DataError where a line cannot be drawn.

    Points of the curve give its parameters back where A is among the ceilings. Section 24.
    """
    check_shapes("M M K", compute, reward, ceilings)
    tried = ceilings[ceilings > reward.max()]
    if bool((reward <= start).any()) or not len(tried):
        raise DataError(
            f"rewards from {float(reward.min()):.4g} to {float(reward.max()):.4g}, start {start}: every reward must "
            "exceed the start, and one ceiling every reward. Leave out points at the start, or try higher ceilings."
        )
    found = []
    for ceiling in tried:
        line = _two_terms(torch.ones_like(reward), compute.log(), torch.logit((reward - start) / (ceiling - start)))
        if line.beta > 0:
            growth = Growth(ceiling, line.beta, torch.exp(-line.alpha / line.beta))
            found.append((float((scale_rl(compute, growth, start) - reward).norm()), growth))
    if not found:
        raise DataError("the reward does not rise with compute, so there is no growth to fit. Give more of the run.")
    return min(found)[1]


def _check_falling(law: Law) -> None:
    if not bool(law.beta > 0):
        raise ConfigError(f"beta = {float(law.beta):.4g}: the curve never falls, so it has no peak.")


def _two_terms(first: Tensor, second: Tensor, y: Tensor) -> Law:
    """Least squares of y on two columns, by the normal equations."""
    check_shapes("M", first, second, y)
    dtype, first, second, y = y.dtype, first.double(), second.double(), y.double()
    a, b, c = first.square().sum(), (first * second).sum(), second.square().sum()
    u, v = (first * y).sum(), (second * y).sum()
    determinant = a * c - b * b
    if not bool(determinant > 1e-12 * a * c):
        raise DataError("the points lie at fewer than two different places, so two parameters cannot be fitted.")
    return Law(((c * u - b * v) / determinant).to(dtype), ((a * v - b * u) / determinant).to(dtype))
