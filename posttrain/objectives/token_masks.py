"""Which tokens of a step carry the gradient, or pay for leaving the old policy: choices by rank among all of them.

Most tokens of a long answer are forced by those before; a few are forks. The methods here act on few tokens, picked by
entropy (80/20) or by how log-probability and advantage vary together (Clip-Cov, KL-Cov). A rank exists only among all
tokens of an optimizer step, so these functions must see all of them: "Coupled" below means that rows depend on each
other, and the learner then makes a first pass over the whole step. Section 24 of the explainer tells it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked

_FOCUSES = ("all", "entropy", "covariance")


@dataclass(frozen=True, kw_only=True)
class Focus:
    """Which tokens carry the gradient of the gain. All of them keep their place in the average."""

    kind: Literal["all", "entropy", "covariance"] = "all"
    """entropy: only the tokens at which the policy was least decided (80/20). covariance: all but a few, drawn among
    those with large covariance of log-probability and advantage (Clip-Cov)."""
    share: float | None = None
    """entropy: the share of tokens that learn (0.2). covariance: the share that does not (2e-4)."""
    low: float = 1.0
    """Lower end of the covariances from which tokens are drawn. Only with "covariance"."""
    high: float = 5.0
    """Upper end of the same."""

    def __post_init__(self):
        if self.kind not in _FOCUSES:
            raise ConfigError(f'focus.kind = "{self.kind}" is not one of {", ".join(_FOCUSES)}.')
        if self.kind == "all" and (self.share, self.low, self.high) != (None, 1.0, 5.0):
            raise ConfigError(
                f"focus.share = {self.share}, low = {self.low}, high = {self.high} change nothing with focus.kind = "
                '"all". Set kind to "entropy" or "covariance", or leave them out.'
            )
        if self.kind != "all" and (self.share is None or not 0 < self.share < 1):
            raise ConfigError(
                f'focus.share = {self.share} with focus.kind = "{self.kind}": a share of the tokens lies between 0 and '
                "1 (80/20: 0.2 learn; Clip-Cov: 2e-4 do not)."
            )
        if self.kind == "entropy" and (self.low, self.high) != (1.0, 5.0):
            raise ConfigError(
                f"focus.low = {self.low}, high = {self.high} are covariances, and change nothing with focus.kind = "
                '"entropy"; leave them at 1.0 and 5.0.'
            )
        if self.low >= self.high:
            raise ConfigError(f"focus band ({self.low}, {self.high}) is empty: low must be below high (1 and 5).")


class Chosen(NamedTuple):
    """Tokens picked by comparing all tokens of an optimizer step, each [N, T] and boolean."""

    gain: Tensor
    """Whose gain carries a gradient."""
    penalty: Tensor
    """Who pays the penalty for leaving the old policy."""


def top_entropy(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """The tokens at which the policy was least decided. Coupled: the threshold is a quantile over all tokens.

        chosen_t = [H_t ≥ τ],  τ the (1 - share)-quantile of H over all tokens

    Wang et al. 2025, Beyond the 80/20 Rule (arXiv 2506.01939); the quantile is interpolated linearly.

    entropy: [N, T] in nats. mask: [N, T], the tokens that are ranked. share: of them to choose, 0.2 in the paper.

    Returns [N, T], boolean, false outside the mask. Of 5 tokens with entropies 0 to 4 and share 0.4 the threshold is
    2.4 and the last two are chosen. Section 24.
    """
    check_shapes("NT", entropy, mask)
    if not bool(mask.any()):
        return torch.zeros_like(mask, dtype=torch.bool)
    return (entropy >= torch.quantile(entropy[mask], 1 - share)) & mask


def covariance(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """What each token contributes to the covariance of log-probability and advantage. Coupled: means over all tokens.

        cov_t = (log π_t - mean log π) · (A_t - mean A)

    Cui et al. 2025, The Entropy Mechanism (arXiv 2505.22617): a likely token with a large advantage becomes likelier
    still, so entropy falls by the mean of these, times the step.

    logp, advantage, mask: [N, T]. Means run over the mask.

    Returns [N, T], 0 outside the mask, without gradient.

    Log-probabilities (-1, -3) with advantages (1, -1) give (1, 1). Section 24.
    """
    check_shapes("NT", logp, advantage, mask)
    parts = [masked(x, mask).detach() for x in (logp, advantage)]
    x, y = (p - p.sum() / mask.sum() for p in parts)
    return masked(x * y, mask)


def top_covariance(logp: Tensor, advantage: Tensor, mask: Tensor, share: float) -> Tensor:
    """The tokens with the largest covariance of log-probability and advantage: KL-Cov's. Coupled: a rank of all tokens.

        chosen = the max(1, ⌊share · n⌋) of all n tokens with the largest cov_t

    Cui et al. 2025 (arXiv 2505.22617). The formula of cov_t is `covariance`.

    logp, advantage, mask: [N, T]. share: of the tokens to choose; the paper uses 2e-3 for 7B and 2e-4 for 32B models.

    Returns [N, T], boolean, false outside the mask: at least one token, unless the mask is empty. A share below 1/n
    chooses exactly the largest. Section 24.
    """
    cov = covariance(logp, advantage, mask)
    return _first(torch.where(mask, -cov, torch.inf), mask, _count(mask, share))


def drawn_covariance(
    logp: Tensor, advantage: Tensor, mask: Tensor, draws: Tensor, *, share: float, low: float, high: float
) -> Tensor:
    """Some tokens at random among those with a large covariance: Clip-Cov's. Coupled: the means are over all tokens.

        chosen ~ Uniform( { t : low < cov_t < high } ),  max(1, ⌊share · n⌋) of all n tokens, or all of the set

    Cui et al. 2025 (arXiv 2505.22617). The formula of cov_t is `covariance`.

    logp, advantage, mask: [N, T]. draws: [N, T], independent uniform numbers; the smallest win, so that randomness
        stays outside. share: of the tokens, 2e-4 in the paper. low, high: 1 and 5 in the paper.

    Returns [N, T], boolean, false outside the mask; none if no covariance lies in the band. verl leaves out tokens that
    the ratio clip has cut as well; here they are drawn like others, as in the paper. With the whole set allowed, draws
    do not matter. Section 24.
    """
    check_shapes("NT", logp, draws)
    cov = covariance(logp, advantage, mask)
    among = mask & (cov > low) & (cov < high)
    return _first(torch.where(among, draws, torch.inf), among, _count(mask, share))


def _count(mask: Tensor, share: float) -> int:
    return max(1, int(int(mask.sum()) * share))


def _first(key: Tensor, among: Tensor, count: int) -> Tensor:
    """Where `among` is true, the `count` entries with the smallest key; all of them if there are fewer."""
    order = key.flatten().argsort(stable=True)[:count]
    picked = torch.zeros_like(among).flatten()
    picked[order] = True
    return picked.view_as(among) & among
