"""Steps measured by how far the policy moves, not the parameters: the tools of natural gradients and TRPO.

Everything works on one flat vector of parameters and on functions that the caller supplies, so it can be checked
against dense linear algebra on a small problem. Gains are maximised. Products with the Fisher matrix never form it.
These are the only formulas that differentiate by themselves, with `torch.autograd.grad`: no gradient is left on any
tensor. Section 13 of the explainer tells the story; the loop is in `posttrain.control`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes

Product = Callable[[Tensor], Tensor]
"""v [D] -> F v [D]."""


class Accepted(NamedTuple):
    """What `line_search` settles on."""

    theta: Tensor
    """[D] the new parameters; the old ones where every trial was refused."""
    trial: int | None
    """Which trial was accepted, 0 for the full step; None where none was."""
    gain: float
    """Improvement of the surrogate, 0 where nothing was accepted."""
    kl: float
    """kl(old ‖ new) there, 0 where nothing was accepted."""


def fisher_product(kl: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor, *, damping: float = 0.0) -> Tensor:
    """Fisher matrix times a vector, as the second derivative of a KL.

        F v = ∇_θ [ (∇_θ kl(θ))ᵀ v ] + κ v

    Schulman et al. 2015 (arXiv 1502.05477), appendix C.

    kl: parameters [D] -> a scalar, the weighted mean over states of the exact kl(old ‖ new), old being the policy at
        `theta` without gradient. Its own gradient is 0 there; its curvature is the Fisher matrix. Where only samples
        are known, take `score_product`.
    theta: [D], where the product is taken. v: [D]. damping: κ, not negative, added to the diagonal; 0.1 is usual.

    Returns [D], without gradient.

    For logits θ of one softmax p: F = diag(p) - p pᵀ. Section 13.
    """
    check_shapes("D", theta, v)
    with torch.enable_grad():
        at = theta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(kl(at), at, create_graph=True)
        (product,) = torch.autograd.grad(slope @ v, at)
    return product + damping * v.detach()


def score_product(
    logp: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor, weights: Tensor, *, damping: float = 0.0
) -> Tensor:
    """Fisher matrix times a vector, from the log-probabilities of what was sampled.

        F v = Σ_i w_i g_i (g_iᵀ v) + κ v,   g_i = ∇_θ log π(a_i | s_i)

    Kakade 2001. Where the actions were drawn from the policy at θ its expectation is that of `fisher_product`; with
    fewer samples than parameters F is singular and needs damping.

    logp: parameters [D] -> [N], log-probabilities of the sampled actions. theta, v: [D].
    weights: [N], not negative, adding up to 1 for a mean. damping: κ.

    Returns [D], without gradient.

    With one sample of weight 1, F v is g (g · v). Section 13.
    """
    check_shapes("D", theta, v)
    with torch.enable_grad():
        at = theta.detach().requires_grad_()
        sampled = logp(at)
        check_shapes("N", sampled, weights)
        probe = weights.detach().requires_grad_()
        (pulled,) = torch.autograd.grad(sampled, at, probe, create_graph=True)  # Jᵀ u is linear in u,
        (along,) = torch.autograd.grad(pulled, probe, v)  # so its slope along v is J v, wherever u is
        (product,) = torch.autograd.grad(sampled, at, weights * along)
    return product + damping * v.detach()


def conjugate_gradient(product: Product, b: Tensor, *, iterations: int = 10, tolerance: float = 1e-10) -> Tensor:
    """x with F x = b, from products with F alone.

        α = rᵀr / pᵀFp    x ← x + α p    r' = r - α F p    p ← r' + (r'ᵀr' / rᵀr) p;   x = 0, r = p = b at first

    Hestenes and Stiefel 1952; Schulman et al. 2015 (arXiv 1502.05477), appendix C, use 10 iterations.

    product: v -> F v, symmetric and positive; where it is only semi-definite, b must lie in its range. b: [D].
    iterations: at most. tolerance: stop where rᵀr falls to this share of bᵀb. Baselines and Spinning Up compare with
        1e-10 itself, so that a small gradient gets no step.

    Returns [D]. Stops early where pᵀFp is not positive, which noise in F brings about: raise the damping.

    Exact after as many iterations as F has different eigenvalues. Section 13.
    """
    check_shapes("D", b)
    if iterations < 1:
        raise ConfigError(f"iterations = {iterations}: conjugate gradient starts at 0 and needs one at least.")
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = whole = r @ r
    for _ in range(iterations):
        if not rr > tolerance * whole:
            break
        fp = product(p)
        curvature = p @ fp
        if not curvature > 0:
            break
        alpha = rr / curvature
        x, r = x + alpha * p, r - alpha * fp
        rr, before = r @ r, rr
        p = r + rr / before * p
    return x


def step_size(direction: Tensor, curved: Tensor, *, delta: float) -> Tensor:
    """How far one may go along a direction until the KL, to second order, is δ.

        η = √( 2δ / xᵀ F x ),   so that ½ (ηx)ᵀ F (ηx) = δ

    Schulman et al. 2015 (arXiv 1502.05477), appendix C.

    direction: x, [D]. curved: F x, [D], with the same damping as in the solve. delta: δ in nats, positive; 0.01 is
        usual.

    Returns a scalar; 0 where xᵀFx is not positive, since nothing is then known about the KL.

    With F = 1 and x = 2, δ = 0.02 gives 0.1. Section 13.
    """
    check_shapes("D", direction, curved)
    if not delta > 0:
        raise ConfigError(f"delta = {delta}: the trust region needs a positive radius; 0.01 nats is usual.")
    curvature = direction @ curved
    return math.sqrt(2 * delta) * torch.where(curvature > 0, curvature, torch.inf).rsqrt()


def natural_step(
    gradient: Tensor, product: Product, *, delta: float, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """The step that raises the gain most for a given KL.

        Δ = √( 2δ / xᵀ F x ) · x,   F x = g

    Natural policy gradient: Kakade 2001; TRPO before its line search: Schulman et al. 2015 (arXiv 1502.05477).

    gradient: g, [D], of the gain (to be maximised). product: v -> F v. delta: δ in nats. iterations, tolerance: of
        `conjugate_gradient`.

    Returns [D], to be added to the parameters; 0 where g is 0.

    Softmax over three actions at uniform, advantages (1, 0, -1), δ = 0.01: (0.173205, 0, -0.173205). Section 13.
    """
    direction = conjugate_gradient(product, gradient, iterations=iterations, tolerance=tolerance)
    return step_size(direction, product(direction), delta=delta) * direction


def line_search(
    evaluate: Callable[[Tensor], tuple[float, float]],
    theta: Tensor,
    step: Tensor,
    *,
    delta: float,
    shrink: float = 0.8,
    tries: int = 10,
    slack: float = 1.0,
) -> Accepted:
    """The longest of a row of ever shorter steps that improves the gain and stays inside the trust region.

        θ_j = θ + c^j Δ,  j = 0, 1, ...;   the first with  L(θ_j) ≥ L(θ)  and  kl(θ ‖ θ_j) ≤ slack · δ

    Schulman et al. 2015 (arXiv 1502.05477), appendix C. The step was right for a quadratic KL and a linear gain; here
    both are looked at as they are.

    evaluate: parameters [D] -> (gain minus the gain at `theta`, kl(old ‖ new)), two numbers.
    theta, step: [D]. delta: δ in nats. shrink: c, between 0 and 1; 0.8 in Spinning Up, 0.5 in Baselines.
    tries: at most. slack: 1 in Spinning Up, 1.5 in Baselines.

    Returns what was accepted; theta itself where nothing was, or where gain or KL are NaN throughout.

    A step of twice the radius on an exactly quadratic KL is accepted at c^j ≤ 1/2. Section 13.
    """
    check_shapes("D", theta, step)
    if not 0 < shrink < 1 or tries < 1:
        raise ConfigError(f"shrink = {shrink}, tries = {tries}: shrink lies between 0 and 1, tries at least at 1.")
    for trial in range(tries):
        candidate = theta + shrink**trial * step
        gain, kl = (float(x) for x in evaluate(candidate))
        if gain >= 0 and kl <= slack * delta:  # both false for NaN
            return Accepted(candidate, trial, gain, kl)
    return Accepted(theta, None, 0.0, 0.0)
