"""How far apart two policies are at one sampled token, when only that token's probability is known.

A whole vocabulary is seldom at hand: of the sampler there is one log-probability per token. Lumping all other tokens
together leaves two distributions over two outcomes, "this token" and "another", and their distance is a lower bound of
the true one. The gates of `gates` and the corrections of `mismatch` decide by it, so no gradient flows.
"""

import torch
from torch import Tensor

from posttrain.errors import ShapeError


def binary_tv(logp: Tensor, other: Tensor) -> Tensor:
    """Total variation between two policies, over the outcomes "this token" and "another".

        D = |p - q|,  p = exp(logp), q = exp(other)

    Qi et al. 2026, DPPO-Binary-TV (arXiv 2602.04879).

    logp, other: log-probabilities of the same sampled tokens, of one shape (anything: [N, T] is usual).

    Returns that shape, in [0, 1], without gradient. Raises ShapeError if the shapes differ.

    A token that goes from probability 0.99 to 0.80 has moved 0.19 and one from 0.001 to 0.01 only 0.009, though its
    ratio is 10. Section 24.
    """
    _same(logp, other)
    return (logp.detach().exp() - other.detach().exp()).abs()


def binary_kl(logp: Tensor, other: Tensor) -> Tensor:
    """kl(first ‖ other) over the outcomes "this token" and "another".

        D = p · log(p/q) + (1 - p) · log((1 - p)/(1 - q)),  p = exp(logp), q = exp(other)

    Qi et al. 2026, DPPO-Binary-KL (arXiv 2602.04879). The first policy is the one that sampled.

    logp, other: log-probabilities of the same sampled tokens, of one shape.

    Returns that shape in nats, never negative, without gradient; infinite where `other` is sure of a token that the
    first policy is not sure of. Raises ShapeError if the shapes differ.

    p = 1/2 and q = 1/4 give 0.143841. Section 24.
    """
    _same(logp, other)
    logp, other = logp.detach().clamp(max=0), other.detach().clamp(max=0)
    rest, other_rest = -torch.expm1(logp), -torch.expm1(other)  # 1 - p, exact where p is close to 1
    missing = torch.where(rest > 0, rest * (rest.log() - other_rest.log()), 0.0)
    return (logp.exp() * (logp - other) + missing).clamp(min=0)


def _same(logp: Tensor, other: Tensor) -> None:
    if logp.shape != other.shape:
        raise ShapeError(
            f"log-probabilities of shapes {list(logp.shape)} and {list(other.shape)}: a distance between two policies "
            "needs both at the same tokens. Pass tensors of one shape."
        )
