"""The reverse KL of two distributions.

Two language models give probabilities to the same tokens. Compute how far the policy is from the reference, in nats:
the average, over tokens that the policy says, of the logarithm of policy over reference. A token that the policy never
says adds nothing, whatever the reference thinks of it.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.kl import reverse_kl as library


def reverse_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """kl(policy ‖ reference) = Σ_v policy_v · log(policy_v / reference_v).

    policy, reference: [..., V] probabilities that add up to 1. Returns [...], one number per distribution.
    """
    raise NotImplementedError


def solution(policy: Tensor, reference: Tensor) -> Tensor:
    """`xlogy` is 0 where the policy is 0."""
    return (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1)


def expected(policy: Tensor, reference: Tensor) -> Tensor:
    """The library takes logits."""
    return library(policy.log(), reference.log())


def cases():
    """By hand, a token of probability 0, and at random."""
    return [
        {"policy": tensor(0.5, 0.5), "reference": tensor(0.5, 0.5)},
        {"policy": tensor(0.5, 0.3, 0.2), "reference": tensor(0.25, 0.25, 0.5)},
        {"policy": tensor(0.5, 0.5, 0.0), "reference": tensor(0.25, 0.25, 0.5)},
        {"policy": draw(3, 5, seed=1).softmax(-1), "reference": draw(3, 5, seed=2).softmax(-1)},
    ]


EXERCISE = Exercise(
    stub=reverse_kl,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "That is the forward KL: the average must be over what the policy says, not over what the reference says.": (
            lambda policy, reference: (torch.xlogy(reference, reference) - torch.xlogy(reference, policy)).sum(-1)
        ),
        "Right, but for tokens that the policy never says: 0 · log 0 is not a number in floating point. "
        "See torch.xlogy.": lambda policy, reference: (policy * (policy / reference).log()).sum(-1),
        "That is in bits. One nat is a factor of e: use the natural logarithm.": (
            lambda policy, reference: (
                (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1) / 0.6931471805599453
            )
        ),
    },
)
