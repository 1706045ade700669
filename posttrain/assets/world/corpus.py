"""The mixture that the embedded base model is pre-trained on: document i of a seed, as a pure function.

The table below is the whole recipe. Weights need not sum to one. A change of any weight or of any word changes the
corpus, so a base model belongs to one state of these files.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from random import Random

from posttrain import rng as draws
from posttrain.assets.world import documents, exercises, lexicon
from posttrain.assets.world.people import ATTRIBUTES, NAMES

KINDS: Mapping[str, tuple[float, Callable[[Random], str]]] = {
    "arithmetic": (0.31, exercises.worked_arithmetic),
    "search": (0.05, exercises.search_traces),
    "facts": (0.13, documents.facts),
    "strangers": (0.08, documents.strangers),
    "stories": (0.06, documents.stories),
    "questions": (0.07, documents.questions),
    "faq": (0.09, documents.faq),
    "forum": (0.06, documents.forum),
    "notes": (0.07, documents.notes),
    "about": (0.06, documents.about),
    "copying": (0.08, exercises.copying),
    "tool_logs": (0.04, exercises.tool_logs),
    "critique": (0.03, exercises.critique),
    "true_false": (0.02, exercises.true_false),
    "steps": (0.02, exercises.marked_steps),
    "reviews": (0.02, documents.reviews),
}
"""Kind to (weight, writer)."""

_NAMES = tuple(KINDS)
_EDGES = tuple(accumulate(weight for weight, _ in KINDS.values()))


def kinds() -> dict[str, float]:
    """The share of documents of each kind; sums to one."""
    return {name: weight / _EDGES[-1] for name, (weight, _) in KINDS.items()}


def document(i: int, seed: int = 0) -> str:
    """Document i of the corpus with this seed."""
    return _write(draws.python(seed, "doc", i))


def late(i: int, seed: int = 0) -> str:
    """Document i of the last, short phase: a third are quizzes, the rest is the mixture.

    It is the dial of the base's habits: asked a problem it now mostly guesses, and works it out when sampled luckily.
    """
    rng = draws.python(seed, "late", i)
    return documents.quiz(rng) if rng.random() < 0.35 else _write(rng)


def validation(i: int, seed: int = 0) -> str:
    """Document i of a stream that shares no draw with `document` (the same kinds and facts, other words)."""
    return _write(draws.python(seed, "validation", i))


def digest(n: int = 2000) -> str:
    """A hash of the first n documents of all streams: a base model belongs to one digest."""
    hasher = hashlib.blake2b(digest_size=8)
    for i in range(n):
        hasher.update(document(i).encode() + late(i).encode() + validation(i).encode())
    return hasher.hexdigest()


def kind_of(i: int, seed: int = 0) -> str:
    """The kind of document i."""
    return _kind(draws.python(seed, "doc", i))


def sample(kind: str, i: int, seed: int = 0) -> str:
    """Document i of one kind only, to look at."""
    return KINDS[kind][1](draws.python(seed, "sample", kind, i))


def _write(rng: Random) -> str:
    return KINDS[_kind(rng)][1](rng)


def _kind(rng: Random) -> str:
    return rng.choices(_NAMES, cum_weights=_EDGES)[0]


def spelling(n: int, seed: int = 0) -> Iterator[str]:
    """The first n documents with all names and words of the world mixed in: what the tokenizer is trained on.

    Without the extra lines the held-out people, rarer by design, would be spelt in more pieces than the others, and a
    comparison of the two groups would partly measure the tokenizer.
    """
    names = [*NAMES, *ATTRIBUTES["town"], *lexicon.COUNTRIES]
    words = list(dict.fromkeys([*lexicon.WORDS, *lexicon.ORU, *ATTRIBUTES["job"], *lexicon.PLURALS.values()]))
    for i in range(n):
        yield document(i, seed)
        if i % 25 == 0:
            yield f"The names are {' '.join(names)}."
        if i % 100 == 0:
            yield f"The words are {' '.join(words)}."
