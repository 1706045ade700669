"""Preference labels from a judge that is itself a language model, and what is done about its love for first places.

A judge is asked twice, with the two answers in either order, and its log-probabilities of the option tokens are read.
Section 10 of the explainer tells the story.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes


def judge_label(logp_first: Tensor, logp_second: Tensor) -> Tensor:
    """A judge's probability that the answer shown first is the better one.

        p = e^{ℓ_A} / (e^{ℓ_A} + e^{ℓ_B})

    Bai et al. 2022 (arXiv 2212.08073), section 4.1: normalised over the two option tokens alone.

    logp_first, logp_second: [B] log-probability of naming the first and the second option (sum the variants of a token,
    such as "A" and " A", beforehand).

    Returns [B] in (0, 1). Equal log-probabilities give 1/2; a difference of 1 gives 0.731059. Section 10.
    """
    check_shapes("B", logp_first, logp_second)
    return torch.sigmoid(logp_first - logp_second)


def swap_average(gap: Tensor, gap_swapped: Tensor) -> Tensor:
    """The label from both orders, averaged as probabilities.

        q = ½ [ σ(g) + 1 - σ(g') ]        g = ℓ_A - ℓ_B with y_1 shown first, g' with y_2 shown first

    Lee et al. 2023 (arXiv 2309.00267), section 2.

    gap, gap_swapped: [B] differences of the option log-probabilities, first minus second option, in either order.

    Returns [B], the probability that y_1 is better. A judge who prefers y_1 by 1 and the first place by 1.5 says 2.5
    and 0.5: q = 0.650841, right in sign but drawn towards 1/2. Section 10.
    """
    check_shapes("B", gap, gap_swapped)
    return 0.5 * (torch.sigmoid(gap) + torch.sigmoid(-gap_swapped))


def swap_logit_average(gap: Tensor, gap_swapped: Tensor) -> Tensor:
    """The label from both orders, averaged as log-odds, which removes an additive love for one place exactly.

        q = σ( ½ (g - g') )        g = Δ + b,  g' = -Δ + b   ⇒   q = σ(Δ)

    Zheng et al. 2023 (arXiv 2306.05685) measure the bias b.

    gap, gap_swapped: [B], as `swap_average`.

    Returns [B], the probability that y_1 is better. The judge of `swap_average`'s example gives σ(1) = 0.731059.
    Section 10.
    """
    check_shapes("B", gap, gap_swapped)
    return torch.sigmoid(0.5 * (gap - gap_swapped))


def position_biased(gap: Tensor, gap_swapped: Tensor) -> Tensor:
    """Whether the same place won in both orders, so that the place decided and not the answer.

        b = [ g · g' > 0 ]

    Lee et al. 2023 (arXiv 2309.00267), appendix on position bias; Zheng et al. 2023 (arXiv 2306.05685).

    gap, gap_swapped: [B], as `swap_average`.

    Returns [B], 1 or 0; its mean is the rate of position bias. (2.5, 0.5) is biased, (1, -1) is not. Section 10.
    """
    check_shapes("B", gap, gap_swapped)
    return (gap.sign() * gap_swapped.sign() > 0).to(gap.dtype)


def clamped_label(probability: Tensor, *, low: float = 0.4, high: float = 0.6) -> Tensor:
    """Labels of a judge that reasons aloud, held near 1/2: its chain of thought makes it far too sure.

        q ← min(max(q, low), high)

    Bai et al. 2022 (arXiv 2212.08073), section 4.1, with 0.4 and 0.6.

    probability: [B]. low, high: 0 < low <= high < 1, else ConfigError.

    Returns [B]. A reward model that fits a label of 0.6 has a gap of log 1.5 = 0.405. Section 10.
    """
    if not 0 < low <= high < 1:
        raise ConfigError(f"low = {low}, high = {high}: a label lies between them, so 0 < low <= high < 1 must hold.")
    check_shapes("B", probability)
    return probability.clamp(low, high)


def expected_rating(logp: Tensor, *, lowest: int = 1) -> Tensor:
    """A judge's mean mark as a reward (d-RLAIF): no reward model stands between judge and policy.

        s = Σ_i i · P(i)        r = 2 (s - lowest) / (highest - lowest) - 1

    Lee et al. 2023 (arXiv 2309.00267), section 2, with marks 1 to 10.

    logp: [B, R] log-probabilities of the R marks from lowest up, at least 2; they need not be normalised. lowest: the
    first mark.

    Returns r [B] in [-1, 1]. Marks 4 to 9 with probabilities (.1, .2, .3, .2, .1, .1) have mean 6.3 and r = 0.177778.
    Section 10.
    """
    check_shapes("BR", logp)
    marks = torch.arange(logp.shape[1], dtype=logp.dtype, device=logp.device)
    above = (logp.softmax(1) * marks).sum(1)
    return 2 * above / marks[-1] - 1
