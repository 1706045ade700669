"""Importance ratios and what keeps them in check: clipping rules.

A policy-gradient step on samples that are a little stale weighs each token by π/π_old. This file answers two questions
about that ratio: over what is it taken (`importance`), and how far may it move a token (`clipped_gain`). Sections 13
and 24 of the explainer tell the story. The choices are values of a record (`Clip`), so that a method is a row of them;
nothing is averaged here. Trust regions that drop tokens instead are in `gates`, a sampler that was not even π_old is
the matter of `mismatch`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked

Ratio = Literal["none", "token", "sequence", "sequence_sum", "sequence_token"]
RATIOS = ("none", "token", "sequence", "sequence_sum", "sequence_token")
_READ = {
    "min": ("low", "high", "cap"),
    "weight": ("low", "high"),
    "soft": ("tau", "tau_negative"),
    "geometric": ("low", "high"),
    "gamma": ("k", "k_negative", "lam", "lam_negative"),
    "log": (),
    "none": (),
}
"""Kind of clip -> the fields it reads."""
MAX_LOG_RATIO = 40.0
"""A product of two such ratios (a mismatch weight and a ratio, a ratio and k3) still fits float32; beyond, 0 · inf in
the backward would make a clipped token's gradient NaN instead of 0."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How far the importance ratio ρ may move before its gradient is cut."""

    kind: Literal["min", "weight", "soft", "geometric", "gamma", "log", "none"] = "min"
    """min: PPO's pessimistic minimum of the clipped and unclipped surrogate. weight: CISPO's clipped, detached weight
    on log π. soft: SAPO's sigmoid gate. geometric: GMPO's geometric mean of clipped token ratios. gamma: VESPO's
    smooth, detached weight on log π. log: log π without any ratio, as REINFORCE is written. none: ρ as it is."""
    low: float | None = 0.2
    """Lower edge is 1 - low; None, or 1 and more: no lower edge (R1 prints 10; CISPO has none). With "geometric" the
    edges are of log ρ: -low and high."""
    high: float = 0.2
    """Upper edge is 1 + high; DAPO's clip-higher uses 0.28."""
    cap: float | None = None
    """Where the advantage is negative the ratio counts as at most this: dual clip (PPO-style codes use 3), which is the
    same as INTELLECT-2's two-sided clip (4) as long as the cap is not below 1 + high. None: no cap. Only with "min"."""
    tau: float = 1.0
    """Steepness of the soft gate where the advantage is positive. Only with "soft"."""
    tau_negative: float = 1.05
    """Steepness of the soft gate where the advantage is negative. Only with "soft"."""
    k: float = 2.0
    """Power of ρ in the weight ρ^k · exp(λ (1 - ρ)) where the advantage is not negative. Only with "gamma"."""
    k_negative: float = 3.0
    """The same where the advantage is negative."""
    lam: float = 3.0
    """λ of that weight where the advantage is not negative."""
    lam_negative: float = 2.0
    """The same where the advantage is negative."""

    def __post_init__(self):
        if self.kind not in _READ:
            raise ConfigError(f'clip.kind = "{self.kind}" is not one of {", ".join(_READ)}.')
        if self.high <= 0:
            raise ConfigError(
                f"clip.high = {self.high}: the upper edge is 1 + high, so high must be positive (PPO uses 0.2, "
                "DAPO 0.28)."
            )
        if self.low is not None and self.low < 0:
            raise ConfigError(f"clip.low = {self.low}: the lower edge is 1 - low, so low must not be negative.")
        if self.cap is not None and self.cap <= 1:
            raise ConfigError(f"clip.cap = {self.cap}: a cap at or below ratio 1 cuts on-policy samples; 3 is usual.")
        for name in ("tau", "tau_negative", "k", "k_negative", "lam", "lam_negative"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"clip.{name} = {getattr(self, name)}: must be positive.")
        for name, field in type(self).__dataclass_fields__.items():
            if name != "kind" and name not in _READ[self.kind] and getattr(self, name) != field.default:
                raise ConfigError(
                    f'clip.{name} = {getattr(self, name)} changes nothing with clip.kind = "{self.kind}"; leave it at '
                    f"{field.default}."
                )

    @property
    def edges(self) -> tuple[float, float]:
        """The band of ratios, (1 - low, 1 + high); the lower edge is 0 where there is none."""
        return (0.0 if self.low is None else max(0.0, 1 - self.low)), 1 + self.high


class Clipped(NamedTuple):
    """Where a clipping rule acts, each [N, T] and boolean."""

    low: Tensor
    """At the lower edge: held from becoming rarer."""
    high: Tensor
    """At the upper edge: held from becoming likelier."""
    cap: Tensor
    """At the cap: of negative advantage, and already likelier than it may count."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """A ratio from its logarithm, which stays finite.

        ρ = exp(min(log ρ, 40))

    A bound of this library's own: exp(89) overflows float32, two factors of exp(45) do, and the slope of what is
    clipped would be 0 · ∞.

    log_ratio: any shape [...]. Returns that shape, with gradient 0 beyond the bound.

    log ρ = 1e4 gives 2.35e17. Section 13.
    """
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def importance(logp: Tensor, old_logp: Tensor, mask: Tensor, ratio: Ratio) -> Tensor:
    """Log of the importance ratio ρ of every token, by the level at which the ratio is taken.

        none            log ρ_t = 0, with the gradient of log π_t: REINFORCE, written as a ratio
        token           log ρ_t = log π_t - log π_old,t                              PPO, GRPO
        sequence        log ρ_t = mean over the answer of the token log-ratios       GSPO (arXiv 2507.18071), eq. 7
        sequence_sum    log ρ_t = their sum: the true ratio of the answers           RLOO as TRL trains it
        sequence_token  value of "sequence", gradient of each token's own log π      GSPO-token, eq. 14

    logp, old_logp, mask: [N, T]. ratio: the level.

    Returns [N, T], 0 (without gradient) outside the mask. Raises ConfigError for an unknown level, ShapeError if the
    shapes differ.

    At logp = old_logp it is 0 everywhere, whatever the level. Sections 13 and 24.
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


def clipped_gain(log_ratio: Tensor, logp: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Tensor:
    """The surrogate gain of every token, to be maximised, under a clipping rule.

        min        min(ρ A, clip(ρ, 1-low, 1+high) A), and at least cap · A where A < 0
                                               PPO (arXiv 1707.06347), eq. 7; cap: dual clip (arXiv 1912.09729), eq. 5
        weight     sg[clip(ρ, 1-low, 1+high)] · A · log π              CISPO (arXiv 2506.13585), eq. 4
        soft       4/τ · σ(τ (ρ - 1)) · A, τ by the sign of A          SAPO (arXiv 2511.20347)
        geometric  exp(mean_t c_t) · A, c_t = min(log ρ_t, high) if A > 0, else max(log ρ_t, -low)
                                                                       GMPO (arXiv 2507.20673)
        gamma      sg[ρ^k · exp(λ (1 - ρ))] · A · log π                VESPO (arXiv 2602.10693), ρ of the whole answer
        log        A · log π                                           REINFORCE, GPG (arXiv 2504.02546)
        none       ρ A

    log_ratio: [N, T] from `importance`. logp: [N, T], read by "weight", "gamma" and "log" only: their gradient goes
    through log π, not through ρ. advantage, mask: [N, T]. All finite where masked out (`policy_loss` sees to it).

    Returns [N, T]. Raises ShapeError if the shapes differ.

    On-policy (ρ = 1) all have the gradient A ∇log π ("geometric" spreads it evenly over the answer); for "soft" since
    4 σ'(0) = 1. With ε = 0.2: A = 1 and ρ = 1.3 gain 1.2 with slope 0; A = -1 and ρ = 5 gain -5, with cap 3 only -3.
    Sections 13 and 24.
    """
    check_shapes("NT", log_ratio, logp, advantage, mask)
    rho = bounded_exp(log_ratio)
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
            tau = _choose(advantage > 0, clip.tau, clip.tau_negative, rho)
            return torch.sigmoid(tau * (rho - 1)) * (4 / tau) * advantage
        case "geometric":
            down = log_ratio if clip.low is None else log_ratio.clamp(min=-clip.low)
            held = torch.where(advantage > 0, log_ratio.clamp(max=clip.high), down)
            return bounded_exp(_mean(masked(held, mask), mask)) * advantage
        case "gamma":
            return gamma_weight(log_ratio, advantage, clip) * advantage * logp
        case "log":
            return advantage * logp
        case "none":
            return rho * advantage
        case _:
            raise ConfigError(f'clip.kind = "{clip.kind}" is not one of {", ".join(_READ)}.')


def gamma_weight(log_ratio: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """VESPO's weight: a bump with its value 1 at ratio 1, falling to 0 on both sides.

        φ(ρ) = ρ^k · exp(λ (1 - ρ)),  k and λ by the sign of A

    VESPO 2026 (arXiv 2602.10693); ρ is the ratio of the whole answer (`importance` with "sequence_sum").

    log_ratio, advantage: [N, T]. clip: a `Clip` of kind "gamma", with k and λ.

    Returns [N, T], without gradient. Raises ShapeError if the shapes differ.

    With the paper's values φ(2) = 0.199 where A ≥ 0 and 1.083 where A < 0. Section 24.
    """
    check_shapes("NT", log_ratio, advantage)
    log_ratio = log_ratio.detach()
    k = _choose(advantage < 0, clip.k_negative, clip.k, log_ratio)
    lam = _choose(advantage < 0, clip.lam_negative, clip.lam, log_ratio)
    return (k * log_ratio - lam * torch.expm1(log_ratio)).exp()


def clipped_tokens(log_ratio: Tensor, advantage: Tensor, clip: Clip) -> Clipped:
    """Where the clipping rule acts.

        min        low: ρ < 1-low and A < 0     high: ρ > 1+high and A > 0     cap: ρ > cap and A < 0
        geometric  low: log ρ < -low and A < 0  high: log ρ > high and A > 0
        weight     low: ρ < 1-low               high: ρ > 1+high

    "min" and "geometric" cut only moves that the advantage asks for (PPO, arXiv 1707.06347, figure 1); "weight" limits
    the weight whatever the advantage.

    log_ratio: [N, T] from `importance`. advantage: [N, T]. clip: the rule.

    Returns three boolean [N, T]; all false for the rules without an edge. Raises ShapeError if the shapes differ.

    ρ = 1.3 is clipped by ε = 0.2 if A = 1, and not if A = -1. Section 13.
    """
    check_shapes("NT", log_ratio, advantage)
    rho = log_ratio.exp()
    low, high = clip.edges
    nowhere = torch.zeros_like(rho, dtype=torch.bool)
    match clip.kind:
        case "min":
            cap = nowhere if clip.cap is None else (rho > clip.cap) & (advantage < 0)
            return Clipped((rho < low) & (advantage < 0), (rho > high) & (advantage > 0), cap)
        case "geometric":
            below = nowhere if clip.low is None else (log_ratio < -clip.low) & (advantage < 0)
            return Clipped(below, (log_ratio > clip.high) & (advantage > 0), nowhere)
        case "weight":
            return Clipped(rho < low, rho > high, nowhere)
        case _:
            return Clipped(nowhere, nowhere, nowhere)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's masked tokens, [N, 1]; x is already 0 outside the mask."""
    return (x.sum(1) / mask.sum(1).clamp(min=1))[:, None]


def _choose(where: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """One of two numbers per entry, in the dtype of `like` (numbers alone would come in torch's default)."""
    return torch.where(where, torch.as_tensor(yes, dtype=like.dtype), torch.as_tensor(no, dtype=like.dtype))
