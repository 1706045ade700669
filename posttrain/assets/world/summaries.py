"""Passages to sum up, references of mixed quality, a gold grader, and a rater of summaries.

A passage tells four facts about a stranger, whom nobody can know by heart, between sentences that matter to nobody. A
good summary tells three of the facts in two sentences. The corpus holds such passages with questions, never with a
summary: that is what demonstrations teach. As with portraits, the rater has biases and gold only ever measures.
"""

import random
import re
from dataclasses import replace

from posttrain import rng as draws
from posttrain.assets.world import rater
from posttrain.assets.world.answers import Manner, portrait_of
from posttrain.assets.world.documents import stranger
from posttrain.assets.world.gold import gold, sentences
from posttrain.assets.world.people import ATTRIBUTES, NAMES, Person, portrait
from posttrain.records import Example, Message, Score, Task

TOLD = 4
SENTENCES = 2
"""A summary may have so many sentences; each one more costs."""
LONGER = 0.5
_REFERENCE = Manner(
    facts=(0, 0.35, 0.4, 0.2, 0.05), wrong=0.1, polite=0.0, rude=0.03, padding=0.2, repeat=0.05, drift=0.05
)
_ASIDES = ("The door was open.", "Then it was late.", "It was a long day.", "Rain fell.", "The table was set.")


def passage(rng: random.Random) -> tuple[str, Person]:
    """A text and whom it is about, with the facts that it tells; those that it does not tell are empty."""
    person = stranger(rng)
    told = rng.sample(list(person.facts.items()), TOLD)
    lines = portrait(person, told, rng, twos=0.3)
    for aside in rng.sample(_ASIDES, 2):
        lines.insert(rng.randrange(1, len(lines) + 1), aside)
    facts = dict.fromkeys(ATTRIBUTES, "") | dict(told)
    return " ".join(lines), replace(person, facts=facts)


def tasks(n: int, seed: int = 0, split: str = "train") -> list[Task]:
    """n passages to be summed up; the splits are independent streams of strangers."""
    made = []
    for i in range(n):
        text, person = passage(draws.python(seed, "summary", split, i))
        meta = {"name": person.name, "pronoun": person.pronoun, "told": dict(person.facts)}
        made.append(Task(f"summary-{split}-{seed}-{i}", (Message("user", f"{text} Sum it up."),), meta=meta))
    return made


def demonstrations(n: int, seed: int = 0) -> list[Example]:
    """n passages with references as people write them: some leave facts out, some err, some pad."""
    made = []
    for i, task in enumerate(tasks(n, seed)):
        answer = reference(task, draws.python(seed, "reference", i))
        made.append(Example((*task.prompt, Message("assistant", answer)), meta={"id": task.id}))
    return made


def reference(task: Task, rng: random.Random) -> str:
    """A summary as people write it."""
    person = about(task)
    told = {a: v for a, v in person.facts.items() if v}
    missing = {a: rng.choice(ATTRIBUTES[a]) for a in ATTRIBUTES if a not in told}  # invented where it is stated
    return portrait_of(replace(person, facts=told | missing), _REFERENCE, rng)


def about(task: Task) -> Person:
    """Whom a task's passage is about, with what it tells."""
    return Person(task.meta["name"], task.meta["pronoun"], task.meta["told"], held_out=False)


def grade(task: Task, text: str, stopped: bool = True) -> Score:
    """Gold's grade of a summary: as of a portrait (`gold.gold`), and less for every sentence past the second.

    +1 for each distinct fact of the passage, at most three; -1 for each that it does not tell. The best has 3.
    """
    found = gold(*_known(task, text), stopped)
    extra = max(0, len(sentences(text)) - SENTENCES)
    parts = {**found.parts, **({"longer": -LONGER * extra} if extra else {})}
    return replace(found, value=found.value - LONGER * extra, parts=parts)


def prefers_first(task: Task, first: str, second: str, *, seed: int = 0) -> bool:
    """Whether the rater prefers the first of two summaries: gold's grade through the biases of `rater.rating`."""
    gap = _rating(task, first, seed) - _rating(task, second, seed)
    return rater.chooses_first(gap, task.id, first, second, seed)


def _rating(task: Task, text: str, seed: int) -> float:
    longer = LONGER * max(0, len(sentences(text)) - SENTENCES)
    return rater.rating(*_known(task, text), seed=seed) - longer


def _known(task: Task, text: str) -> tuple[Person, str]:
    """The stranger under a name that the world's grammar knows, and the text about them."""
    person, name = about(task), next(name for name in NAMES if name not in text)
    return replace(person, name=name), re.sub(rf"\b{person.name}\b", name, text)


def opening(text: str, count: int = SENTENCES) -> str:
    """The first sentences of a passage: the summary that needs no model."""
    return " ".join(s.text for s in sentences(text)[:count])
