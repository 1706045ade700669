"""What the losses on pairs share: implicit rewards, the metrics that each of them reports, and the checks of arguments.

Nothing here is a method of its own; the formulas are in the files beside this one.
"""

import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, detached

PerPair = dict[str, Tensor]
"""Metrics with one entry per pair, detached."""

EXPONENT_CAP = 80.0
"""Exponents are cut here: e^80 is 5.5e34, still a float32, and no loss that reaches it means anything any more."""


def watched(reward_chosen: Tensor, reward_rejected: Tensor) -> tuple[Tensor, PerPair]:
    """The margin of two rewards [B] with its graph, and the metrics that all losses on pairs report."""
    margin = reward_chosen - reward_rejected
    return margin, detached(
        accuracy=(margin > 0).to(margin.dtype),
        margin=margin,
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
    )


def implicit_rewards(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """β u_w and β u_l [B], with their graph: u is the log-ratio of an answer between policy and reference."""
    check_shapes("B", chosen, rejected, ref_chosen, ref_rejected)
    return beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)


def scaled_gap(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, PerPair]:
    """β h with its graph, and the shared metrics."""
    return watched(*implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta))


def logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - ε) log σ(m) - ε log σ(-m)."""
    epsilon = flip_rate(label_smoothing)
    return -(1 - epsilon) * F.logsigmoid(margin) - epsilon * F.logsigmoid(-margin)


def flip_rate(label_smoothing: float) -> float:
    """The share of flipped labels, checked."""
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing = {label_smoothing}: the share of flipped labels must lie between 0 and 0.5 (at half, "
            "labels say nothing). 0.1 is a start."
        )
    return label_smoothing


def not_negative(name: str, value: float, what: str) -> float:
    """The value, checked."""
    if not value >= 0:
        raise ConfigError(f"{name} = {value}: {what}, so it must be 0 or more.")
    return value


def per_token(total: Tensor, length: Tensor) -> Tensor:
    """Sum over tokens [B] divided by their number [B]; an answer without tokens gives 0 and not 0/0."""
    check_shapes("B", total, length)
    return total / length.clamp(min=1)
