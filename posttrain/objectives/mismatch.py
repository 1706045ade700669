"""What to do where the sampler's probabilities are not the learner's: a weight on the loss, and a band to keep it in.

Three policies meet in one step: μ drew the samples (another engine, another precision, older weights), π_old is the
learner when the step began, π is the learner now. Clipping looks after π/π_old; this file looks after π_old/μ. Section
24 of the explainer measures what goes wrong without it. The alternative, to clip π/μ itself, is `Objective.old`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.divergence import binary_kl, binary_tv
from posttrain.objectives.surrogate import bounded_exp
from posttrain.objectives.tokens import check_shapes, masked

_KINDS = ("off", "truncate", "mask")
_LEVELS = ("token", "sequence", "geometric", "none")
_UNITS = ("same", "token", "sequence", "geometric")
_STATISTICS = ("ratio", "binary_kl", "tv")


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Correction for a sampler whose probabilities differ from the learner's: a detached weight w = π_old / μ."""

    kind: Literal["off", "truncate", "mask"] = "off"
    """truncate: w is cut to the band (TIS). mask: tokens whose statistic lies outside the band lose their loss
    (IcePop, MIS); the others keep w as it is. off: no weight."""
    level: Literal["token", "sequence", "geometric", "none"] = "token"
    """What w is. token: each its own. sequence: the product over the answer. geometric: the geometric mean over the
    answer. none: 1, so that the band only selects."""
    low: float | None = None
    """Lower end of the band. None: none."""
    high: float | None = 2.0
    """Upper end of the band. None: none (decoupled PPO, whose weight is never cut)."""
    statistic: Literal["ratio", "binary_kl", "tv"] = "ratio"
    """What must lie in the band, with "mask": π_old/μ, or a distance between the two policies (see `divergence`)."""
    unit: Literal["same", "token", "sequence", "geometric"] = "same"
    """Over what the statistic is taken, with "mask": each token, the product (of distances: the sum) or the geometric
    mean (of distances: the mean) over the answer. same: as `level`."""

    def __post_init__(self):
        for name, known in (("kind", _KINDS), ("level", _LEVELS), ("statistic", _STATISTICS), ("unit", _UNITS)):
            if getattr(self, name) not in known:
                raise ConfigError(f'mismatch.{name} = "{getattr(self, name)}" is not one of {", ".join(known)}.')
        if self.statistic == "ratio":
            if (self.high is not None and self.high < 1) or (self.low is not None and not 0 <= self.low <= 1):
                raise ConfigError(
                    f"mismatch band [{self.low}, {self.high}]: it must contain 1, the weight of a sampler that agrees."
                )
        elif self.high is None or self.high <= 0 or (self.low is not None and self.low > 0):
            raise ConfigError(
                f'mismatch band [{self.low}, {self.high}] with statistic = "{self.statistic}": a distance is 0 where '
                "the sampler agrees, so the band must contain 0 and end above it. Set high (0.05 is usual), no low."
            )
        told = (self.level, self.low, self.high, self.statistic, self.unit)
        if self.kind == "off" and told != ("token", None, 2.0, "ratio", "same"):
            raise ConfigError(
                f'mismatch.level = "{self.level}", low = {self.low}, high = {self.high}, statistic = '
                f'"{self.statistic}", unit = "{self.unit}" change nothing with mismatch.kind = "off". Set kind to '
                '"truncate" or "mask", or leave them out.'
            )
        if self.kind == "truncate" and (self.statistic, self.unit) != ("ratio", "same"):
            raise ConfigError(
                f'mismatch.statistic = "{self.statistic}", unit = "{self.unit}" with kind = "truncate": only the '
                'weight itself can be cut to a band. Set kind to "mask", or leave them out.'
            )
        if self.level == "none" and (self.kind == "truncate" or self.unit == "same"):
            raise ConfigError(
                f'mismatch.level = "none" with kind = "{self.kind}", unit = "{self.unit}": without a weight there is '
                'only the band. Set kind to "mask" and unit to what the band is read over.'
            )


def mismatch_weight(old_logp: Tensor, sampled_logp: Tensor, mask: Tensor, mismatch: Mismatch) -> tuple[Tensor, Tensor]:
    """Weight w = π_old / μ of every token, for a sampler μ that is not the learner at the start of the step.

        truncate  w ← clamp(w, low, high)                 truncated importance sampling (Yao et al. 2025)
        mask      w ← w · [low ≤ statistic ≤ high]        IcePop (Ling team 2025, arXiv 2510.18855)

    old_logp, sampled_logp, mask: [N, T]. mismatch: the choices; `level` says over what w is taken, `statistic` and
    `unit` what the band of a mask is read from.

    Returns (w, cut), both [N, T] and without gradient: `cut` is true where the band acted; outside the mask w is 1 and
    cut is false. Raises ShapeError if the shapes differ.

    A sampler that agrees gives weight 1 everywhere. Over an answer the product is unbiased and wild, the tokens' own
    weights are biased and tame; the geometric mean only measures the gap. Token ratios 1.1 and 0.9 have the product
    0.99 and the geometric mean 0.995. Section 24.
    """
    check_shapes("NT", old_logp, sampled_logp, mask)
    old_logp, sampled_logp = masked(old_logp, mask).detach(), masked(sampled_logp, mask).detach()
    log_ratio = old_logp - sampled_logp
    weight = torch.ones_like(log_ratio) if mismatch.level == "none" else _ratio(log_ratio, mask, mismatch.level)
    unit = mismatch.level if mismatch.unit == "same" else mismatch.unit
    match mismatch.statistic:
        case "ratio":
            statistic = _ratio(log_ratio, mask, unit)
        case "binary_kl":
            statistic = _over(binary_kl(sampled_logp, old_logp), mask, unit)
        case "tv":
            statistic = _over(binary_tv(sampled_logp, old_logp), mask, unit)
    inside = torch.ones_like(mask, dtype=torch.bool)
    if mismatch.low is not None:
        inside &= (statistic >= mismatch.low) | ~mask
    if mismatch.high is not None:
        inside &= (statistic <= mismatch.high) | ~mask
    match mismatch.kind:
        case "truncate":
            return weight.clamp(0.0 if mismatch.low is None else mismatch.low, mismatch.high), ~inside
        case "mask":
            return torch.where(inside, weight, 0.0), ~inside
        case _:
            return torch.ones_like(weight), torch.zeros_like(inside)


def _ratio(log_ratio: Tensor, mask: Tensor, unit: str) -> Tensor:
    """exp of the log-ratio of a token, of the answer, or of its mean token; 1 outside the mask."""
    return bounded_exp(masked(_over(log_ratio, mask, unit), mask))


def _over(x: Tensor, mask: Tensor, unit: str) -> Tensor:
    """x of each token, or its sum ("sequence") or mean ("geometric") over the answer; x is 0 outside the mask."""
    if unit == "token":
        return x
    total = x.sum(1, keepdim=True)
    if unit == "geometric":
        total = total / mask.sum(1, keepdim=True).clamp(min=1)
    return total.expand_as(x)
