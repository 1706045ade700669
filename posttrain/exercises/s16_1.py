"""The loss of DPO.

From four log-probabilities of a pair's two answers, compute DPO's loss: minus the log-sigmoid of β times the gap
between the two log-ratios. It is minimised, and its gradient is graded as well.
"""

import torch.nn.functional as F
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.preference import dpo


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """-log σ(β [(chosen - ref_chosen) - (rejected - ref_rejected)]), one number per pair.

    All [B]: log-probabilities of whole answers, under the policy and under the reference. Returns [B], with a gradient
    in chosen and rejected. It must be finite for a pair that the policy gets badly wrong.
    """
    raise NotImplementedError


def solution(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """`logsigmoid`, since log(sigmoid(-1000)) is minus infinity in floating point."""
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def expected(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """The library's."""
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)[0]


def cases():
    """Before training; the right way and the wrong way; a batch; far off."""
    start = {"ref_chosen": tensor(-12.0), "ref_rejected": tensor(-9.0), "beta": 0.1}
    pairs = [(-12.0, -9.0), (-10.0, -11.0), (-14.0, -8.0)]
    by_hand = [{"chosen": tensor(c), "rejected": tensor(r)} | start for c, r in pairs]
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    batch = {name: draw(6, seed=15 + i, scale=3.0) - 20 for i, name in enumerate(names)}
    far = {"chosen": tensor(-15_000.0), "rejected": tensor(-10.0)} | start
    return [*by_hand, batch | {"beta": 0.5}, far]


def _without_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    return -F.logsigmoid(beta * (chosen - rejected))


def _unsafe(chosen, rejected, ref_chosen, ref_rejected, beta):
    return -(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).sigmoid().log()


EXERCISE = Exercise(
    stub=dpo_loss,
    solution=solution,
    expected=expected,
    cases=cases,
    through=("chosen", "rejected"),
    mistakes={
        "The reference is missing: the gap must be between log-ratios.": _without_reference,
        "The two answers are swapped: it would learn to prefer the rejected one.": (
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: solution(
                rejected, chosen, ref_rejected, ref_chosen, beta
            )
        ),
        "That is the objective, to be maximised. The loss has a minus in front.": (
            lambda chosen, rejected, ref_chosen, ref_rejected, beta: (
                -solution(chosen, rejected, ref_chosen, ref_rejected, beta)
            )
        ),
        "Right, until a pair is so wrong that the sigmoid becomes 0 and its logarithm infinite. "
        "See torch.nn.functional.logsigmoid.": _unsafe,
    },
)
