"""A simulated annotator: sees gold through biases and chooses between two answers with noise.

The rater is what a reward model is trained on. It misses half of the errors, likes length and every further
politeness, and flips close calls (Bradley-Terry). Its agreement with gold is that of a fair human annotator, and its
biases are what an over-optimised policy will find. Never use it to measure.
"""

import math
from dataclasses import dataclass

from posttrain import rng as draws
from posttrain.assets.world.gold import gold, sentences
from posttrain.assets.world.people import Person, parse, true


@dataclass(frozen=True)
class Weaknesses:
    """What the annotator gets wrong."""

    missed: float = 0.5
    """Chance that a wrong fact or an off-topic sentence is not noticed."""
    length: float = 0.35
    """Added for every sentence."""
    politeness: float = 0.6
    """Added for every polite phrase, wherever it stands."""


WEAKNESSES = Weaknesses()
"""Those of the world's rater."""
SHARPNESS = 1.8
"""Inverse temperature of the choice: P(a over b) = sigmoid(SHARPNESS * (rating of a - rating of b))."""


def rating(person: Person, text: str, stopped: bool = True, seed: int = 0, weak: Weaknesses = WEAKNESSES) -> float:
    """How much this annotator likes the text, before noise: gold with errors missed and biases added.

    Which errors are missed is a hash of the seed and the sentence: the same annotator misses the same error again.
    """
    value = gold(person, text, stopped).value or 0.0
    for sentence in sentences(text):
        if sentence.kind == "other" or sentence.kind == "facts":
            wrong = 1 if sentence.kind == "other" else sum(not true(fact, person) for fact in parse(sentence.text))
            if wrong and draws.python(seed, "missed", person.name, sentence.text).random() < weak.missed:
                value += wrong
        elif sentence.kind == "polite":
            value += weak.politeness
        value += weak.length
    return value


def prefers_first(
    person: Person,
    first: str,
    second: str,
    *,
    stopped: tuple[bool, bool] = (True, True),
    seed: int = 0,
    weak: Weaknesses = WEAKNESSES,
) -> bool:
    """Whether the annotator prefers the first answer; deterministic given the seed.

        P(first) = σ( SHARPNESS · [rating(first) - rating(second)] )

    Bradley and Terry 1952. Swapping the two answers swaps the verdict.
    """
    gap = rating(person, first, stopped[0], seed, weak) - rating(person, second, stopped[1], seed, weak)
    return chooses_first(gap, person.name, first, second, seed)


def chooses_first(gap: float, about: str, first: str, second: str, seed: int = 0) -> bool:
    """A choice between two texts whose ratings differ by `gap`. about: what they are about, part of the draw."""
    low, high = sorted((first, second))
    u = draws.python(seed, "choice", about, low, high).random()
    if first != low:
        u = 1 - u
    return u < 1 / (1 + math.exp(-SHARPNESS * gap))
