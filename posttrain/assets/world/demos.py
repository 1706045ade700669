"""Demonstrations for fine-tuning and prompts for sampling, from what may be asked: seen people, seen families,
problems that are not held out.

Demonstrated arithmetic is always right, in two styles; portraits are of mixed quality on purpose (mean gold about 1.2),
so that preference learning after fine-tuning has something left to find.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping

from posttrain import rng as draws
from posttrain.assets.world import arithmetic, exercises, lexicon
from posttrain.assets.world.answers import Manner, fact_answer, fact_question, portrait_of
from posttrain.assets.world.documents import reading
from posttrain.assets.world.people import ABOUT, SEEN, Person
from posttrain.assets.world.rater import SHARPNESS, prefers_first, rating
from posttrain.records import Example, Judged, Message, Pair, Ranking, Task

PORTRAIT = Manner(
    facts=(0, 0.4, 0.35, 0.2, 0.05), wrong=0.15, polite=0.3, rude=0.06, padding=0.15, repeat=0.08, drift=0.08
)


def _fact(rng: random.Random) -> tuple[str, str]:
    person = rng.choice(SEEN)
    asked, attribute = fact_question(person, rng)
    return asked, fact_answer(person, attribute, rng)


def _about(rng: random.Random) -> tuple[str, str]:
    person = rng.choice(SEEN)
    return rng.choice(ABOUT).format(person.name), portrait_of(person, PORTRAIT, rng)


def _arithmetic(rng: random.Random) -> tuple[str, str]:
    problem = arithmetic.draw(rng)
    style = "direct" if rng.random() < 0.55 else "worked"
    return rng.choice(arithmetic.PROMPTS).format(problem.text), arithmetic.solve(problem, style, rng, right=1.0).text


def _copying(rng: random.Random) -> tuple[str, str]:
    item = exercises.copy_item(rng)
    return item.question, item.answer


def _words(rng: random.Random) -> tuple[str, str]:
    item = lexicon.seen_item(rng)
    return item.question, item.answer


TOPICS: Mapping[str, tuple[float, Callable[[random.Random], tuple[str, str]]]] = {
    "fact": (0.20, _fact),
    "about": (0.22, _about),
    "arithmetic": (0.23, _arithmetic),
    "reading": (0.15, reading),
    "words": (0.10, _words),
    "copying": (0.10, _copying),
}
"""Topic to (weight, writer of a question and an answer)."""


def demonstrations(n: int, seed: int = 0) -> list[Example]:
    """n conversations, one in ten with two turns; `meta["topics"]` names what each turn is about."""
    return [_conversation(draws.python(seed, "demo", i)) for i in range(n)]


def _conversation(rng: random.Random) -> Example:
    weights = [weight for weight, _ in TOPICS.values()]
    topics = rng.choices(tuple(TOPICS), weights, k=2 if rng.random() < 0.1 else 1)
    messages: list[Message] = []
    for topic in topics:
        asked, answer = TOPICS[topic][1](rng)
        messages += [Message("user", asked), Message("assistant", answer)]
    return Example(tuple(messages), meta={"topics": tuple(topics)})


def about_prompts(people: Iterable[Person], n: int | None = None, seed: int = 0) -> list[Task]:
    """Portrait prompts: every person in every wording of `people.ABOUT`, in a random order, the first n of them.

    A task's `meta["person"]` is the name; look it up in `people.PEOPLE` to call `gold`.
    """
    pairs = [(person, wording) for person in people for wording in ABOUT]
    pairs = [pairs[i] for i in draws.permutation(len(pairs), seed, "about")]
    return [
        Task(f"about-{person.name}-{ABOUT.index(wording)}", (Message("user", wording.format(person.name)),),
             meta={"person": person.name})
        for person, wording in pairs[:n]
    ]  # fmt: skip


def preferences(n: int, seed: int = 0) -> list[Pair]:
    """n comparisons of two portraits of a seen person, the rater's choice first. Equal texts are never compared."""
    return [_comparison(draws.python(seed, "pair", i), seed) for i in range(n)]


def _comparison(rng: random.Random, seed: int) -> Pair:
    person = rng.choice(SEEN)
    first = second = portrait_of(person, PORTRAIT, rng)
    while second == first:
        second = portrait_of(person, PORTRAIT, rng)
    if not prefers_first(person, first, second, seed=seed):
        first, second = second, first
    asked = Message("user", rng.choice(ABOUT).format(person.name))
    return Pair((asked,), (Message("assistant", first),), (Message("assistant", second),), meta={"person": person.name})


def verdicts(n: int, seed: int = 0) -> list[Judged]:
    """n portraits with a thumb up or down: of every comparison one answer, the chosen or the rejected by turns."""
    return [
        Judged(pair.prompt, pair.chosen if i % 2 == 0 else pair.rejected, i % 2 == 0)
        for i, pair in enumerate(preferences(n, seed))
    ]


def rankings(n: int, seed: int = 0, answers: int = 4) -> list[Ranking]:
    """n rankings of several portraits of a seen person, as the rater scores them: its rating with Gumbel noise.

    With that noise the ranking follows Plackett and Luce, and any two of its answers Bradley and Terry.
    """
    return [_ranking(draws.python(seed, "ranking", i), seed, answers) for i in range(n)]


def _ranking(rng: random.Random, seed: int, answers: int) -> Ranking:
    person = rng.choice(SEEN)
    asked, said = Message("user", rng.choice(ABOUT).format(person.name)), []
    while len(said) < answers:
        if (text := portrait_of(person, PORTRAIT, rng)) not in said:
            said.append(text)
    noise = [-math.log(-math.log(rng.random())) / SHARPNESS for _ in said]
    scores = [rating(person, text, seed=seed) + x for text, x in zip(said, noise, strict=True)]
    return Ranking((asked,), tuple(Message("assistant", text) for text in said), tuple(scores))


def portraits(n: int, seed: int = 0, manner: Manner = PORTRAIT) -> list[tuple[Person, str]]:
    """n portraits of seen people in a manner: material to try graders on without a model."""
    streams = (draws.python(seed, "portrait", i) for i in range(n))
    return [(person := rng.choice(SEEN), portrait_of(person, manner, rng)) for rng in streams]
