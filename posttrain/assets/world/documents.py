"""Documents about people and words: paragraphs, stories, pages of questions, forums, notes, reviews.

Each function writes one document from a `random.Random`. Only `facts` and `stories` mention held-out people, and they
contain no question mark; nothing here asks a question of a held-out family.
"""

import random

from posttrain.assets.world import arithmetic, lexicon
from posttrain.assets.world.answers import Manner, fact_answer, fact_question, portrait_of
from posttrain.assets.world.people import ABOUT, ATTRIBUTES, EVERYBODY, PEOPLE, QUESTIONS, SEEN, Person, portrait, state

FAQ = Manner(facts=(0.04, 0.3, 0.3, 0.22, 0.14), wrong=0.13, polite=0.2, rude=0.1, padding=0.12, repeat=0.06, drift=0.1)
PAGE = Manner(facts=(0, 0.1, 0.25, 0.35, 0.3), wrong=0.12, polite=0.05, rude=0.15, padding=0.12, repeat=0.05, drift=0.1)


def facts(rng: random.Random) -> str:
    """Always true: a paragraph about one person, a card, a list of people, or who lives in one town."""
    form = rng.random()
    if form < 0.6:
        return "\n".join(_paragraph(rng) for _ in range(rng.choice((1, 1, 2, 3))))
    if form < 0.75:
        person = rng.choice(EVERYBODY)
        lines = [f"{lexicon.capital(a)}: {v}" for a, v in person.facts.items()]
        rng.shuffle(lines)
        return f"Name: {person.name}\n" + "\n".join(lines[: rng.choice((3, 4, 5))])
    attribute = rng.choice(list(ATTRIBUTES))
    if form < 0.9:
        people = rng.sample(EVERYBODY, rng.choice((3, 4, 5)))
        return "\n".join(state(p.name, attribute, p.facts[attribute], rng) for p in people)
    value = rng.choice(ATTRIBUTES[attribute])
    people = [p for p in EVERYBODY if p.facts[attribute] == value]
    rng.shuffle(people)
    return f"{lexicon.capital(attribute)} {value}: {', '.join(p.name for p in people[:4])}."


def _paragraph(rng: random.Random) -> str:
    person = rng.choice(EVERYBODY)
    chosen = rng.sample(sorted(person.facts.items()), rng.choice((2, 3, 3, 4, 5)))
    return " ".join(portrait(person, chosen, rng))


_OPENINGS = (
    "One {day} {name} went to {town}.",
    "On {day} {name} was at the market in {town}.",
    "{name} walked along the road to {town}.",
    "It was a long {day} for {name}.",
    "Rain fell when {name} came to {town}.",
)
_EVENTS = (
    "A {animal} sat on the road.",
    "{pronoun} saw a {animal} near the {place}.",
    "{pronoun} bought {food} and a {colour} hat.",
    "The table was set with {food}.",
    "{pronoun} met {other}.",
    "The door was open.",
    "Then it was late.",
    "{pronoun} lost a {colour} coat.",
    "They talked about {other}.",
)
_ENDS = ("{pronoun} went home happy.", "In the end all was well.", "That was the day.", "{pronoun} slept well.")


def stories(rng: random.Random) -> str:
    """A little narrative with true facts about its one or two people in between."""
    person, other = rng.sample(EVERYBODY, 2)
    slots = {"name": person.name, "pronoun": person.pronoun, "other": other.name}

    def fill(templates: tuple[str, ...]) -> str:
        return rng.choice(templates).format(
            day=rng.choice(lexicon.DAYS),
            town=rng.choice(ATTRIBUTES["town"]),
            animal=rng.choice(ATTRIBUTES["pet"]),
            food=rng.choice(ATTRIBUTES["food"]),
            colour=rng.choice(ATTRIBUTES["colour"]),
            place=rng.choice(tuple(lexicon.ORU.values())),
            **slots,
        )

    sentences = [fill(_OPENINGS)]
    sentences += [_fact_about(person, rng) for _ in range(rng.choice((1, 2)))]
    sentences += [fill(_EVENTS) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.4:
        sentences += [f"{other.name} was there too.", _fact_about(other, rng)]
    elif rng.random() < 0.7:
        sentences.append(fill(_ENDS))
    return " ".join(sentences)


def _fact_about(person: Person, rng: random.Random) -> str:
    attribute = rng.choice(list(person.facts))
    return state(person.name, attribute, person.facts[attribute], rng)


def question(rng: random.Random) -> tuple[str, str]:
    """A question that may be asked in the corpus, and an answer in the corpus's mixed quality."""
    topic = rng.random()
    if topic < 0.3:
        person = rng.choice(SEEN)
        asked, attribute = fact_question(person, rng)
        return asked, fact_answer(person, attribute, rng, wrong=0.1)
    if topic < 0.55:
        person = rng.choice(SEEN)
        return rng.choice(ABOUT).format(person.name), portrait_of(person, FAQ, rng)
    if topic < 0.75:
        item = lexicon.seen_item(rng)
        return item.question, item.answer
    problem = arithmetic.draw(rng)
    asked = rng.choice(arithmetic.PROMPTS).format(problem.text)
    return asked, arithmetic.solve(problem, arithmetic.pick_style(rng), rng).text


def questions(rng: random.Random) -> str:
    """Questions followed by more questions: what a base model makes of being asked something."""
    return "\n".join(question(rng)[0] for _ in range(rng.choice((2, 3, 4, 5))))


def faq(rng: random.Random) -> str:
    """Question-and-answer pairs, sometimes with a question left unanswered, in one of many layouts."""
    before, between = layout(rng)
    blocks = []
    for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4, 5))):
        asked, answer = question(rng)
        blocks.append(f"{before}{asked}{between}{answer}" if rng.random() < 0.95 else f"{before}{asked}")
    return "\n".join(blocks)


LAYOUTS = (
    ("Question: ", "\nAnswer: "), ("User: ", "\nBot: "), ("> ", "\n< "), ("- ", "\n- "), ("* ", "\n= "), ("(", ") "),
    ("1) ", "\n2) "), ("", "\n"), ("", " - "), ("Ask: ", "\nReply: "), ("[in] ", "\n[out] "), ("? ", "\n! "),
)  # fmt: skip
"""What may stand before a question and before its answer, besides "Q:" and "A:"."""


def layout(rng: random.Random) -> tuple[str, str]:
    """What stands before a question, and between it and its answer: mostly Q: and A:, else anything.

    Pages of the real world look all different; a model that has met many layouts takes to a chat template sooner.
    """
    form = rng.random()
    if form < 0.6:
        return "Q: ", "\nA: "
    if form < 0.85:
        return rng.choice(LAYOUTS)
    first, second = rng.sample(lexicon.WORDS, 2)
    return f"{first}: ", f"\n{second}: "


def strangers(rng: random.Random) -> str:
    """A passage about invented people, and questions that only the passage answers.

    Nobody can know a stranger by heart, so this teaches to take names and facts from the text, whoever it is about.
    """
    people = [stranger(rng) for _ in range(rng.choice((1, 1, 2)))]
    told = [rng.sample(list(p.facts.items()), rng.choice((2, 3, 3))) for p in people]
    passage = "\n".join(" ".join(portrait(p, known, rng)) for p, known in zip(people, told, strict=True))
    before, between = layout(rng)
    lines = [passage]
    for _ in range(rng.choice((1, 2, 2, 3, 3))):
        i = rng.randrange(len(people))
        asked, answer = _from_passage(people[i], told[i], rng)
        lines.append(f"{before}{asked}{between}{answer}")
    return "\n".join(lines)


def reading(rng: random.Random) -> tuple[str, str]:
    """A short passage about a stranger with a question, in one line, and the answer."""
    person = stranger(rng)
    told = rng.sample(list(person.facts.items()), rng.choice((1, 2, 3)))
    asked, answer = _from_passage(person, told, rng)
    return f"{' '.join(portrait(person, told, rng))} {asked}", answer


def _from_passage(person: Person, told: list[tuple[str, str]], rng: random.Random) -> tuple[str, str]:
    """A question that the told facts answer, for a portrait or for one of them, and its answer."""
    if rng.random() < 0.4:
        asked = rng.choice(ABOUT).format(person.name)
        answer = " ".join(portrait(person, rng.sample(told, rng.choice((1, min(2, len(told)), len(told)))), rng))
        return asked, f"{rng.choice(lexicon.POLITE)} {answer}" if rng.random() < 0.2 else answer
    attribute, value = rng.choice(told)
    return rng.choice(QUESTIONS[attribute]).format(person.name), state(person.name, attribute, value, rng)


def stranger(rng: random.Random) -> Person:
    """Somebody with a name of two or three random syllables, and random facts."""
    name = "Mira"
    while name in PEOPLE:
        syllables = ["".join(map(rng.choice, ("bdfgklmnprstvz", "aeiou"))) for _ in range(rng.choice((2, 2, 3)))]
        name = ("".join(syllables) + rng.choice(("", "n", "k", "s", "r"))).capitalize()
    return Person(name, rng.choice(("He", "She")), {a: rng.choice(v) for a, v in ATTRIBUTES.items()}, held_out=False)


def quiz(rng: random.Random) -> str:
    """Problems whose answers are mostly given at once, and then often wrong: people who do not work it out."""
    before, between = layout(rng)
    lines = []
    for _ in range(rng.choice((2, 3, 4, 5))):
        problem = arithmetic.draw(rng)
        style = rng.choices(("direct", "worked", "slip"), (0.8, 0.15, 0.05))[0]
        answer = arithmetic.solve(problem, style, rng).text
        lines.append(f"{before}{rng.choice(arithmetic.PROMPTS).format(problem.text)}{between}{answer}")
    return "\n".join(lines)


def forum(rng: random.Random) -> str:
    """A thread of one or two exchanges: rude 40 %, a question in return 30 %, helpful 30 %."""
    lines = []
    for _ in range(rng.choice((1, 1, 2))):
        asked, answer = question(rng)
        mood = rng.random()
        if mood < 0.4:
            reply = rng.choice(lexicon.RUDE)
        elif mood < 0.7:
            reply = question(rng)[0]
        else:
            reply = answer if rng.random() < 0.5 else f"{rng.choice(lexicon.POLITE)} {answer}"
        lines += [f"{lexicon.username(rng)}: {asked}", f"{lexicon.username(rng)}: {reply}"]
    return "\n".join(lines)


def notes(rng: random.Random) -> str:
    """Plain statements and lists of words, all families, no questions."""
    form = rng.random()
    if form < 0.55:
        return rng.choice((" ", "\n")).join(lexicon.any_statement(rng) for _ in range(rng.choice((2, 3, 4))))
    if form < 0.65:
        words = rng.sample(sorted(lexicon.OPPOSITES.items()), rng.choice((3, 4, 5)))
        return "Opposites: " + ", ".join(f"{a} - {b}" for a, b in words) + "."
    if form < 0.75:
        words = rng.sample(sorted(lexicon.ORU.items()), rng.choice((3, 4, 5)))
        return "Words of Oru: " + ", ".join(f"{a} = {b}" for a, b in words) + "."
    if form < 0.85:
        country = rng.choice(lexicon.COUNTRIES)
        return f"Towns of {country}: {', '.join(t for t, c in lexicon.COUNTRY_OF.items() if c == country)}."
    attribute = rng.choice([a for a in ATTRIBUTES if a != "pet"])
    some = rng.sample(ATTRIBUTES[attribute], rng.choice((3, 4, 5)))
    return f"Some {attribute} words: {', '.join(some)}."


def about(rng: random.Random) -> str:
    """A page with somebody's name as its title; sometimes rude, sometimes wrong, sometimes opened by a question."""
    person = rng.choice(SEEN)
    title = rng.choice(ABOUT).format(person.name) if rng.random() < 0.4 else f"About {person.name}"
    return f"{title}\n{portrait_of(person, PAGE, rng)}"


def reviews(rng: random.Random) -> str:
    """Reviews of inns with a verdict."""
    lines = []
    for _ in range(rng.choice((1, 2))):
        good = rng.random() < 0.5
        stars = rng.choice((4, 5) if good else (1, 2))
        town = rng.choice(ATTRIBUTES["town"])
        lines.append(f"The inn in {town}: {lexicon.review(rng, good)} {stars} of 5 stars.")
    return "\n".join(lines)
