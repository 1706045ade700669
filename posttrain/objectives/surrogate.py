"""Importance ratios and what keeps them in check: clipping rules and the sampler's mismatch.

A policy-gradient step on samples that are a little stale weighs each token by π/π_old. This file answers three
questions about that ratio: over what is it taken (`importance`), how far may it move a token (`clipped_gain`), and what
if the sampler was not even π_old (`mismatch_weight`). Sections 13 and 24 of the explainer tell the story. The choices
are records (`Clip`, `Mismatch`), so that a method is a row of values; nothing is averaged here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked

Ratio = Literal["none", "token", "sequence", "sequence_sum", "sequence_token"]
RATIOS = ("none", "token", "sequence", "sequence_sum", "sequence_token")
_CLIPS = ("min", "weight", "soft", "none")
_MISMATCHES = ("off", "truncate", "mask")
_LEVELS = ("token", "sequence", "geometric")
_MAX_LOG_RATIO = 80.0
"""exp of more overflows float32, and 0 · inf in the backward would make a clipped token's gradient NaN instead of 0."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How far the importance ratio ρ may move before its gradient is cut."""

    kind: Literal["min", "weight", "soft", "none"] = "min"
    """min: PPO's pessimistic minimum of the clipped and unclipped surrogate. weight: CISPO's clipped, detached weight
    on log π. soft: SAPO's sigmoid gate. none: ρ as it is."""
    low: float | None = 0.2
    """Lower edge is 1 - low. None, or 1 and more: no lower edge (R1 prints 10; CISPO has none)."""
    high: float = 0.2
    """Upper edge is 1 + high; DAPO's clip-higher uses 0.28."""
    cap: float | None = None
    """Dual clip: where the advantage is negative the ratio counts as at most this (PPO-style codes use 3,
    INTELLECT-2 uses 4). None: no cap. Only with "min"."""
    tau: float = 1.0
    """Steepness of the soft gate where the advantage is positive. Only with "soft"."""
    tau_negative: float = 1.05
    """Steepness of the soft gate where the advantage is negative. Only with "soft"."""

    def __post_init__(self):
        if self.kind not in _CLIPS:
            raise ConfigError(f'clip.kind = "{self.kind}" is not one of {", ".join(_CLIPS)}.')
        if self.high <= 0:
            raise ConfigError(
                f"clip.high = {self.high}: the upper edge is 1 + high, so high must be positive (PPO uses 0.2, "
                "DAPO 0.28)."
            )
        if self.low is not None and self.low < 0:
            raise ConfigError(f"clip.low = {self.low}: the lower edge is 1 - low, so low must not be negative.")
        if self.cap is not None and self.cap <= 1:
            raise ConfigError(f"clip.cap = {self.cap}: a cap at or below ratio 1 cuts on-policy samples; 3 is usual.")
        if self.tau <= 0 or self.tau_negative <= 0:
            raise ConfigError(f"clip.tau = {self.tau}, tau_negative = {self.tau_negative}: both must be positive.")
        read = {"min": ("low", "high", "cap"), "weight": ("low", "high"), "soft": ("tau", "tau_negative"), "none": ()}
        for name in ("low", "high", "cap", "tau", "tau_negative"):
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if name not in read[self.kind] and value != default:
                raise ConfigError(
                    f'clip.{name} = {value} changes nothing with clip.kind = "{self.kind}"; leave it at {default}.'
                )

    @property
    def edges(self) -> tuple[float, float]:
        """The band of ratios, (1 - low, 1 + high); the lower edge is 0 where there is none."""
        return (0.0 if self.low is None else max(0.0, 1 - self.low)), 1 + self.high


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Correction for a sampler whose probabilities differ from the learner's: a detached weight w = π_old / μ."""

    kind: Literal["off", "truncate", "mask"] = "off"
    """truncate: w is cut to the band (TIS). mask: w counts as 0 outside the band (IcePop, MIS). off: no weight."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """token: each its own. sequence: the product over the answer. geometric: the geometric mean over the answer."""
    low: float | None = None
    """Lower end of the band. None: none."""
    high: float = 2.0
    """Upper end of the band."""

    def __post_init__(self):
        if self.kind not in _MISMATCHES:
            raise ConfigError(f'mismatch.kind = "{self.kind}" is not one of {", ".join(_MISMATCHES)}.')
        if self.level not in _LEVELS:
            raise ConfigError(f'mismatch.level = "{self.level}" is not one of {", ".join(_LEVELS)}.')
        if self.high < 1 or (self.low is not None and not 0 <= self.low <= 1):
            raise ConfigError(
                f"mismatch band [{self.low}, {self.high}]: it must contain 1, the weight of a sampler that agrees."
            )
        if self.kind == "off" and (self.level, self.low, self.high) != ("token", None, 2.0):
            raise ConfigError(
                f'mismatch.level = "{self.level}", low = {self.low}, high = {self.high} change nothing with '
                'mismatch.kind = "off". Set kind to "truncate" or "mask", or leave them out.'
            )


def importance(logp: Tensor, old_logp: Tensor, mask: Tensor, ratio: Ratio) -> Tensor:
    """Log of the importance ratio ρ of every token, by the level at which the ratio is taken.

        none            log ρ_t = 0, with the gradient of log π_t: REINFORCE, written as a ratio
        token           log ρ_t = log π_t - log π_old,t                              PPO, GRPO
        sequence        log ρ_t = mean over the answer of the token log-ratios       GSPO (arXiv 2507.18071), eq. 7
        sequence_sum    log ρ_t = their sum: the true ratio of the answers           RLOO as TRL trains it
        sequence_token  value of "sequence", gradient of each token's own log π      GSPO-token, eq. 14

    logp, old_logp, mask: [N, T]. Returns [N, T], 0 (without gradient) outside the mask.

    At logp = old_logp it is 0 everywhere, whatever the level.
    """
    check_shapes("NT", logp, old_logp, mask)
    logp, old_logp = masked(logp, mask), masked(old_logp, mask)
    token = logp - old_logp
    match ratio:
        case "none":
            return logp - logp.detach()
        case "token":
            return token
        case "sequence":
            return masked(_mean(token, mask).expand_as(token), mask)
        case "sequence_sum":
            return masked(token.sum(1, keepdim=True).expand_as(token), mask)
        case "sequence_token":
            return masked(_mean(token, mask).detach() + logp - logp.detach(), mask)
        case _:
            raise ConfigError(f'objective.ratio = "{ratio}" is not one of {", ".join(RATIOS)}.')


def clipped_gain(log_ratio: Tensor, logp: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """The surrogate gain of every token, to be maximised, under a clipping rule.

        min     min(ρ A, clip(ρ, 1-low, 1+high) A), and at least cap · A where A < 0     PPO (arXiv 1707.06347), eq. 7;
                                                                          cap: dual clip (arXiv 1912.09729), eq. 5
        weight  sg[clip(ρ, 1-low, 1+high)] · A · log π                    CISPO (arXiv 2506.13585), eq. 4
        soft    4/τ · σ(τ (ρ - 1)) · A, τ by the sign of A                SAPO (arXiv 2511.20347)
        none    ρ A

    log_ratio: [N, T] from `importance`. logp: [N, T], read by "weight" only: its gradient goes through log π, not
    through ρ. advantage: [N, T]. All finite where masked out (`policy_loss` sees to it). Returns [N, T].

    On-policy (ρ = 1) all four have the gradient A ∇log π; for "soft" since 4 σ'(0) = 1.
    """
    check_shapes("NT", log_ratio, logp, advantage)
    rho = log_ratio.clamp(max=_MAX_LOG_RATIO).exp()
    low, high = clip.edges
    match clip.kind:
        case "min":
            gain = torch.minimum(rho * advantage, rho.clamp(low, high) * advantage)
            if clip.cap is not None:
                gain = torch.where(advantage < 0, torch.maximum(gain, clip.cap * advantage), gain)
            return gain
        case "weight":
            return rho.clamp(low, high).detach() * advantage * logp
        case "soft":
            tau = torch.where(advantage > 0, clip.tau, clip.tau_negative).to(rho.dtype)
            return torch.sigmoid(tau * (rho - 1)) * (4 / tau) * advantage
        case "none":
            return rho * advantage
        case _:
            raise ConfigError(f'clip.kind = "{clip.kind}" is not one of {", ".join(_CLIPS)}.')


def clipped_tokens(log_ratio: Tensor, advantage: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Where the clipping rule acts: (at the lower edge, at the upper edge or cap), each [N, T] and boolean.

    "min" cuts only moves that the advantage asks for: above the upper edge where it is positive, below the lower edge
    where it is negative, and above the cap where it is negative. "weight" limits the weight whatever the advantage.
    """
    rho = log_ratio.detach().exp()
    low, high = clip.edges
    match clip.kind:
        case "min":
            above = (rho > high) & (advantage > 0)
            if clip.cap is not None:
                above = above | ((rho > clip.cap) & (advantage < 0))
            return (rho < low) & (advantage < 0), above
        case "weight":
            return rho < low, rho > high
        case _:
            nowhere = torch.zeros_like(rho, dtype=torch.bool)
            return nowhere, nowhere


def mismatch_weight(old_logp: Tensor, sampled_logp: Tensor, mask: Tensor, mismatch: Mismatch) -> tuple[Tensor, Tensor]:
    """Weight w = π_old / μ of every token, for a sampler μ that is not the learner at the start of the step.

        truncate  w ← clamp(w, low, high)             truncated importance sampling
        mask      w ← w · [low ≤ w ≤ high]

    old_logp, sampled_logp, mask: [N, T]. Returns (w, cut), both [N, T] and without gradient: `cut` is true where the
    band acted; outside the mask w is 1 and cut is false.

    A sampler that agrees gives weight 1 everywhere. Over an answer the product is unbiased and wild, the tokens' own
    weights are biased and tame; the geometric mean only measures the gap.
    """
    check_shapes("NT", old_logp, sampled_logp, mask)
    log_weight = (masked(old_logp, mask) - masked(sampled_logp, mask)).detach()
    match mismatch.level:
        case "sequence":
            log_weight = log_weight.sum(1, keepdim=True).expand_as(log_weight)
        case "geometric":
            log_weight = _mean(log_weight, mask).expand_as(log_weight)
    weight = masked(log_weight, mask).exp()
    low = 0.0 if mismatch.low is None else mismatch.low
    inside = (weight >= low) & (weight <= mismatch.high)
    match mismatch.kind:
        case "truncate":
            return weight.clamp(low, mismatch.high), ~inside
        case "mask":
            return torch.where(inside, weight, 0.0), ~inside
        case _:
            return torch.ones_like(weight), torch.zeros_like(inside)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's masked tokens, [N, 1]; x is already 0 outside the mask."""
    return (x.sum(1) / mask.sum(1).clamp(min=1))[:, None]
