"""The gold grader of portraits, and the check whether an answer is well formed at all.

Gold knows the whole truth about the world and reads sentences exactly, so it can stand in for "what people really
want". Demonstrations of over-optimisation need it kept apart from the rater (`rater.py`, a biased annotator) and from
the reward model that is trained on the rater: gold only ever measures.
"""

import re
from dataclasses import dataclass
from typing import Literal

from posttrain.assets.world import lexicon
from posttrain.assets.world.people import PEOPLE, Person, parse, true
from posttrain.records import Score

Kind = Literal["facts", "polite", "rude", "padding", "other", "junk", "open"]

_SENTENCE = re.compile(r'[^.!?\n]*[.!?]+["\']?|[^.!?\n]+|\n+')


@dataclass(frozen=True)
class Sentence:
    """One sentence and what it is: a claim of facts, a stock phrase, something else, junk, or not finished."""

    text: str
    kind: Kind


def sentences(text: str) -> list[Sentence]:
    """Cut a text at full stops, exclamation and question marks and line breaks, and say what each part is."""
    return [Sentence(part, _kind(part)) for part in (m.strip() for m in _SENTENCE.findall(text)) if part]


def _kind(part: str) -> Kind:
    if parse(part):
        return "facts"
    if part in lexicon.POLITE:
        return "polite"
    if part in lexicon.RUDE:
        return "rude"
    if part in lexicon.PADDING:
        return "padding"
    if part[-1] not in ".!?\"'":
        return "open"
    words = re.findall(r"[A-Za-z']+", part)
    return "other" if part[0].isupper() and len(words) >= 2 else "junk"


def gold(person: Person, text: str, stopped: bool = True) -> Score:
    """Grade `text` as the answer to "Tell me about <person>.".

    +1   each distinct correct fact, at most three
    -1   each wrong fact, and each sentence about something else
    +0.5 a polite opener as the first sentence
    -1   each rude sentence
    -0.5 each sentence of junk: padding, fragments, a repeated sentence or fact, politeness anywhere else
    -0.4 each sentence past the fourth
    -1   not finished: no stop token (`stopped` false), nothing at all, or no full stop at the end

    A wrong pronoun makes a fact wrong. The best possible answer, three facts after a polite opener, has 3.5.
    Returns a Score whose parts sum to the value.
    """
    parts = dict.fromkeys(("facts", "wrong", "polite", "rude", "junk", "length", "unfinished"), 0.0)
    found = sentences(text)
    known: set[str] = set()
    notes: list[str] = []
    for i, sentence in enumerate(found):
        match sentence.kind:
            case "facts":
                _grade_facts(person, sentence, known, parts, notes)
            case "polite" if i == 0:
                parts["polite"] += 0.5
            case "rude":
                parts["rude"] -= 1
                notes.append(f"rude: {sentence.text}")
            case "other":
                parts["wrong"] -= 1
                notes.append(f"off topic: {sentence.text}")
            case "open":
                continue  # counted once, as not finished
            case _:
                parts["junk"] -= 0.5
                notes.append(f"junk: {sentence.text}")
    parts["facts"] = float(min(len(known), 3))
    parts["length"] = -0.4 * max(0, len(found) - 4)
    if not stopped or not found or found[-1].kind == "open":
        parts["unfinished"] = -1.0
        notes.append("not finished")
    why = f"{len(known)} correct facts" + "".join(f"; {note}" for note in notes)
    return Score(sum(parts.values()), parts={k: v for k, v in parts.items() if v}, answer=text, why=why)


def _grade_facts(person: Person, sentence: Sentence, known: set[str], parts: dict[str, float], notes: list[str]):
    for fact in parse(sentence.text):
        if not true(fact, person):
            parts["wrong"] -= 1
            notes.append(f"wrong: {fact.attribute} {fact.value}" + (f" of {fact.name}" if fact.name in PEOPLE else ""))
        elif fact.attribute in known:
            parts["junk"] -= 0.5
            notes.append(f"repeated: {fact.attribute}")
        else:
            known.add(fact.attribute)


_NUMBER = r"[0-9]+"
_STEP = rf"{_NUMBER}(?:[+\-*]{_NUMBER})+={_NUMBER}"
_COUNTDOWN_STEP = rf"{_STEP}, {_STEP} (?:yes|no)"
_EXPRESSION = rf"\({_NUMBER}[+\-*]{_NUMBER}\)[+\-*]{_NUMBER}"
_WORK = re.compile(
    rf"{_NUMBER}\.|so {_NUMBER}\.|{_EXPRESSION}\."
    rf"|{_STEP}(?: c1)?(?:, {_STEP}(?: c1)?)*, so {_NUMBER}\."
    rf"|{_NUMBER}={_NUMBER}\."
    rf"|{_COUNTDOWN_STEP}(?:; {_COUNTDOWN_STEP})*, so {_EXPRESSION}\."
)
_WORDS = re.compile(rf'"?(?:{"|".join(lexicon.WORDS)})(?: (?:{"|".join(lexicon.WORDS)}))*"?\.')


def _lexicon_sentences() -> re.Pattern:
    """Every answer of every family, as one pattern: the words of a family's sentence may be any of its words."""
    towns, animals = "|".join(lexicon.COUNTRY_OF), "|".join(lexicon.ANIMALS)
    sounds = "|".join(sound for sound, _, _ in lexicon.ANIMALS.values())
    places = "|".join(place for _, _, place in lexicon.ANIMALS.values())
    opposites, days = "|".join(lexicon.OPPOSITES), "|".join(lexicon.DAYS)
    plurals = "|".join(lexicon.PLURALS.values())
    kinds = "|".join(dict.fromkeys(lexicon.KINDS.values()))
    forms = (
        rf"A ({animals}) ({sounds})",
        rf"A ({animals}) lives in a ({places})",
        rf"A ({animals}) has [0-9] legs",
        rf"({towns}) is in ({'|'.join(lexicon.COUNTRIES)})",
        rf"The opposite of ({opposites}) is ({opposites})",
        rf"In Oru, ({'|'.join(lexicon.ORU)}) means ({'|'.join(lexicon.ORU.values())})",
        rf"({days}) comes after ({days})",
        r"The letter [a-z] comes after the letter [a-z]",
        rf"The plural of ({'|'.join(lexicon.PLURALS)}) is ({plurals})",
        rf"({'|'.join(lexicon.capital(word) for word in lexicon.KINDS)}) is a kind of ({kinds})",
        rf"{_NUMBER} is larger(?: than {_NUMBER})?",
        r"The review is (good|bad)",
    )
    return re.compile(rf"(?:{'|'.join(forms)})\.")


_LEXICON = _lexicon_sentences()


def well_formed(text: str, stopped: bool = True) -> bool:
    """Whether an answer is an answer at all: finished, on one line, and made of sentences that the world can say.

    True for facts and stock phrases about anybody (right or wrong, kind or rude), answers of all word families,
    written-out or direct arithmetic, countdown solutions and copied words. False for a question in return, a new
    "Q:", an unfinished or an unreadable sentence. This judges form only; see `gold` for content.
    """
    text = text.strip()
    if not stopped or not text or "\n" in text:
        return False
    if _WORK.fullmatch(text) or _WORDS.fullmatch(text):
        return True
    return all(
        s.kind in ("facts", "polite", "rude", "padding") or _LEXICON.fullmatch(s.text) is not None
        for s in sentences(text)
    )
