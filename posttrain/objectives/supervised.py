"""Losses on tokens that someone else chose: cross-entropy and its variants.

They take log-probabilities, not logits, so that the chunked head can make them. Averaging is not done here: the weights
of `average` decide whether long answers count more, and because they are made from the whole optimizer step, a step cut
into micro-batches needs no second count of tokens (what other libraries hand around as `num_items_in_batch`). Sections
02 and 05 of the book tell the story. Learning from a teacher's probabilities instead of its tokens is in `distill`.
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

    Maximum likelihood; as the first stage of post-training: Ouyang et al. 2022 (arXiv 2203.02155), section 3.5.

    logp, mask: [N, T], the mask true at the tokens that are learned.
    Returns the loss [N, T] in nats, 0 outside the mask, and the metric `nll`.

    A policy that is uniform over V tokens has loss log V. Its gradient is REINFORCE's with advantage 1. Section 05.
    """
    check_shapes("NT", logp, mask)
    loss = -masked(logp, mask)
    return loss, _nll(loss, torch.count_nonzero(mask))


def smoothed_cross_entropy(logp: Tensor, mean_logp: Tensor, mask: Tensor, *, smoothing: float) -> tuple[Tensor, Sums]:
    """Cross-entropy with label smoothing: a share of the target's mass is spread evenly over the vocabulary.

        L_t = -(1 - ε) log π(y_t) - ε · (1/V) Σ_v log π(v)

    Szegedy et al. 2016 (arXiv 1512.00567), section 7.

    logp: [N, T]. mean_logp: [N, T], the mean of log π over the vocabulary (`needs=("mean_logp",)` of
    `logprobs_from_hidden`). mask: [N, T]. smoothing: ε in (0, 1), else ConfigError.
    Returns the loss [N, T] in nats, 0 outside the mask, and the metric `nll` (unsmoothed).

    A uniform policy has loss log V whatever ε is. Section 05.
    """
    check_shapes("NT", logp, mean_logp, mask)
    if not 0 < smoothing < 1:
        raise ConfigError(f"smoothing = {smoothing} must lie between 0 and 1; for 0 use cross_entropy.")
    logp = masked(logp, mask)
    loss = -(1 - smoothing) * logp - smoothing * masked(mean_logp, mask)
    return loss, _nll(-logp, torch.count_nonzero(mask))


def dft(logp: Tensor, mask: Tensor) -> tuple[Tensor, Sums]:
    """Dynamic fine-tuning: cross-entropy without its hidden 1/π weight on improbable tokens.

        L_t = -sg[π(y_t)] · log π(y_t)

    Wu et al. 2025 (arXiv 2508.05629), eq. 9.

    logp, mask: [N, T]. Returns the loss [N, T], 0 outside the mask, and the metric `nll`.

    The gradient is that of -π(y_t): a token of probability 0 pulls with force 0. Section 05.
    """
    check_shapes("NT", logp, mask)
    logp = masked(logp, mask)
    return -logp.detach().exp() * logp, _nll(-logp, torch.count_nonzero(mask))


def prompt_completion_weights(
    prompt: Tensor,
    completion: Tensor,
    *,
    prompt_weight: float,
    total: float | Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weights for a loss in which tokens of the prompt count, but less than those of the answer.

        w_t = m_t / Σ m        m_t = 1 on the completion, λ on the prompt, 0 elsewhere

    Shi et al. 2024 (arXiv 2405.14394) on when instructions are worth learning: short answers, few examples.

    prompt, completion: [N, T], true at the tokens of each; entry 0 false, as nothing predicts it. Where both are true
        the token is a completion's.
    prompt_weight: λ in [0, 1], else ConfigError.
    total: Σ m of the whole optimizer step when these rows are a part of it. None: these rows are the step.
    dtype: of the weights; None: torch's default.
    Returns [N, T]: the loss is Σ w · loss_t with a loss of this file under the mask prompt | completion. Without any
    token the weights are 0.

    λ = 0 is the average "token" over completions, λ = 1 over everything. A prompt of 4 tokens at λ = 1/2 beside an
    answer of 2 weighs as much as the answer. Section 05.
    """
    check_shapes("NT", prompt, completion)
    if not 0 <= prompt_weight <= 1:
        raise ConfigError(f"prompt_weight = {prompt_weight} must lie between 0 (learn answers) and 1 (learn all text).")
    dtype = dtype or torch.get_default_dtype()
    share = completion.to(dtype) + prompt_weight * (prompt & ~completion).to(dtype)
    whole = share.sum() if total is None else torch.as_tensor(total, dtype=dtype, device=share.device)
    return torch.where(share > 0, share / whole, 0.0)


def _nll(loss: Tensor, count: Tensor) -> Sums:
    return {"nll": (loss.detach().sum(), count)}
