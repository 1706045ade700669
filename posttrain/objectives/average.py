"""How losses are averaged: a matrix of weights, made once for the whole optimizer step.

Formulas return a loss per token (or per answer, or per pair) and never divide. The weights made here are cut into
micro-batches together with the losses, so that every piece is a plain sum and the pieces add up to the same number
however they are cut; averaging each micro-batch and then averaging the averages does not. Section 24 of the explainer
shows what the choice does to long answers. Over several machines the divisor must be summed first: `weight_total`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.tokens import check_shapes

Kind = Literal["token", "sequence", "prompt", "constant", "sum", "pair"]
_KINDS = ("token", "sequence", "prompt", "constant", "sum", "pair")


@dataclass(frozen=True)
class Average:
    """Which average of the unaveraged losses an optimizer step minimises."""

    kind: Kind = "token"
    """token: every token weighs the same (DAPO, SFT). sequence: every answer weighs the same (GRPO). prompt: every
    prompt weighs the same, and every token within its answers (ScaleRL). constant: tokens are summed and divided by
    answers times horizon (Dr. GRPO). sum: tokens are summed, answers averaged (REINFORCE on whole responses).
    pair: losses that are one number per pair of answers (DPO)."""
    horizon: int | None = None
    """The constant of "constant", in tokens: the longest answer allowed. Of this run, never of this batch."""

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise ConfigError(f'average.kind = "{self.kind}" is not one of {", ".join(_KINDS)}.')
        if self.kind == "constant" and (self.horizon is None or self.horizon <= 0):
            raise ConfigError(
                f'average.horizon = {self.horizon}: "constant" divides by a fixed number of tokens, so it must be '
                "positive. Set it to the longest answer that sampling allows (max_tokens)."
            )
        if self.kind != "constant" and self.horizon is not None:
            raise ConfigError(
                f'average.horizon = {self.horizon} changes nothing with average.kind = "{self.kind}": only "constant" '
                "divides by a horizon. Remove it, or choose the constant average."
            )


def token_weights(
    mask: Tensor,
    average: Average,
    *,
    group: Tensor | None = None,
    trajectory: Tensor | None = None,
    total: float | Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weights w with loss = Σ w · (loss per token), over all rows of one optimizer step.

        token:     w = 1 / (all tokens)                  DAPO: Yu et al. 2025 (arXiv 2503.14476), eq. 8
        sequence:  w = 1 / (B · tokens of its answer)    GRPO: Shao et al. 2024 (arXiv 2402.03300), eq. 3
        prompt:    w = 1 / (P · tokens of its group)     ScaleRL: Khatri et al. 2025 (arXiv 2510.13786)
        constant:  w = 1 / (B · horizon)                 Dr. GRPO: Liu et al. 2025 (arXiv 2503.20783)
        sum:       w = 1 / B                             REINFORCE on whole answers, LUSPO

    mask: [N, T], true where a token is trained on. Masks known beforehand (overlong filtering) are already in it.
    group: [N] id of the prompt, needed by "prompt".
    trajectory: [N] id of the episode; rows of one episode are segments of one answer, so B counts it once and its
        tokens add up. None: every row is an answer.
    total: the divisor (B, P or tokens) when these rows are a part of a larger step: the sum of `weight_total` over the
        parts. None: these rows are the whole step. Answers and groups must not straddle parts.
    dtype: of the weights; None: torch's default.

    B counts answers, and P prompts, with at least one token under the mask: a padding row of another rank or an answer
    that was filtered out must not dilute the others. A mask without any true entry gives zeros.

    Returns [N, T], zero outside the mask. Raises ConfigError for "pair", ShapeError where group ids are missing.

    Two answers of 2 and 6 tokens, losses 1 and 1/2 per token: sequence 0.75, token 0.625, constant with horizon 10
    0.25. Section 24.
    """
    shares, own = _shares(mask, average, group, trajectory, dtype)
    divisor = own if total is None else torch.as_tensor(total, dtype=shares.dtype, device=shares.device)
    return mask * (shares / divisor.clamp(min=1))[:, None]


def weight_total(
    mask: Tensor,
    average: Average,
    *,
    group: Tensor | None = None,
    trajectory: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The divisor of `token_weights` for these rows: tokens, answers or prompts under the mask.

        token: Σ mask        prompt: P        sequence, constant, sum: B

    mask: [N, T]. group, trajectory: [N] ids; dtype: of the result; all as in `token_weights`.

    Returns a scalar. Sum it over the ranks of a step and hand it back as `total`: two ranks with 3 and 5 tokens both
    divide by 8. Section 24.
    """
    return _shares(mask, average, group, trajectory, dtype)[1]


def row_weights(
    mask: Tensor,
    average: Average,
    *,
    group: Tensor | None = None,
    total: float | Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weights for losses that are one number per answer or per pair: loss = Σ w · (loss per row).

        sequence, sum:  w = 1 / B on every answer
        prompt:         w = 1 / (P · answers of its group)
        pair:           w = 1 / (pairs); take the entry of either row of the pair, the two are equal

    mask: [N, T]; rows without a true entry weigh nothing. group: [N] ids of prompts or pairs, needed by "prompt" and
    "pair". total: the divisor of the whole step when these rows are a part of it. dtype: of the weights; None: torch's
    default.

    Returns [N]. Raises ConfigError for an average that counts tokens. Two pairs weigh 1/2 each. Section 16.
    """
    check_shapes("NT", mask)
    alive = mask.any(1)
    match average.kind:
        case "sequence" | "sum":
            share, own = alive.to(dtype or torch.get_default_dtype()), alive.sum()
        case "prompt" | "pair":
            ids = _ids(group, mask, average)
            members = torch.bincount(ids, weights=alive.float())
            share = alive.to(dtype or torch.get_default_dtype())
            share = share / members[ids].clamp(min=1) if average.kind == "prompt" else share
            own = (members > 0).sum()
        case _:
            raise ConfigError(
                f'average.kind = "{average.kind}" counts tokens, and this loss is one number per answer. '
                'Use "sequence", "prompt" or, for pairs, "pair".'
            )
    divisor = own if total is None else torch.as_tensor(total, dtype=share.dtype, device=share.device)
    return share / divisor.clamp(min=1)


def _shares(
    mask: Tensor, average: Average, group: Tensor | None, trajectory: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Per row, what one of its tokens weighs before the division; and the divisor."""
    check_shapes("NT", mask)
    tokens = mask.sum(1).to(dtype or torch.get_default_dtype())
    if average.kind == "prompt":
        owner = _ids(group, mask, average)
    elif trajectory is None:
        owner = torch.arange(len(tokens), device=mask.device)
    else:
        check_shapes("NT N", mask, trajectory)
        owner = torch.unique(trajectory, return_inverse=True)[1]
    length = torch.bincount(owner, weights=tokens).to(tokens.dtype)
    ones, count = torch.ones_like(tokens), (length > 0).sum().to(tokens.dtype)
    match average.kind:
        case "token":
            return ones, tokens.sum()
        case "sequence" | "prompt":
            return 1 / length[owner].clamp(min=1), count
        case "constant":
            return ones / average.horizon, count
        case "sum":
            return ones, count
        case _:
            raise ConfigError(
                f'average.kind = "{average.kind}" is for losses that are one number per pair; this loss has one per '
                'token. Use "token", "sequence", "prompt", "constant" or "sum".'
            )


def _ids(group: Tensor | None, mask: Tensor, average: Average) -> Tensor:
    if group is None:
        raise ShapeError(f'average.kind = "{average.kind}" needs the group ids of the rows, and got none.')
    check_shapes("NT N", mask, group)
    return torch.unique(group, return_inverse=True)[1]
