"""The KL in the reward.

The reward model scores a finished answer. PPO needs a reward for each token: what the leash charges for that token, and
at the last one the score besides.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.returns import token_rewards


def rewards_with_kl(score: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t = -β (logp_t - ref_logp_t), and at the last token of the answer + score. 0 outside the mask.

    score: [N], one per answer. logp, ref_logp: [N, T] of the sampled tokens, under the policy and the reference.
    mask: [N, T], true at the tokens of the answer, which come first in each row. Returns [N, T].
    """
    raise NotImplementedError


def solution(score: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The last token is where the mask ends."""
    rewards = torch.where(mask, -beta * (logp - ref_logp), 0.0)
    rows = torch.arange(len(score))
    rewards[rows, mask.sum(1) - 1] += score
    return rewards


def expected(score: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The library's."""
    return token_rewards(score, mask, kl=logp - ref_logp, beta=beta)


def cases():
    """No leash; one answer by hand; a batch with padding."""
    now, before = tensor(0.5, 0.4, 0.9).log()[None], tensor(0.25, 0.5, 0.9).log()[None]
    hand = {"score": tensor(1.0), "logp": now, "ref_logp": before, "mask": torch.ones(1, 3) > 0}
    mask = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, True, False]])
    batch = {"logp": draw(3, 4, seed=11) - 2, "ref_logp": draw(3, 4, seed=12) - 2, "mask": mask}
    batch |= {"score": draw(3, seed=10)}
    return [hand | {"beta": 0.0}, hand | {"beta": 0.1}, batch | {"beta": 0.2}]


def _everywhere(score, logp, ref_logp, mask, beta):
    return torch.where(mask, score[:, None] - beta * (logp - ref_logp), 0.0)


def _last_column(score, logp, ref_logp, mask, beta):
    rewards = torch.where(mask, -beta * (logp - ref_logp), 0.0)
    rewards[:, -1] += score
    return rewards


EXERCISE = Exercise(
    stub=rewards_with_kl,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "The score was added at every token: a long answer would earn it many times.": _everywhere,
        "The score stands in the last column, which is padding for shorter answers.": _last_column,
        "The leash pays instead of charging: the log-ratio needs a minus.": (
            lambda score, logp, ref_logp, mask, beta: solution(score, logp, ref_logp, mask, -beta)
        ),
        "The leash is charged on padding as well.": (
            lambda score, logp, ref_logp, mask, beta: (
                solution(score, logp, ref_logp, mask, 0.0) - beta * (logp - ref_logp)
            )
        ),
    },
)
