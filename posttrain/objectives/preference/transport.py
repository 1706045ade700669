"""Alignment via optimal transport: chosen answers as a crowd should beat rejected answers as a crowd.

Both losses sort over the batch, so a row's loss depends on the others: give the whole optimizer step at once (the
learner's coupled path does). Section 17 of the explainer shows what the sorting changes.
"""

from torch import Tensor

from posttrain.objectives.preference._pair import PerPair, logistic, scaled_gap


def aot(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, PerPair]:
    """AOT, paired: the k-th smallest gap of the policy against the k-th smallest gap of the reference.

        L_(k) = ℓ( β (a_(k) - b_(k)) )        a = log π(y_w) - log π(y_l),  b = log π_ref(y_w) - log π_ref(y_l)

    Melnyk et al. 2024 (arXiv 2406.05882), section 3, with ℓ(z) = -(1 - ε) log σ(z) - ε log σ(-z).

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and metrics as `dpo` (in the order given). label_smoothing: ε
    in [0, 1/2), else ConfigError.

    Coupled: the loss [B] is in sorted order, smallest gap first, so weights must be equal over pairs. 32 pairs a step
    or more. With one pair it is `cdpo`. Section 17.
    """
    _, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    ours, theirs = (chosen - rejected).sort().values, (ref_chosen - ref_rejected).sort().values
    return logistic(beta * (ours - theirs), label_smoothing), metrics


def aot_unpaired(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, PerPair]:
    """AOT, unpaired: the k-th smallest log-ratio of chosen answers against the k-th smallest of rejected ones.

        L_(k) = ℓ( β (u_w(k) - u_l(k)) )        u = log π - log π_ref

    Melnyk et al. 2024 (arXiv 2406.05882), section 3, with ℓ as in `aot`.

    chosen, rejected, ref_chosen, ref_rejected: [B], beta, label_smoothing and metrics as `aot`; chosen and rejected
    answers need not belong together, but there must be as many of each.

    Coupled: the loss [B] is in sorted order, so weights must be equal over pairs. It does not change when the rejected
    answers are permuted, which no other loss on pairs can say. Section 17.
    """
    _, metrics = scaled_gap(chosen, rejected, ref_chosen, ref_rejected, beta)
    gap = (chosen - ref_chosen).sort().values - (rejected - ref_rejected).sort().values
    return logistic(beta * gap, label_smoothing), metrics
