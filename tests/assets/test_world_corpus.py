"""The corpus: pure functions of (seed, i), and what it holds out is really absent."""

import re
from functools import cache

from posttrain.assets.world import arithmetic, corpus, lexicon
from posttrain.assets.world.people import EVERYBODY, HELD_OUT, NAMES, PEOPLE, SEEN, parse, portrait, state, true
from posttrain.rng import python

N = 20_000
POSED = re.compile(
    r"(?:^|Task: |false: |calc\(|What is |Compute |How much is |Work out )([0-9]+(?:[+-][0-9]+)+)", re.MULTILINE
)
"""Where the corpus poses a problem; any other expression is a step of a solution."""
ANY = re.compile(r"(?<![0-9*()+-])[0-9]+(?:[+-][0-9]+)+(?![0-9*)(+-])")
GAMES = re.compile(r"[Mm]ake ([0-9]+) from ([0-9]+), ([0-9]+), ([0-9]+)")


@cache
def documents() -> tuple[str, ...]:
    return tuple(corpus.document(i) for i in range(N))


def terms(expression: str) -> tuple[int, ...]:
    return tuple(int(term) for term in re.findall(r"[+-]?[0-9]+", expression))


def test_documents_are_a_pure_function_of_seed_and_index():
    assert [corpus.document(i, seed=3) for i in (5, 1, 5)] == [corpus.document(i, seed=3) for i in (5, 1, 5)]
    assert corpus.document(0, 0) != corpus.document(0, 1)


def test_validation_is_another_stream():
    train = set(documents())
    fresh = [corpus.validation(i) for i in range(500)]
    long = [text for text in fresh if len(text) > 80]  # short ones may recur by chance
    assert len(long) > 100
    assert sum(text in train for text in long) < 0.02 * len(long)


def test_kinds_follow_their_weights():
    shares = corpus.kinds()
    assert abs(sum(shares.values()) - 1) < 1e-12
    counts = dict.fromkeys(shares, 0)
    for i in range(N):
        counts[corpus.kind_of(i)] += 1
    for kind, share in shares.items():
        five_sigma = 5 * (share * (1 - share) / N) ** 0.5
        assert abs(counts[kind] / N - share) < five_sigma, kind


def test_lengths_fit_the_context():
    lengths = [len(text) for text in documents()]
    assert 60 < sum(lengths) / N < 200
    assert max(lengths) <= 900
    assert all(text == text.strip() and text for text in documents())


def test_held_out_people_occur_and_are_never_asked_about():
    names = re.compile(r"\b(" + "|".join(p.name for p in HELD_OUT) + r")\b")
    about = [text for text in documents() if names.search(text)]
    assert {m for text in about for m in names.findall(text)} == {p.name for p in HELD_OUT}
    marks = ("?", "Q:", "A:", "About", "Draft:", "True or false", "call:", "task:", "Tell me")
    assert [text for text in about if any(mark in text for mark in marks)] == []
    kinds = {corpus.kind_of(i) for i, text in enumerate(documents()) if names.search(text)}
    assert kinds == {"facts", "stories"}


def test_held_out_families_are_stated_and_never_asked():
    asked = re.compile(r"How many legs|Which country|the opposite of \w+\?|What does \w+ mean")
    stated = re.compile(r"has [0-9] legs\.|\w+ is in [A-Z]\w+\.|The opposite of \w+ is|In Oru, \w+ means")
    assert [text for text in documents() if asked.search(text)] == []
    assert sum(stated.search(text) is not None for text in documents()) > 100
    rng = python(0, "families")
    for family in lexicon.HELD_OUT_FAMILIES:  # the patterns above do match what the families ask and state
        item = lexicon.FAMILIES[family](rng)
        assert asked.search(item.question) and stated.search(item.statement)


def test_held_out_problems_are_never_posed():
    found = {terms(m) for text in documents() for m in POSED.findall(text)}
    posed = {p for p in found if max(p) >= 10}  # two single digits are a column of a worked sum, never a problem
    assert len(posed) > 5000
    assert [p for p in posed if arithmetic.held_out(*p)] == []
    games = {tuple(map(int, m)) for text in documents() for m in GAMES.findall(text)}
    assert len(games) > 500
    assert [g for g in games if arithmetic.Countdown(g[1:], g[0], "").held_out] == []


def test_no_held_out_chain_occurs_even_as_a_step():
    # column sums have one-digit terms, running totals two terms: three terms with a larger one can only be a problem
    chains = {terms(m) for text in documents() for m in ANY.findall(text)}
    chains = {c for c in chains if len(c) > 2 and max(c) > 9}
    assert len(chains) > 3000
    assert [c for c in chains if arithmetic.held_out(*c)] == []


def test_fact_documents_are_always_true():
    checked = 0
    for i in range(2000):
        person = None  # whom a pronoun means: the last name
        for sentence in re.findall(r"[^.\n]+\.", corpus.sample("facts", i)):
            facts = parse(sentence.strip())
            person = PEOPLE.get(facts[0].name, person) if facts else None
            assert all(true(fact, person) for fact in facts), sentence
            checked += len(facts)
    assert checked > 5000


def test_the_grammar_reads_every_sentence_that_is_written():
    rng = python(1, "grammar")
    for person in EVERYBODY:
        facts = sorted(person.facts.items())
        for _ in range(20):
            for sentence in portrait(person, facts, rng, twos=0.3):
                found = parse(sentence)
                assert found and all(true(fact, person) for fact in found), sentence
            wrong = state(person.name, "town", "Tolva" if person.facts["town"] != "Tolva" else "Velm", rng)
            assert not any(true(fact, person) for fact in parse(wrong))
    assert parse("Mira lives in Paris.") == () and parse("Mira lives in Tolva") == () and parse("") == ()


def test_population():
    assert len(NAMES) == len(set(NAMES)) == 64
    assert len(HELD_OUT) == 16 and len(SEEN) == 48
    assert len({tuple(p.facts.values()) for p in EVERYBODY}) == 64


def test_the_last_phase_poses_and_asks_nothing_that_is_held_out():
    texts = [corpus.late(i) for i in range(3000)]
    asked = re.compile(r"(?:What is|Compute|How much is|Work out) ([0-9]+(?:[+-][0-9]+)+)[?.]")
    posed = {tuple(map(int, re.findall(r"-?[0-9]+", m))) for text in texts for m in asked.findall(text)}
    assert len(posed) > 1000
    assert [p for p in posed if arithmetic.held_out(*p)] == []
    names = re.compile(r"\b(" + "|".join(p.name for p in HELD_OUT) + r")\b")
    assert [text for text in texts if names.search(text) and ("?" in text or "Tell me" in text)] == []
