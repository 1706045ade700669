"""Who lives in the world, and the closed grammar of sentences that state a fact about somebody.

64 people have a town, a job, a pet, a colour and a food. Sixteen of them are held out: the corpus states their facts
in paragraphs and stories but never in anything that looks like a question with an answer, so a fine-tuned model that
answers questions about them has learnt to answer, not remembered an answer. `parse` reads exactly the sentences that
`state` and `state_two` can write.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain import rng as draws

NAMES = (
    "Mira Odan Tess Karl Lena Bram Nils Kora Vera Hugo Ines Otto Lara Finn Greta Ivan "
    "Sofi Emil Rosa Jonas Dora Pavel Nora Felix Ada Boris Cleo Dirk Elsa Fritz Gwen Henk "
    "Ilse Jarl Kim Leon Maud Ned Olga Piet Rita Sven Tilda Ugo Viola Wim Yara Zeno "
    "Anton Berta Cosmo Delia Edgar Flora Gus Hilda Igor June Kurt Lotte Marek Nadia Oskar Petra"
).split()
_WOMEN = frozenset(
    "Mira Tess Lena Kora Vera Ines Lara Greta Sofi Rosa Dora Nora Ada Cleo Elsa Gwen Ilse Kim Maud Olga Rita Tilda "
    "Viola Yara Berta Delia Flora Hilda June Lotte Nadia Petra".split()
)

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "town": tuple("Tolva Velm Brin Karsk Oster Lund Mora Selk Dorn Pell Harn Wick Tarn Aven Rusk Norby".split()),
    "job": tuple(
        "baker smith nurse pilot teacher farmer tailor miner sailor potter weaver doctor cook clerk "
        "painter miller".split()
    ),
    "pet": tuple("cat dog goat hen duck frog horse cow pig sheep bee crow wolf mouse snake lion".split()),
    "colour": tuple("red blue green black white grey pink brown gold yellow purple silver".split()),
    "food": tuple("rice soup bread fish beans cheese plums noodles pears stew honey nuts corn figs cake eggs".split()),
}
"""Attribute to its possible values. No job or pet needs "an"."""

VERB_PHRASES: Mapping[str, tuple[str, ...]] = {
    "town": ("lives in {}", "has a home in {}", "comes from {}"),
    "job": ("works as a {}", "is a {}"),
    "pet": ("has a pet {}", "keeps a {}"),
    "colour": ("likes the colour {}", "wears {}"),
    "food": ("likes to eat {}", "eats {} every day"),
}
POSSESSIVES: Mapping[str, str] = {
    "town": "home town is {}",
    "job": "job is {}",
    "pet": "pet is a {}",
    "colour": "favourite colour is {}",
    "food": "favourite food is {}",
}
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "town": ("Where does {} live?", "Which town does {} live in?", "What is the home town of {}?"),
    "job": ("What is the job of {}?", "What does {} do for work?", "What work does {} do?"),
    "pet": ("What pet does {} have?", "Which animal does {} keep?", "What is the pet of {}?"),
    "colour": ("What colour does {} like?", "Which colour does {} wear?", "What is the favourite colour of {}?"),
    "food": ("What does {} like to eat?", "What does {} eat every day?", "What is the favourite food of {}?"),
}
ABOUT = (
    "Tell me about {}.",
    "Who is {}?",
    "What do you know about {}?",
    "Describe {}.",
    "Please tell me about {}.",
    "Say something about {}.",
    "What can you say about {}?",
    "Can you tell me about {}?",
    "Could you describe {}?",
    "I want to know about {}.",
    "Give me some facts about {}.",
    "Do you know {}?",
    "Write about {}.",
    "Introduce {}.",
    "Tell me who {} is.",
    "What should I know about {}?",
    "Please describe {}.",
    "Help me learn about {}.",
    "Write a few words about {}.",
    "Who is this {}?",
    "Tell me something about {}.",
    "What is there to say about {}?",
)
"""Ways of asking for a short portrait; the first is the standard one."""


@dataclass(frozen=True)
class Person:
    """One inhabitant with all that is true about them."""

    name: str
    pronoun: str
    facts: Mapping[str, str]
    held_out: bool


@dataclass(frozen=True)
class Fact:
    """What a sentence claims: that `attribute` of `name` is `value`. The name may be a pronoun."""

    name: str
    attribute: str
    value: str


def _settle() -> dict[str, Person]:
    """Give everybody their facts: values are dealt from shuffled decks, so that each is used about equally often."""
    decks = {}
    for attribute, values in ATTRIBUTES.items():
        deck = (list(values) * len(NAMES))[: len(NAMES)]
        draws.python(0, "world", attribute).shuffle(deck)
        decks[attribute] = deck
    return {
        name: Person(name, "She" if name in _WOMEN else "He", {a: decks[a][i] for a in ATTRIBUTES}, held_out=i % 4 == 3)
        for i, name in enumerate(NAMES)
    }


PEOPLE: Mapping[str, Person] = _settle()
EVERYBODY = tuple(PEOPLE.values())
SEEN = tuple(p for p in EVERYBODY if not p.held_out)
HELD_OUT = tuple(p for p in EVERYBODY if p.held_out)
VALIDATION, TEST = HELD_OUT[:6], HELD_OUT[6:]
"""Held-out people on whom settings of recipes are chosen, and those on whom they are reported."""


def wrong_value(attribute: str, value: str, rng: random.Random) -> str:
    """Another value of the same attribute."""
    return rng.choice([v for v in ATTRIBUTES[attribute] if v != value])


def state(subject: str, attribute: str, value: str, rng: random.Random) -> str:
    """One sentence about one fact; the subject is a name or a pronoun."""
    if subject in PEOPLE and rng.random() < 0.2:
        return f"{subject}'s {POSSESSIVES[attribute].format(value)}."
    return f"{subject} {rng.choice(VERB_PHRASES[attribute]).format(value)}."


def state_two(subject: str, first: tuple[str, str], second: tuple[str, str], rng: random.Random) -> str:
    """One sentence about two facts, each an (attribute, value)."""
    parts = [rng.choice(VERB_PHRASES[attribute]).format(value) for attribute, value in (first, second)]
    return f"{subject} {parts[0]} and {parts[1]}."


def portrait(person: Person, facts: list[tuple[str, str]], rng: random.Random, *, twos: float = 0.12) -> list[str]:
    """Sentences that state `facts` (attribute, value) in this order; about `twos` of them state two at once."""
    sentences: list[str] = []
    i = 0
    while i < len(facts):
        subject = person.pronoun if sentences and rng.random() < 0.5 else person.name
        if i + 1 < len(facts) and rng.random() < twos:
            sentences.append(state_two(subject, facts[i], facts[i + 1], rng))
            i += 2
        else:
            sentences.append(state(subject, *facts[i], rng))
            i += 1
    return sentences


def _grammar() -> tuple[re.Pattern, dict[str, tuple[str, str]]]:
    phrases = {}
    for attribute, values in ATTRIBUTES.items():
        for template in VERB_PHRASES[attribute]:
            phrases |= {template.format(value): (attribute, value) for value in values}
    words = "|".join(re.escape(phrase) for phrase in phrases)
    pattern = re.compile(rf"(?P<subject>{'|'.join(NAMES)}|He|She) (?P<one>{words})(?: and (?P<two>{words}))?\.")
    return pattern, phrases


_SENTENCE, _PHRASES = _grammar()
_OWNED = {
    POSSESSIVES[attribute].format(value): (attribute, value)
    for attribute, values in ATTRIBUTES.items()
    for value in values
}


def parse(sentence: str) -> tuple[Fact, ...]:
    """The facts that a sentence claims, true or not; empty when it is not a sentence of the grammar."""
    if found := _SENTENCE.fullmatch(sentence):
        phrases = [p for p in (found["one"], found["two"]) if p]
        return tuple(Fact(found["subject"], *_PHRASES[p]) for p in phrases)
    name, owner, rest = sentence.partition("'s ")
    if owner and name in PEOPLE and rest.endswith(".") and rest[:-1] in _OWNED:
        return (Fact(name, *_OWNED[rest[:-1]]),)
    return ()


def true(fact: Fact, person: Person) -> bool:
    """Whether the fact is about this person (by name or by the right pronoun) and correct."""
    return fact.name in (person.name, person.pronoun) and person.facts[fact.attribute] == fact.value
