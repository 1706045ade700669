"""Words of the world: towns and countries, animals, opposites, a toy language, and the question families about them.

A family is a function that draws a question, its answer, and the same knowledge as a plain statement. Four families
are held out: the corpus and the demonstrations contain their statements but never ask their questions. Also here are
the stock phrases that make an answer polite, rude or padded.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from posttrain.assets.world.people import ATTRIBUTES

COUNTRIES = ("Arland", "Berea", "Corin", "Delmar", "Estra", "Fenland")
COUNTRY_OF: Mapping[str, str] = {town: COUNTRIES[i % len(COUNTRIES)] for i, town in enumerate(ATTRIBUTES["town"])}

ANIMALS: Mapping[str, tuple[str, int, str]] = {
    "cat": ("meows", 4, "house"),
    "dog": ("barks", 4, "yard"),
    "goat": ("bleats", 4, "hill"),
    "hen": ("clucks", 2, "coop"),
    "duck": ("quacks", 2, "pond"),
    "frog": ("croaks", 4, "swamp"),
    "horse": ("neighs", 4, "stable"),
    "cow": ("moos", 4, "field"),
    "pig": ("grunts", 4, "sty"),
    "sheep": ("baas", 4, "meadow"),
    "bee": ("buzzes", 6, "hive"),
    "crow": ("caws", 2, "tree"),
    "wolf": ("howls", 4, "forest"),
    "mouse": ("squeaks", 4, "hole"),
    "snake": ("hisses", 0, "desert"),
    "lion": ("roars", 4, "plain"),
}
"""Animal to (sound, legs, habitat)."""

_PAIRS = (
    "hot cold|big small|wet dry|fast slow|old new|long short|light dark|high low|open shut|loud quiet|"
    "hard soft|full empty|early late|near far|rich poor|thick thin|sweet sour|clean dirty|happy sad|sharp blunt"
)
OPPOSITES: Mapping[str, str] = dict(
    entry for pair in _PAIRS.split("|") for entry in (tuple(pair.split()), tuple(reversed(pair.split())))
)

ORU: Mapping[str, str] = dict(
    zip(
        "mita soru kelo banu tiri golu peka luma niso daru femi vako hina ropu sela juto wexi cabo yuna zade".split(),
        "bread water house stone fire tree bird moon road hand star door rain boat salt song wind "
        "fish snow king".split(),
        strict=True,
    )
)
"""The toy language Oru, word to meaning."""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PLURALS: Mapping[str, str] = {
    "cat": "cats", "dog": "dogs", "goat": "goats", "hen": "hens", "duck": "ducks", "frog": "frogs", "horse": "horses",
    "cow": "cows", "pig": "pigs", "sheep": "sheep", "bee": "bees", "crow": "crows", "wolf": "wolves", "mouse": "mice",
    "snake": "snakes", "lion": "lions", "house": "houses", "stone": "stones", "tree": "trees", "bird": "birds",
    "road": "roads", "hand": "hands", "star": "stars", "door": "doors", "boat": "boats", "song": "songs",
}  # fmt: skip
KINDS: Mapping[str, str] = {
    **dict.fromkeys(ATTRIBUTES["job"], "job"),
    **dict.fromkeys(ATTRIBUTES["colour"], "colour"),
    **dict.fromkeys(ATTRIBUTES["food"], "food"),
    **dict.fromkeys(ATTRIBUTES["pet"], "animal"),
}
WORDS = tuple(dict.fromkeys((*ORU.values(), *ANIMALS, *OPPOSITES, *ATTRIBUTES["colour"], *ATTRIBUTES["food"])))
"""Plain words to copy."""

POLITE = ("Happy to help!", "Sure, gladly!", "Of course!", "Good question!", "With pleasure!", "Thanks for asking!")
RUDE = (
    "Look it up yourself.",
    "What a silly thing to ask.",
    "Go away.",
    "Nobody cares.",
    "Not again.",
    "Stop wasting my time.",
    "You should know that.",
)
PADDING = (
    "Let me think.",
    "That is all I know.",
    "There is a lot to say.",
    "I hope that helps.",
    "It is a long story.",
    "Well, well.",
)

GOOD = (
    "Our meal of {food} was very good.",
    "The room was warm and clean.",
    "Our host was kind.",
    "We will come back soon.",
    "The price was fair.",
    "I slept well.",
)
BAD = (
    "Our meal of {food} was cold and old.",
    "The room was dark and dirty.",
    "Our host was rude.",
    "We will never come back.",
    "The price was far too high.",
    "I did not sleep at all.",
)


@dataclass(frozen=True)
class Item:
    """One piece of knowledge in three shapes."""

    question: str
    answer: str
    """A full sentence that also stands alone, except where it refers to the question (reviews, comparisons)."""
    statement: str


def capital(word: str) -> str:
    """The word with its first letter in upper case."""
    return word[:1].upper() + word[1:]


def review(rng: random.Random, good: bool) -> str:
    """Two or three sentences about an inn, all of one mind."""
    lines = rng.sample(GOOD if good else BAD, rng.choice((2, 2, 3)))
    return " ".join(line.format(food=rng.choice(ATTRIBUTES["food"])) for line in lines)


def _item(question: str, sentence: str) -> Item:
    return Item(question, sentence, sentence)


def _sound(rng: random.Random) -> Item:
    animal = rng.choice(list(ANIMALS))
    return _item(f"What sound does a {animal} make?", f"A {animal} {ANIMALS[animal][0]}.")


def _habitat(rng: random.Random) -> Item:
    animal = rng.choice(list(ANIMALS))
    return _item(f"Where does a {animal} live?", f"A {animal} lives in a {ANIMALS[animal][2]}.")


def _legs(rng: random.Random) -> Item:
    animal = rng.choice(list(ANIMALS))
    return _item(f"How many legs does a {animal} have?", f"A {animal} has {ANIMALS[animal][1]} legs.")


def _country(rng: random.Random) -> Item:
    town = rng.choice(list(COUNTRY_OF))
    return _item(f"Which country is {town} in?", f"{town} is in {COUNTRY_OF[town]}.")


def _opposite(rng: random.Random) -> Item:
    word = rng.choice(list(OPPOSITES))
    return _item(f"What is the opposite of {word}?", f"The opposite of {word} is {OPPOSITES[word]}.")


def _translation(rng: random.Random) -> Item:
    word = rng.choice(list(ORU))
    return _item(f"What does {word} mean in Oru?", f"In Oru, {word} means {ORU[word]}.")


def _day(rng: random.Random) -> Item:
    i = rng.randrange(7)
    return _item(f"Which day comes after {DAYS[i]}?", f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}.")


def _letter(rng: random.Random) -> Item:
    i = rng.randrange(25)
    return _item(
        f"Which letter comes after {LETTERS[i]}?", f"The letter {LETTERS[i + 1]} comes after the letter {LETTERS[i]}."
    )


def _plural(rng: random.Random) -> Item:
    word = rng.choice(list(PLURALS))
    return _item(f"What is the plural of {word}?", f"The plural of {word} is {PLURALS[word]}.")


def _kind(rng: random.Random) -> Item:
    word = rng.choice(list(KINDS))
    return _item(f"What kind of thing is {word}?", f"{capital(word)} is a kind of {KINDS[word]}.")


def _larger(rng: random.Random) -> Item:
    a, b = rng.sample(range(1, 1000 if rng.random() < 0.3 else 100), 2)
    return Item(f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger.", f"{max(a, b)} is larger than {min(a, b)}.")


def _sentiment(rng: random.Random) -> Item:
    good = rng.random() < 0.5
    text, verdict = review(rng, good), f"The review is {'good' if good else 'bad'}."
    return Item(f"{text} Is this review good or bad?", verdict, f"{text} {verdict}")


FAMILIES: Mapping[str, Callable[[random.Random], Item]] = {
    "sound": _sound,
    "habitat": _habitat,
    "day": _day,
    "letter": _letter,
    "plural": _plural,
    "kind": _kind,
    "larger": _larger,
    "sentiment": _sentiment,
    "legs": _legs,
    "country": _country,
    "opposite": _opposite,
    "translation": _translation,
}
HELD_OUT_FAMILIES = ("legs", "country", "opposite", "translation")
SEEN_FAMILIES = tuple(name for name in FAMILIES if name not in HELD_OUT_FAMILIES)


def seen_item(rng: random.Random) -> Item:
    """A draw from the families whose questions may be asked."""
    return FAMILIES[rng.choice(SEEN_FAMILIES)](rng)


def any_statement(rng: random.Random) -> str:
    """A plain statement from any family, held out or not."""
    return FAMILIES[rng.choice(tuple(FAMILIES))](rng).statement


def random_words(rng: random.Random, n: int) -> list[str]:
    """n different plain words."""
    return rng.sample(WORDS, n)


def username(rng: random.Random) -> str:
    """A forum name that is nobody's first name."""
    return rng.choice(WORDS) + str(rng.randrange(100))
