"""Distances between policies: exact, estimated from samples, and what a leash made of them leads to.

Every KL here has its direction written out: kl(policy ‖ reference) is the reverse one, which RLHF charges for. The
estimators are told apart by two things that are easily confused, what their value estimates and what their gradient
does when they are a term of the loss; section 2 of the explainer measures both. Nothing is clamped: a log-ratio large
enough to overflow is a defect upstream that should be seen.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.tokens import check_shapes

Estimator = Literal["k1", "k2", "k3", "abs", "k1+", "k3+"]
ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+")


def _log_pair(logits: Tensor, ref_logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != ref_logits.shape:
        raise ShapeError(f"policy logits {list(logits.shape)} and reference logits {list(ref_logits.shape)} differ: "
                         "an exact KL compares two distributions over the same vocabulary.")  # fmt: skip
    return torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)


def _expected(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """Σ_v weight · log_ratio, where a probability of exactly zero contributes nothing."""
    return (weight * torch.where(weight > 0, log_ratio, 0.0)).sum(-1)


def reverse_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact kl(policy ‖ reference) = Σ_v π_v (log π_v - log π_ref,v). Seeks a mode.

    logits, ref_logits: [..., V]. Returns [...] in nats, differentiable in both.

    π = (.5, .3, .2) and π_ref = (.25, .25, .5) give 0.218012.
    """
    p, q = _log_pair(logits, ref_logits)
    return _expected(p.exp(), p - q)


def forward_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact kl(reference ‖ policy) = Σ_v π_ref,v (log π_ref,v - log π_v). Covers all mass; supervised learning's.

    logits, ref_logits: [..., V]. Returns [...] in nats. The example of `reverse_kl` gives 0.239278.
    """
    p, q = _log_pair(logits, ref_logits)
    return _expected(q.exp(), q - p)


def jensen_shannon(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence: ½ kl(π ‖ m) + ½ kl(π_ref ‖ m) with m = ½ (π + π_ref). Symmetric, at most log 2.

    logits, ref_logits: [..., V]. Returns [...] in nats. The example of `reverse_kl` gives 0.055582.
    """
    p, q = _log_pair(logits, ref_logits)
    m = torch.logaddexp(p, q) - math.log(2)
    return (_expected(p.exp(), p - m) + _expected(q.exp(), q - m)) / 2


def k1(log_ratio: Tensor) -> Tensor:
    """k1 = log π/π_ref at the sampled token.

    log_ratio: log π - log π_ref, any shape; so for all estimators.
    Value: unbiased for kl(policy ‖ reference) on samples of the policy, signed, high variance.
    Gradient as a loss: 0 in expectation. It restrains nothing; put it (detached) into the reward instead.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """k2 = ½ (log π/π_ref)². Schulman 2020.

    Value: biased, never negative, low variance near equality.
    Gradient as a loss: that of kl(policy ‖ reference), on samples of the policy.
    """
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """k3 = π_ref/π - 1 - log π_ref/π. Schulman 2020; the KL term of GRPO.

    Value: unbiased for kl(policy ‖ reference) on samples of the policy, never negative.
    Gradient as a loss: that of kl(reference ‖ policy), the other direction. Multiplied by the importance ratio π/π_old
    with the gradient through both factors (DeepSeek-V3.2) it becomes that of kl(policy ‖ reference).
    """
    return torch.expm1(-log_ratio) + log_ratio


def absolute(log_ratio: Tensor) -> Tensor:
    """|log π/π_ref|. Estimates no KL; a robust distance with gradient sign(log π/π_ref) ∇log π."""
    return log_ratio.abs()


def kl_estimate(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """One of the estimators of kl(policy ‖ reference) by name, per sampled token.

    log_ratio: log π - log π_ref, any shape. "k1+" and "k3+" have the value of k1 and k3 and the gradient of k2 (a
    straight-through trick): an unbiased value with the right direction. Raises ConfigError for another name.
    """
    match estimator:
        case "k1":
            return k1(log_ratio)
        case "k2":
            return k2(log_ratio)
        case "k3":
            return k3(log_ratio)
        case "abs":
            return absolute(log_ratio)
        case "k1+":
            return _with_gradient_of(k1(log_ratio), k2(log_ratio))
        case "k3+":
            return _with_gradient_of(k3(log_ratio), k2(log_ratio))
        case _:
            raise ConfigError(f'kl.estimator = "{estimator}" is not one of {", ".join(ESTIMATORS)}.')


def _with_gradient_of(value: Tensor, slope: Tensor) -> Tensor:
    return value.detach() + slope - slope.detach()


def adaptive_beta(beta: float, kl: float, *, target: float, samples: int, horizon: int) -> float:
    """The KL coefficient for the next step, steered towards a target KL.

        e = clip(KL / target - 1, -0.2, 0.2)        β ← β · (1 + e · samples / horizon)

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

    beta: coefficient of this step. kl: what was measured in it. target: in the same unit as kl; Ziegler's 6 nats are
        summed over a sequence, a target per token is some hundred times smaller.
    samples: episodes of this step. horizon: episodes over which a constant error of 20% changes β by about 20%.

    β = 0.15, target 6, 512 samples, horizon 10,000: a KL of 6.6 gives 0.150768, one of 20 gives 0.151536.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


def tilted(ref_logits: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The policy that KL-regularised reward maximisation ends in: log π* with π* ∝ π_ref · exp(r / β).

        π* = argmax_π  E_π[r] - β kl(π ‖ π_ref)

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 4.

    ref_logits, reward: [..., V], over answers that can be listed. beta > 0. Returns log-probabilities [..., V].

    A constant reward returns the reference.
    """
    if beta <= 0:
        raise ConfigError(f"beta = {beta}: without a positive leash the optimum is the single best answer.")
    if ref_logits.shape != reward.shape:
        raise ShapeError(f"reference logits {list(ref_logits.shape)} and rewards {list(reward.shape)} must have one "
                         "entry per answer each.")  # fmt: skip
    return torch.log_softmax(torch.log_softmax(ref_logits, -1) + reward / beta, -1)


def sequence_kl(kl: Tensor, mask: Tensor) -> Tensor:
    """KL of whole answers by the chain rule: the sum over their tokens.

    kl: [N, T], exact or estimated at every prefix that was visited. mask: [N, T]. Returns [N].
    """
    check_shapes("NT", kl, mask)
    return torch.where(mask, kl, 0.0).sum(1)
