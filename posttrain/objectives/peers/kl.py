"""How other libraries hold KL estimates back. Sections 02 and 14 of the book.

Both clamp the *value*, and with it the gradient of exactly those tokens that strayed furthest: the leash lets go when
the dog runs. Our own `kl` clamps nothing that means anything; a run whose tokens reach a KL of 10 has a defect to find.
"""

from torch import Tensor

from posttrain.objectives.kl import Estimator, k2, kl_estimate, reweighted_k2, with_gradient_of
from posttrain.objectives.tokens import check_shapes, masked


def verl_kl(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """verl's kl_penalty: k3 is held to at most 10, the others are free.

        k3 ← min(k3(r), 10)

    Schulman 2020 for k3. A token that the reference makes 14 times as probable (r < -2.62) has no gradient left. (verl
    clips r to [-20, 20] first, which this limit hides.)

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. estimator: a name as in `kl_estimate`; "k3+" has the held
        value and the whole gradient of k2.
    Returns [...] in nats.

    r = -3 gives 10 with slope 0, where k3 is 16.085537 with slope -19.085537. Section 02.
    """
    if estimator not in ("k3", "k3+"):
        return kl_estimate(log_ratio, estimator)
    held = kl_estimate(log_ratio, "k3").clamp(max=10)
    return held if estimator == "k3" else with_gradient_of(held, k2(log_ratio))


def openrlhf_kl(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """OpenRLHF's compute_approx_kl: every estimator is held to [-10, 10].

        k ← clip(k(r), -10, 10)

    Schulman 2020 for the estimators. k2 loses its gradient beyond |r| = 4.47.

    log_ratio: r = log π(y) - log π_ref(y), any shape [...]. estimator: a name as in `kl_estimate`. Returns [...] in
    nats.

    r = -5 gives 10 for k2, with slope 0, where k2 is 12.5 with slope -5. Section 02.
    """
    return kl_estimate(log_ratio, estimator).clamp(-10, 10)


def openrlhf_unbiased_kl(log_ratio: Tensor, drift: Tensor, estimator: Estimator) -> Tensor:
    """OpenRLHF's compute_approx_kl with its unbiased gradient: a held value, and the gradient of a capped weight.

        sg[clip(k(r), -10, 10)], with the gradient of min(ρ, 10) · ½ r²        ρ = e^drift

    Liu et al. 2025 (arXiv 2510.01555) on the gradient. Right but for the cap on ρ, and for a log that stops at 10.

    log_ratio: r = log π(y) - log π_ref(y); drift: log π(y) - log π_old(y); both of one shape [...]. estimator: a name
        as in `kl_estimate`. Returns [...] in nats.

    r = 2 and drift log 3 give k1 = 2 with slope 6. Section 02.
    """
    return with_gradient_of(openrlhf_kl(log_ratio, estimator), reweighted_k2(log_ratio, drift, cap=10.0))


def verl_masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """verl's masked_mean: the number of tokens plus 1e-8 divides.

        Σ mask_t · x_t / (Σ mask + 1e-8)

    verl_F.masked_mean, for logged numbers. It makes an empty mask 0 instead of NaN, and everything else a little small;
    `token_weights` gives exact means, and zeros for an empty mask.

    values, mask: [N, T]. Returns a scalar. Two tokens of value 1 give 0.999999995. Section 05.
    """
    check_shapes("NT", values, mask)
    return masked(values, mask).sum() / (mask.sum().to(values.dtype) + 1e-8)
