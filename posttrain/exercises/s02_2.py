"""The estimator k3, and its mean.

Of each sampled token we only know two log-probabilities, under the policy that said it and under the reference.
Estimate the reverse KL per token with k3, and average over the tokens that count.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.kl import k3


def mean_k3(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    """The mean of k3 = e^-r - 1 + r over the tokens where mask is true, with r = logp - ref_logp.

    logp, ref_logp: [N, T] log-probabilities of the sampled tokens, under the policy and under the reference.
    mask: [N, T], true where a token is part of an answer. Returns one number, at least 0.
    """
    raise NotImplementedError


def solution(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    """All tokens count alike, in long answers and in short ones."""
    r = (logp - ref_logp)[mask]
    return (torch.exp(-r) - 1 + r).mean()


def expected(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    """With the library's estimator."""
    return k3(logp - ref_logp)[mask].mean()


def cases():
    """One token twice as likely as before; padding with absurd numbers; answers of different lengths."""
    long = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, False, False]])
    padded = torch.where(long, draw(3, 4, seed=3, scale=0.5), 30.0)
    return [
        {"logp": tensor(0.5).log()[None], "ref_logp": tensor(0.25).log()[None], "mask": torch.tensor([[True]])},
        {"logp": tensor(0.25).log()[None], "ref_logp": tensor(0.5).log()[None], "mask": torch.tensor([[True]])},
        {"logp": padded - 1.0, "ref_logp": draw(3, 4, seed=4, scale=0.5) - 1.0, "mask": long},
    ]


def _other_direction(logp, ref_logp, mask):
    return k3(ref_logp - logp)[mask].mean()


def _by_answers(logp, ref_logp, mask):
    value = torch.where(mask, k3(logp - ref_logp), 0.0)
    return (value.sum(1) / mask.sum(1)).mean()


EXERCISE = Exercise(
    stub=mean_k3,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "The log-ratio has the wrong sign: r is the policy's log-probability minus the reference's.": _other_direction,
        "That is k1: unbiased as well, but it may be negative.": lambda logp, ref_logp, mask: (logp - ref_logp)[
            mask
        ].mean(),
        "That is k2, which is biased.": lambda logp, ref_logp, mask: ((logp - ref_logp)[mask] ** 2).mean() / 2,
        "The mask is not used: padding was averaged in.": lambda logp, ref_logp, mask: k3(logp - ref_logp).mean(),
        "That is the mean over answers of each answer's mean; here each token counts alike.": _by_answers,
    },
)
