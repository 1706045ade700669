"""Gates: trust regions that drop a token or an answer, instead of clipping its ratio.

PPO's ratio clip holds a token of probability 0.001 to the same band as one of 0.99, though doubling the first moves
next to nothing. A gate measures how far the policy has really moved where the advantage pushed it, and lets no gradient
through beyond that. What is dropped keeps its place in the average. Section 24 of the explainer draws the shapes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.divergence import binary_kl, binary_tv
from posttrain.objectives.surrogate import importance
from posttrain.objectives.tokens import check_shapes, masked

_GATES = ("none", "tv", "binary_kl", "answer")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Where the gradient of the gain is stopped because the policy has moved far enough, or too far."""

    kind: Literal["none", "tv", "binary_kl", "answer"] = "none"
    """tv, binary_kl: per token, by a distance between the policies at that token (DPPO; see `divergence`). answer: per
    answer, by its mean log-ratio (DeepSeek-V3.2's off-policy sequence mask)."""
    low: float | None = None
    """How far the policy may have turned away from a token (an answer) of negative advantage. None: any distance."""
    high: float | None = None
    """How far the policy may have turned towards a token (an answer) of positive advantage. None: any distance."""
    against: Literal["old", "sampler"] = "old"
    """From where the move is measured: the policy that the ratio starts from, or the sampler that drew the tokens."""

    def __post_init__(self):
        if self.kind not in _GATES:
            raise ConfigError(f'gate.kind = "{self.kind}" is not one of {", ".join(_GATES)}.')
        if self.against not in ("old", "sampler"):
            raise ConfigError(f'gate.against = "{self.against}" is not one of old, sampler.')
        if self.kind == "none" and (self.low, self.high, self.against) != (None, None, "old"):
            raise ConfigError(
                f'gate.low = {self.low}, high = {self.high}, against = "{self.against}" change nothing with gate.kind '
                '= "none". Set kind to "tv", "binary_kl" or "answer", or leave them out.'
            )
        if self.kind != "none" and self.low is None and self.high is None:
            raise ConfigError(
                f'gate.kind = "{self.kind}" without low and high stops nothing. Set one of them (DPPO: 0.15 for tv, '
                "0.05 for binary_kl; off-policy sequence mask: low = 0.5)."
            )
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"gate.{name} = {value}: a distance allowed must be positive; None allows any.")


def gate_keep(logp: Tensor, start_logp: Tensor, advantage: Tensor, mask: Tensor, gate: Gate) -> Tensor:
    """Which tokens keep their gradient.

        tv, binary_kl  drop if A > 0, π > μ and D(μ, π) > high,  or A < 0, π < μ and D(μ, π) > low
                       Qi et al. 2026, DPPO (arXiv 2602.04879)
        answer         drop if A < 0 and mean_t log(μ/π) > low,  or A > 0 and mean_t log(π/μ) > high
                       DeepSeek-AI 2025, V3.2 (arXiv 2512.02556), with the first half only

    logp: [N, T] of the learner now. start_logp: [N, T] of μ, the policy from which the move is measured.
    advantage: [N, T]; its sign decides which way is too far. mask: [N, T]. gate: the choices.

    Returns [N, T], boolean: true where the gradient is kept, and everywhere outside the mask. No gradient flows.
    Raises ShapeError if the shapes differ.

    At π = μ everything is kept. A token pushed from 0.5 to 0.7 by a positive advantage is dropped by tv with high =
    0.15; pushed there against a negative advantage it is kept, because its gradient brings it back. Section 24.
    """
    check_shapes("NT", logp, start_logp, advantage, mask)
    logp, start_logp, advantage = (masked(x, mask) for x in (logp, start_logp, advantage))
    moved = logp - start_logp
    match gate.kind:
        case "none":
            return torch.ones_like(mask, dtype=torch.bool)
        case "tv":
            distance = binary_tv(start_logp, logp)
        case "binary_kl":
            distance = binary_kl(start_logp, logp)
        case "answer":
            moved = importance(logp, start_logp, mask, "sequence")
            distance = moved.abs()
    drop = torch.zeros_like(mask, dtype=torch.bool)
    if gate.high is not None:
        drop |= (advantage > 0) & (moved > 0) & (distance > gate.high)
    if gate.low is not None:
        drop |= (advantage < 0) & (moved < 0) & (distance > gate.low)
    return ~drop
