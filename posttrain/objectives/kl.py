"""Distances between policies: exact, estimated from samples, and what a leash made of them leads to.

Every KL here has its direction written out: kl(policy ‖ reference) is the reverse one, which RLHF charges for. The
estimators are told apart by two things that are easily confused, what their value estimates and what their gradient
does when they are a term of the loss; section 02 of the book measures both. With y sampled from the policy, r the
log-ratio log π/π_ref at y, and every gradient taken through log π(y):

    term of the loss        E[value]                     E[gradient]
    k1 = r                  kl(π ‖ π_ref)                0
    k2 = ½ r²               biased                       ∇ kl(π ‖ π_ref)
    k3 = e^-r - 1 + r       kl(π ‖ π_ref)                ∇ kl(π_ref ‖ π), the other direction
    |r|                     E|r|, no KL                  ∇ of no divergence with a name
    k1+, k3+                kl(π ‖ π_ref)                ∇ kl(π ‖ π_ref)
    sg[r] · log π           (a policy-gradient loss)     ∇ kl(π ‖ π_ref): KL in the reward

All of them look at the tokens of one position; what a token does to later states only the reward form sees (Tang and
Munos 2025, arXiv 2506.09477). Nothing is clamped but exponents, far beyond any log-ratio that means something: a
defect upstream shows as an absurd number, not as NaN.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.tokens import check_shapes, masked

Estimator = Literal["k1", "k2", "k3", "abs", "k1+", "k3+"]
ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+")
_FORBIDDEN = -1e30
"""For the -inf of a token that may not be: the same probability, and logaddexp of two of them still has a gradient."""
_MAX_EXPONENT = 40.0
"""e^40 squared still fits float32; without a limit 0 · inf in a backward would be NaN."""


def _log_pair(logits: Tensor, ref_logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != ref_logits.shape:
        raise ShapeError(f"policy logits {list(logits.shape)} and reference logits {list(ref_logits.shape)} differ: "
                         "an exact KL compares two distributions over the same vocabulary.")  # fmt: skip
    return torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)


def _expected(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """Σ_v weight · log_ratio, where a probability of exactly zero contributes nothing."""
    return (weight * masked(log_ratio, weight > 0)).sum(-1)


def reverse_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL of the policy from the reference. Seeks a mode: mass where the reference has none is what it charges.

        kl(π ‖ π_ref) = Σ_v π_v (log π_v - log π_ref,v)

    Kullback and Leibler 1951.

    logits, ref_logits: [..., V]; log-probabilities are logits too. Returns [...] in nats, differentiable in both;
    infinite where the reference forbids what the policy does. ShapeError if the shapes differ.

    π = (.5, .3, .2) and π_ref = (.25, .25, .5) give 0.218012. Section 02.
    """
    p, q = _log_pair(logits, ref_logits)
    return _expected(p.exp(), p - q)


def forward_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL of the reference from the policy. Covers all mass; what supervised learning minimises.

        kl(π_ref ‖ π) = Σ_v π_ref,v (log π_ref,v - log π_v)

    Kullback and Leibler 1951.

    logits, ref_logits: [..., V]. Returns [...] in nats, differentiable in both; infinite where the policy forbids what
    the reference does. ShapeError if the shapes differ.

    The example of `reverse_kl` gives 0.239278. Section 02.
    """
    p, q = _log_pair(logits, ref_logits)
    return _expected(q.exp(), q - p)


def jensen_shannon(logits: Tensor, ref_logits: Tensor, beta: float = 0.5) -> Tensor:
    """Jensen-Shannon divergence: finite, at most log 2, and symmetric at β = 1/2.

        JS_β = β kl(π_ref ‖ m) + (1 - β) kl(π ‖ m)        m = β π_ref + (1 - β) π

    Lin 1991; with a teacher as the reference, GKD: Agarwal et al. 2024 (arXiv 2306.13649).

    logits, ref_logits: [..., V]. beta: the reference's share of the mixture, in (0, 1), else ConfigError.
    Returns [...] in nats, differentiable in both. ShapeError if the shapes differ.

    The example of `reverse_kl` gives 0.055582. JS_β / β tends to kl(π_ref ‖ π) as β → 0, and JS_β / (1 - β) to
    kl(π ‖ π_ref) as β → 1. Section 02.
    """
    if not 0 < beta < 1:
        raise ConfigError(f"beta = {beta}: the mixture needs a share of both, between 0 and 1. At the ends JS is 0.")
    p, q = (x.clamp(min=_FORBIDDEN) for x in _log_pair(logits, ref_logits))
    m = torch.logaddexp(p + math.log1p(-beta), q + math.log(beta))
    return beta * _expected(q.exp(), q - m) + (1 - beta) * _expected(p.exp(), p - m)


def k1(log_ratio: Tensor) -> Tensor:
    """The log-ratio itself as an estimate of the KL.

        k1 = r = log π(y) - log π_ref(y)

    Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html).

    log_ratio: r, any shape [...]. Returns [...] in nats.

    Value: unbiased for kl(policy ‖ reference) on samples of the policy; signed, of high variance.
    Gradient as a loss: E[∇ log π] = 0. It restrains nothing; put it (detached) into the reward instead.

    π/π_ref = 2 gives 0.693147. Section 02.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio.

        k2 = ½ r²

    Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html).

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. Returns [...] in nats.

    Value: biased, never negative, of low variance near equality.
    Gradient as a loss: E[r ∇ log π] = ∇ kl(policy ‖ reference), on samples of the policy.

    π/π_ref = 2 gives 0.240227. Section 02.
    """
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """The log-ratio plus a term of mean zero that makes it never negative; the KL term of GRPO.

        k3 = e^-r - 1 + r

    Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html); Shao et al. 2024
    (arXiv 2402.03300), eq. 4.

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. Returns [...] in nats; below r = -40 it is constant.

    Value: unbiased for kl(policy ‖ reference) on samples of the policy, never negative; of low variance near equality,
    of huge variance where the reference prefers what the policy rarely says.
    Gradient as a loss: E[(1 - e^-r) ∇ log π] = ∇ kl(reference ‖ policy), the other direction. `reweighted_k3` repairs
    it.

    π/π_ref = 2 gives 0.193147. Section 02.
    """
    log_ratio = log_ratio.clamp(min=-_MAX_EXPONENT)
    return torch.expm1(-log_ratio) + log_ratio


def absolute(log_ratio: Tensor) -> Tensor:
    """The log-ratio without its sign. Estimates no KL; a robust distance.

        |r| = |log π(y) - log π_ref(y)|

    verl's `abs`; no paper argues for it.

    log_ratio: r, any shape [...]. Returns [...] in nats.

    Value: E|r|, at least as large as the KL. Gradient as a loss: E[sign(r) ∇ log π]: every token pulls with the same
    force, however far it strayed.

    π/π_ref = 1/2 and 2 both give 0.693147. Section 02.
    """
    return log_ratio.abs()


def kl_estimate(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """One of the estimators of kl(policy ‖ reference) by name, per sampled token.

        k1, k2, k3, abs    as the functions of these names
        k1+, k3+           sg[k1] or sg[k3], plus k2 - sg[k2]

    Schulman 2020; the straight-through forms are verl's, argued for by Tang and Munos 2025 (arXiv 2506.09477).

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. Returns [...] in nats. ConfigError for another name.

    "k1+" and "k3+" have the value of k1 and k3, which is unbiased, and the gradient of k2, which is that of
    kl(policy ‖ reference): the number in the log is the number that the optimizer lowers.

    π/π_ref = 2: k3 and k3+ are both 0.193147, with slopes 1/2 and 0.693147 in log π. Section 02.
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
            return with_gradient_of(k1(log_ratio), k2(log_ratio))
        case "k3+":
            return with_gradient_of(k3(log_ratio), k2(log_ratio))
        case _:
            raise ConfigError(f'kl.estimator = "{estimator}" is not one of {", ".join(ESTIMATORS)}.')


def with_gradient_of(value: Tensor, slope: Tensor) -> Tensor:
    """A straight-through estimate: the value of one expression, the gradient of another.

        sg[value] + slope - sg[slope]

    Bengio et al. 2013 (arXiv 1308.3432).

    value, slope: of one shape [...]. Returns [...]; no gradient reaches `value`.

    with_gradient_of(k1, k2) at log-ratio -2 is -2, with slope -2. Section 02.
    """
    return value.detach() + slope - slope.detach()


def reweighted_k2(log_ratio: Tensor, drift: Tensor, *, cap: float | None = None) -> Tensor:
    """k2 on samples of an older policy, weighted back to the present one.

        sg[min(ρ, cap)] · ½ r²        ρ = π(y) / π_old(y) = e^drift

    OpenRLHF's unbiased gradient (with cap 10); Liu et al. 2025 (arXiv 2510.01555) on why.

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. drift: log π(y) - log π_old(y), [...], where π_old is who
        sampled y; no gradient flows to it.
    cap: largest weight, which trades bias for variance. None: none.
    Returns [...] in nats.

    Value: that of k2, biased. Gradient as a loss, without a cap: E_old[ρ r ∇ log π] = ∇ kl(policy ‖ reference).
    `with_gradient_of(kl_estimate(...), reweighted_k2(...))` reports an estimator and has this gradient.

    On-policy (drift 0) it is k2. π twice π_old and π_ref: 2 · 0.240227. Section 02.
    """
    weight = _ratio(drift.detach())
    return (weight if cap is None else weight.clamp(max=cap)) * k2(log_ratio)


def reweighted_k3(log_ratio: Tensor, drift: Tensor) -> Tensor:
    """k3 times the importance ratio, with the gradient through both factors.

        ρ · (e^-r - 1 + r)        ρ = π(y) / π_old(y) = e^drift

    DeepSeek-AI 2025, DeepSeek-V3.2 (arXiv 2512.02556), eq. 7.

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. drift: log π(y) - log π_old(y), [...], where π_old is who
        sampled y; on-policy log π - sg[log π], so that the ratio is 1 and still has a gradient.
    Returns [...] in nats.

    Value: unbiased for kl(policy ‖ reference) on samples of π_old, never negative.
    Gradient as a loss: E_old[ρ r ∇ log π] = ∇ kl(policy ‖ reference); detach the ratio, and it is wrong again.

    The weights cancel where k3 explodes: ρ e^-r = π_ref / π_old. Section 02.
    """
    return _ratio(drift) * k3(log_ratio)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=_MAX_EXPONENT).exp()


def adaptive_beta(beta: float, kl: float, *, target: float, samples: int, horizon: int) -> float:
    """The KL coefficient for the next step, steered towards a target KL.

        e = clip(KL / target - 1, -0.2, 0.2)        β ← β · (1 + e · samples / horizon)

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

    beta: coefficient of this step. kl: what was measured in it, a number. target: in the same unit as kl; Ziegler's 6
        nats are summed over a sequence, a target per token is some hundred times smaller.
    samples: episodes of this step. horizon: episodes over which a constant error of 20% changes β by about 20%.
    Returns a number. A fixed coefficient is this without the call.

    β = 0.15, target 6, 512 samples, horizon 10,000: a KL of 6.6 gives 0.150768, one of 20 gives 0.151536. Section 14.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


def doubling_beta(beta: float, kl: float, *, target: float) -> float:
    """The coefficient of PPO's penalised surrogate for the next step, doubled or halved to hold a target KL.

        β ← β / 2 if KL < target / 1.5,    2 β if KL > 1.5 · target,    else β

    Schulman et al. 2017 (arXiv 1707.06347), section 4.

    beta: coefficient of this step. kl: KL between the policy before and after it, a number. target: in kl's unit.
    Returns a number. The rule forgets its start within a few steps, so the first β hardly matters.

    β = 1, target 0.01: a KL of 0.02 gives 2, of 0.005 gives 0.5, of 0.012 gives 1. Section 13.
    """
    if kl < target / 1.5:
        return beta / 2
    return 2 * beta if kl > 1.5 * target else beta


def tilted(ref_logits: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The policy that KL-regularised reward maximisation ends in.

        π* = argmax_π  E_π[r] - β kl(π ‖ π_ref)        π* ∝ π_ref · exp(r / β)

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 4.

    ref_logits, reward: [..., V], over answers that can be listed. beta: strength of the leash, > 0, else ConfigError.
    Returns log-probabilities log π* [..., V].

    A constant reward returns the reference, and what the reference never says stays unsaid whatever its reward.
    π_ref = (.4, .3, .2, .1), r = (0, 1, 2, 3), β = 1 give π* = (.0851, .1734, .3143, .4272). Section 01.
    """
    if beta <= 0:
        raise ConfigError(f"beta = {beta}: without a positive leash the optimum is the single best answer.")
    if ref_logits.shape != reward.shape:
        raise ShapeError(f"reference logits {list(ref_logits.shape)} and rewards {list(reward.shape)} must have one "
                         "entry per answer each.")  # fmt: skip
    return torch.log_softmax(torch.log_softmax(ref_logits, -1) + reward / beta, -1)


class Tilt(NamedTuple):
    """What samples of the reference say about the policy that a leash ends in."""

    weight: Tensor
    """[..., N], adding up to 1."""
    reward: Tensor
    """[...] expected reward under it."""
    kl: Tensor
    """[...] its distance from the reference, in nats."""
    effective: Tensor
    """[...] how many equally weighted samples would say as much; below some thirty the other numbers say little."""


def tilted_samples(reward: Tensor, beta: float, count: Tensor | None = None) -> Tilt:
    """`tilted` where nobody can list all answers: samples of the reference, weighted.

        w_i = n_i exp(r_i / β) / Σ_j n_j exp(r_j / β)        E[r] = Σ w r        kl = Σ w log (w / n) + log Σ n
        effective sample size: 1 / Σ (w² / n)

    Self-normalised importance sampling; the effective size is that of Kong 1992.

    reward: [..., N] of samples of the reference. beta: strength of the leash, > 0, else ConfigError.
    count: [..., N] how often each was sampled, > 0, where equal ones are written once; None: once each.
    Returns a Tilt. Its kl is at most log Σ n: samples cannot show a policy that is farther away than that.

    Rewards 0 and log 3, β = 1: weights 1/4 and 3/4, reward 0.823959, kl 0.130812, effective size 1.6. Section 14.
    """
    if beta <= 0:
        raise ConfigError(f"beta = {beta}: without a positive leash the optimum is the single best answer.")
    count = torch.ones_like(reward) if count is None else count
    if count.shape != reward.shape:
        raise ShapeError(f"{list(reward.shape)} rewards and {list(count.shape)} counts must have one entry per sample.")
    log_weight = torch.log_softmax(count.log() + reward / beta, -1)
    weight = log_weight.exp()
    log_ratio = log_weight - count.log() + count.sum(-1, keepdim=True).log()
    return Tilt(weight, (weight * reward).sum(-1), _expected(weight, log_ratio), 1 / (weight.square() / count).sum(-1))


def sequence_kl(kl: Tensor, mask: Tensor) -> Tensor:
    """KL of whole answers by the chain rule.

        kl(π(y|x) ‖ π_ref(y|x)) = E_y Σ_t mask_t · kl(π(· | x, y_<t) ‖ π_ref(· | x, y_<t))

    kl: [N, T] in nats, exact or estimated at every prefix that was visited. mask: [N, T].
    Returns [N]: one sample each of the expectation over y drawn from the policy.

    Two tokens with 0.5 nats each give 1. Section 02.
    """
    check_shapes("NT", kl, mask)
    return masked(kl, mask).sum(1)
