"""Summaries: what gold counts, that the splits are apart, and that the rater is one annotator."""

import re
from statistics import fmean

from posttrain.assets.world import summaries
from posttrain.assets.world.people import PEOPLE
from posttrain.data.sources import read
from posttrain.rng import python


def task_of(text: str, name: str = "Rakas"):
    """The task whose passage is `text`."""
    told = dict.fromkeys(("town", "job", "pet", "colour", "food"), "")
    task = summaries.tasks(1)[0]
    return type(task)("t", task.prompt, meta={"name": name, "pronoun": "She", "told": told | {
        "town": "Tarn", "job": "potter", "pet": "lion", "colour": "blue"}})  # fmt: skip


def test_gold_counts_what_the_passage_tells():
    task = task_of("")
    for text, value in (
        ("Rakas lives in Tarn and works as a potter. She keeps a lion.", 3.0),  # the best
        ("Rakas lives in Tarn.", 1.0),
        ("Rakas lives in Tarn. She eats corn every day.", 0.0),  # not told
        ("Rakas lives in Velm.", -1.0),
        ("He lives in Tarn.", -1.0),
        ("Rakas lives in Tarn. She works as a potter. She keeps a lion.", 2.5),  # a sentence too long
        ("Mira lives in Tarn.", -1.0),  # somebody else
        ("Rakas lives in Tarn. The door was open.", 0.0),  # what does not matter
    ):
        assert summaries.grade(task, text).value == value, text
    assert summaries.grade(task, "Rakas lives in Tarn.", stopped=False).value == 0.0
    assert sum(summaries.grade(task, "Rakas lives in Tarn. She eats corn every day. Well.").parts.values()) == (
        summaries.grade(task, "Rakas lives in Tarn. She eats corn every day. Well.").value
    )


def test_passages_tell_four_facts_of_a_stranger():
    for task in summaries.tasks(50):
        person = summaries.about(task)
        assert person.name not in PEOPLE and sum(map(bool, person.facts.values())) == summaries.TOLD
        text = task.prompt[0].content
        assert text.endswith(" Sum it up.") and all(re.search(rf"\b{v}\b", text) for v in person.facts.values() if v)


def test_a_perfect_summary_is_possible_and_references_are_not_perfect():
    tasks, shown = summaries.tasks(200), summaries.demonstrations(200)
    values = [summaries.grade(t, e.messages[1].content).value for t, e in zip(tasks, shown, strict=True)]
    assert 0 < fmean(values) < 1.5 and max(values) >= 2.5
    assert [e.messages[0] for e in shown] == [t.prompt[0] for t in tasks]
    lead = fmean(summaries.grade(t, summaries.opening(t.prompt[0].content)).value for t in tasks)
    assert lead < 2


def test_the_splits_are_apart_and_named():
    train, test = summaries.tasks(100), summaries.tasks(100, split="test")
    assert not {t.prompt[0].content for t in train} & {t.prompt[0].content for t in test}
    assert [t.prompt for t in read("builtin:summaries:test", "prompt", limit=5).records] == [t.prompt for t in test[:5]]
    assert len(read("builtin:summaries", "sft", limit=5).records) == 5


def test_the_rater_is_one_annotator_with_a_taste_for_length():
    votes = []
    for i, task in enumerate(summaries.tasks(200)):
        a, b = (summaries.reference(task, python(i, side)) for side in "ab")
        if a != b:
            first = summaries.prefers_first(task, a, b)
            assert first != summaries.prefers_first(task, b, a)
            gap = summaries.grade(task, a).value - summaries.grade(task, b).value
            votes += [float(first == (gap > 0))] * (gap != 0)
    assert 0.6 < fmean(votes) < 0.95, "the rater agrees with gold as people do: mostly"
