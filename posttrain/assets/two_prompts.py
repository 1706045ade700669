"""Eight answers to two prompts, by hand: a step in which objectives differ. `posttrain methods compare` draws it.

Four answers to each prompt. Those to the first are right and wrong, short and long; those to the second are all right,
so nothing can be learned from comparing them. The learner has already moved since the answers were sampled, by as much
as the second row of each answer says: far enough, at some tokens, for PPO's clip (0.2 and more), at others only for a
narrow one. In whole answers the moves of the first one cancel, those of the fourth do not. The sampler rounds, so its
probabilities differ a little from the learner's, and at two tokens by a factor of two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.objectives.pull import Step

PROMPTS = ("What is 3 times 4?", "What is 1 + 1?")


@dataclass(frozen=True)
class Answer:
    """One sampled answer. All rows have one number per word."""

    prompt: int
    words: str
    """Its tokens, with spaces between them."""
    reward: float
    """1 if right, else 0."""
    polite: float
    """A second reward, for objectives that take several."""
    old: tuple[float, ...]
    """log π of each token when the step began, in nats."""
    moved: tuple[float, ...]
    """What the learner has added to it since then."""


ANSWERS = (
    Answer(0, "It is 12", 1, 1, (-1.2, -0.2, -1.1), (0.06, 0.02, -0.08)),
    Answer(
        0, "3 + 4 is 7 , so it is 7", 0, 0,
        (-1.6, -2.3, -0.3, -0.5, -0.4, -1.0, -0.7, -1.3, -0.1, -0.2),
        (0.04, -0.31, 0.02, 0.05, 0.12, 0.40, -0.02, -0.27, 0.03, 0.01),
    ),
    Answer(0, "I say 11 .", 0, 1, (-2.9, -1.8, -2.2, -0.3), (-0.06, 0.03, -0.12, 0.01)),
    Answer(
        0, "4 + 4 = 8 , + 4 = 12", 1, 0,
        (-2.1, -0.9, -0.2, -0.4, -0.1, -1.9, -0.4, -0.3, -0.1, -0.2),
        (0.21, 0.02, 0.01, -0.03, 0.02, 0.33, 0.24, -0.05, 0.01, 0.04),
    ),
    Answer(1, "2", 1, 0, (-0.4,), (0.05,)),
    Answer(1, "It is 2", 1, 1, (-1.2, -0.2, -0.3), (0.02, -0.01, 0.03)),
    Answer(1, "1 + 1 = 2", 1, 0, (-1.9, -0.3, -0.1, -0.2, -0.1), (-0.04, 0.02, 0.0, 0.01, 0.02)),
    Answer(1, "Two .", 1, 0, (-2.6, -0.9), (0.28, -0.02)),
)  # fmt: skip
LONGEST = max(len(a.words.split()) for a in ANSWERS)
"""Tokens of the longest answer, which is also the longest allowed."""
ROUNDING = {(1, 6): -0.9, (3, 1): 0.8}
"""(answer, place): what the sampler reported above the learner's log-probability where the two differ by much."""


def step() -> Step:
    """The batch as tensors in float64. Column 0 is the last token of the prompt, which the policy did not choose."""
    rows = len(ANSWERS)
    old = _rows([a.old for a in ANSWERS])
    place = torch.arange(rows * (LONGEST + 1), dtype=old.dtype).view(rows, -1)
    mask = _rows([(1.0,) * len(a.old) for a in ANSWERS]) > 0
    sampled = old + 0.004 * torch.where(place % 2 == 0, 1.0, -1.0)
    for (row, at), gap in ROUNDING.items():
        sampled[row, at + 1] += gap
    probability = old.exp()
    return Step(
        mask=mask,
        group=torch.tensor([a.prompt for a in ANSWERS]),
        reward=torch.tensor([a.reward for a in ANSWERS], dtype=old.dtype),
        logp=old + _rows([a.moved for a in ANSWERS]),
        old_logp=old,
        sampled_logp=sampled,
        ref_logp=old - 0.3 * torch.cos(place),  # the policy has left the reference, at some tokens up, at some down
        entropy=-2.0 * old * probability.sqrt(),  # rare tokens are drawn where much is possible, and likely ones not
        sum_sq=probability.square() + (1 - probability).square() / 4,
        value=(0.5 + 0.04 * place.fmod(LONGEST + 1)).clamp(max=0.9),
        greedy=torch.tensor([float(a.prompt == 1) for a in ANSWERS], dtype=old.dtype),
        parts=torch.tensor([(a.reward, a.polite) for a in ANSWERS], dtype=old.dtype),
        draws=(place * 0.6180339887498949).fmod(1.0),
        baseline=0.5,
    )


def _rows(values: list[tuple[float, ...]]) -> Tensor:
    """[N, T + 1], with nothing in column 0 and behind the end."""
    out = torch.zeros(len(values), LONGEST + 1, dtype=torch.float64)
    for row, value in zip(out, values, strict=True):
        row[1 : len(value) + 1] = torch.tensor(value, dtype=torch.float64)
    return out
