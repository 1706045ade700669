"""Losses on tokens that someone else chose: cross-entropy and its variants.

They take log-probabilities, not logits, so that the chunked head can make them. Averaging is not done here: the weights
of `average` decide whether long answers count more. Sections 2 and 5 of the explainer tell the story.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.tokens import check_shapes, masked

Sums = dict[str, tuple[Tensor, Tensor]]
"""Metrics as (sum, count)."""


def cross_entropy(logp: Tensor, mask: Tensor) -> tuple[Tensor, Sums]:
    """Negative log-likelihood of every learned token.

        L_t = -log π(y_t | y_<t)

    logp, mask: [N, T]. Returns the loss [N, T], 0 outside the mask, and the metric `nll`.

    A policy that is uniform over V tokens has loss log V. Its gradient is REINFORCE's with advantage 1.
    """
    check_shapes("NT", logp, mask)
    loss = -masked(logp, mask)
    return loss, _nll(loss, mask)


def smoothed_cross_entropy(logp: Tensor, mean_logp: Tensor, mask: Tensor, *, smoothing: float) -> tuple[Tensor, Sums]:
    """Cross-entropy with label smoothing: a share of the target's mass is spread evenly over the vocabulary.

        L_t = -(1 - ε) log π(y_t) - ε · (1/V) Σ_v log π(v)

    Szegedy et al. 2016 (arXiv 1512.00567), section 7.

    logp: [N, T]. mean_logp: [N, T], the mean of log π over the vocabulary (`needs=("mean_logp",)` of
    `logprobs_from_hidden`). smoothing: ε in (0, 1). Returns the loss [N, T] and the metric `nll` (unsmoothed).

    A uniform policy has loss log V whatever ε is.
    """
    check_shapes("NT", logp, mean_logp, mask)
    if not 0 < smoothing < 1:
        raise ConfigError(f"smoothing = {smoothing} must lie between 0 and 1; for 0 use cross_entropy.")
    logp = masked(logp, mask)
    loss = -(1 - smoothing) * logp - smoothing * masked(mean_logp, mask)
    return loss, _nll(-logp, mask)


def dft(logp: Tensor, mask: Tensor) -> tuple[Tensor, Sums]:
    """Dynamic fine-tuning: cross-entropy without its hidden 1/π weight on improbable tokens.

        L_t = -sg[π(y_t)] · log π(y_t)

    Wu et al. 2025 (arXiv 2508.05629), eq. 9.

    logp, mask: [N, T]. Returns the loss [N, T] and the metric `nll`. The gradient is that of -π(y_t): a token of
    probability 0 pulls with force 0.
    """
    check_shapes("NT", logp, mask)
    logp = masked(logp, mask)
    return -logp.detach().exp() * logp, _nll(-logp, mask)


def _nll(loss: Tensor, mask: Tensor) -> Sums:
    return {"nll": (loss.detach().sum(), torch.count_nonzero(mask))}
