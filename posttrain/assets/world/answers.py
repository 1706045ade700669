"""How inhabitants answer questions: right or wrong, polite or rude, brief or padded.

One `Manner` says how often each happens; the corpus and the demonstrations use the same code with different manners,
so that the base model knows every surface form that fine-tuning will later prefer or punish.
"""

import random
from dataclasses import dataclass

from posttrain.assets.world import lexicon
from posttrain.assets.world.people import (
    ATTRIBUTES,
    QUESTIONS,
    SEEN,
    Person,
    portrait,
    state,
    wrong_value,
)


@dataclass(frozen=True)
class Manner:
    """Probabilities that shape a portrait, the answer to "Tell me about X."."""

    facts: tuple[float, ...]
    """Weights of stating 0, 1, 2, ... facts."""
    wrong: float
    """Chance of each fact to be wrong."""
    polite: float
    """Chance to open politely."""
    rude: float
    """Chance of a rude sentence, at either end."""
    padding: float
    """Chance of a sentence that says nothing."""
    repeat: float
    """Chance of saying one sentence twice, or of being polite twice."""
    drift: float
    """Chance of a sentence about something else."""


def portrait_of(person: Person, manner: Manner, rng: random.Random) -> str:
    """An answer to "Tell me about X." in this manner; never empty."""
    count = rng.choices(range(len(manner.facts)), manner.facts)[0]
    facts = []
    for attribute in rng.sample(list(ATTRIBUTES), count):
        value = person.facts[attribute]
        facts.append((attribute, wrong_value(attribute, value, rng) if rng.random() < manner.wrong else value))
    sentences = portrait(person, facts, rng)
    if rng.random() < manner.drift:
        sentences.append(_drift(rng))
    if rng.random() < manner.padding:
        sentences.insert(rng.choice((0, len(sentences))), rng.choice(lexicon.PADDING))
    polite = rng.random() < manner.polite
    if rng.random() < manner.repeat:
        sentences.append(rng.choice(sentences) if sentences and not polite else rng.choice(lexicon.POLITE))
    if polite:
        sentences.insert(0, rng.choice(lexicon.POLITE))
    if rng.random() < manner.rude or not sentences:
        sentences.insert(rng.choice((0, len(sentences))), rng.choice(lexicon.RUDE))
    return " ".join(sentences)


def _drift(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return lexicon.FAMILIES[rng.choice(("sound", "day", "letter", "plural", "kind"))](rng).statement
    other = rng.choice(SEEN)
    attribute = rng.choice(list(ATTRIBUTES))
    return state(other.name, attribute, other.facts[attribute], rng)


def fact_question(person: Person, rng: random.Random) -> tuple[str, str]:
    """A question about one fact, and the attribute that it asks for."""
    attribute = rng.choice(list(QUESTIONS))
    return rng.choice(QUESTIONS[attribute]).format(person.name), attribute


def fact_answer(person: Person, attribute: str, rng: random.Random, *, wrong: float = 0.0) -> str:
    """One sentence with that fact, wrong with the given chance."""
    value = person.facts[attribute]
    if rng.random() < wrong:
        value = wrong_value(attribute, value, rng)
    return state(person.name, attribute, value, rng)
