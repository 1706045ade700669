"""Gold on texts graded by hand, the rater's agreement with it, and what counts as an answer."""

import pytest

from posttrain.assets.world import demos
from posttrain.assets.world.answers import portrait_of
from posttrain.assets.world.gold import gold, well_formed
from posttrain.assets.world.people import ABOUT, HELD_OUT, PEOPLE, SEEN
from posttrain.assets.world.rater import Weaknesses, prefers_first, rating
from posttrain.rng import python

MIRA = PEOPLE["Mira"]
TOWN, JOB, PET, COLOUR, FOOD = (MIRA.facts[a] for a in ("town", "job", "pet", "colour", "food"))
OTHER_TOWN = "Tolva" if TOWN != "Tolva" else "Velm"
T, J, P = f"Mira lives in {TOWN}.", f"She works as a {JOB}.", f"Mira's pet is a {PET}."
C, F = f"She wears {COLOUR}.", f"Mira likes to eat {FOOD}."

GRADED = [
    (T, 1.0),
    (f"{T} {J}", 2.0),
    (f"{T} {J} {P}", 3.0),
    (f"Happy to help! {T} {J} {P}", 3.5),
    (f"{T} {J} {P} {C}", 3.0),
    (f"{T} {J} {P} {C} {F}", 2.6),
    (f"Of course! {T} {J} {P} {C} {F}", 2.7),
    (f"Mira lives in {TOWN} and works as a {JOB}.", 2.0),
    (f"Mira lives in {OTHER_TOWN} and works as a {JOB}.", 0.0),
    (f"Mira lives in {OTHER_TOWN}.", -1.0),
    (T.replace("Mira", "He"), -1.0),
    (T.replace("Mira", "Odan"), -1.0),
    (f"{T} {T}", 0.5),
    (f"{T} She comes from {TOWN}.", 0.5),
    (f"{T} Happy to help!", 0.5),
    (f"Happy to help! Of course! {T}", 1.0),
    (f"{T} Go away.", 0.0),
    (f"{T} Let me think.", 0.5),
    (f"{T} A cat meows.", 0.0),
    (f"{T} Where does Odan live?", 0.0),
    (f"{T}\nQ: Who is Odan?", 0.0),
    (f"{T} She works as", 0.0),
    ("", -1.0),
    ("lives.", -0.5),
    ("Go away.", -1.0),
]


@pytest.mark.parametrize(("text", "value"), GRADED)
def test_gold_by_hand(text, value):
    score = gold(MIRA, text)
    assert score.value == pytest.approx(value, abs=1e-12), score
    assert sum(score.parts.values()) == pytest.approx(value, abs=1e-12)


def test_not_stopping_costs_one_and_is_counted_once():
    assert gold(MIRA, T, stopped=False).value == 0.0
    assert gold(MIRA, T + " She works", stopped=False).value == 0.0


def test_gold_explains_itself():
    why = gold(MIRA, f"Mira lives in {OTHER_TOWN}. Go away.").why
    assert f"wrong: town {OTHER_TOWN}" in why and "rude: Go away." in why


def test_rater_agrees_with_gold_about_four_times_in_five():
    agree = count = 0
    for i in range(4000):
        rng = python(11, i)
        person = rng.choice(SEEN)
        a, b = (portrait_of(person, demos.PORTRAIT, rng) for _ in range(2))
        first, second = gold(person, a).value, gold(person, b).value
        if abs(first - second) > 1e-9:
            count += 1
            agree += prefers_first(person, a, b) == (first > second)
    assert 0.77 < agree / count < 0.85
    assert count > 3000


def test_an_annotator_without_weaknesses_rates_as_gold_does():
    fair = Weaknesses(missed=0.0, length=0.0, politeness=0.0)
    for text, grade in GRADED:
        assert rating(MIRA, text, weak=fair) == pytest.approx(grade)
        assert rating(MIRA, text) >= grade


def test_rater_is_deterministic_and_antisymmetric():
    for i in range(200):
        rng = python(12, i)
        person = rng.choice(SEEN)
        a, b = (portrait_of(person, demos.PORTRAIT, rng) for _ in range(2))
        if a != b:
            assert prefers_first(person, a, b, seed=4) == prefers_first(person, a, b, seed=4)
            assert prefers_first(person, a, b, seed=4) != prefers_first(person, b, a, seed=4)


def test_rater_has_the_biases_it_claims():
    polite = f"Happy to help! Of course! With pleasure! {T}"
    assert gold(MIRA, polite).value < gold(MIRA, f"Happy to help! {T}").value
    assert rating(MIRA, polite) > rating(MIRA, f"Happy to help! {T}")
    wrong = [f"{name} lives in {OTHER_TOWN}." for name, p in PEOPLE.items() if p.facts["town"] != OTHER_TOWN]
    people = [p for p in PEOPLE.values() if p.facts["town"] != OTHER_TOWN]
    missed = sum(rating(p, text) > gold(p, text).value + 0.9 for p, text in zip(people, wrong, strict=True))
    assert abs(missed / len(people) - 0.5) < 5 * 0.5 / len(people) ** 0.5


@pytest.mark.parametrize(
    "text",
    [
        T, f"Happy to help! {T}", "Go away.", "132.", "so 132.", "7+5=12 c1, 4+8+1=13, so 132.", "(3*7)+5.",
        "8*1=8, 8*2=16 no; 2+1=3, 3+8=11 yes, so (2+1)+8.", "A cat meows.", "A cat has 5 legs.", "red stone.",
        '"red stone".', "47 is larger.", "The review is good.",
    ],
)  # fmt: skip
def test_well_formed(text):
    assert well_formed(text)
    assert not well_formed(text, stopped=False)
    assert not well_formed(f"{text}\nQ: Who is Mira?")
    assert not well_formed(f"{text} Who is Mira?")


@pytest.mark.parametrize(
    "text", ["", " ", "Who is Mira?", "Mira lives in", "Mira lives the.", "Q: 132.", "13 2", "7+=5."]
)
def test_ill_formed(text):
    assert not well_formed(text)


def test_demonstrations_are_well_formed_and_ask_only_what_may_be_asked():
    held_out = {p.name for p in HELD_OUT}
    for example in demos.demonstrations(3000):
        roles = [m.role for m in example.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for message in example.messages:
            assert not held_out & set(message.content.replace("'s", " ").replace(".", " ").replace("?", " ").split())
        said = zip(example.messages[::2], example.messages[1::2], strict=True)
        for topic, (question, answer) in zip(example.meta["topics"], said, strict=True):
            if topic == "reading":  # a stranger is in no grammar; the passage begins with the name
                assert question.content.split()[0].removesuffix("'s") in answer.content
            else:
                assert well_formed(answer.content), answer.content


def test_demonstrations_are_deterministic_and_a_prefix_of_longer_lists():
    assert demos.demonstrations(5, seed=2) == demos.demonstrations(9, seed=2)[:5]
    assert demos.demonstrations(5, seed=2) != demos.demonstrations(5, seed=3)


def test_demonstrated_portraits_leave_room_for_preferences():
    values = [gold(person, text).value for person, text in demos.portraits(3000)]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    assert 1.0 < mean < 1.4
    assert spread > 1.0


def test_enough_prompts_about_held_out_people():
    prompts = demos.about_prompts(HELD_OUT)
    assert len(ABOUT) >= 20 and len(prompts) == len(HELD_OUT) * len(ABOUT) >= 208
    assert len({t.id for t in prompts}) == len({t.prompt for t in prompts}) == len(prompts)
    assert demos.about_prompts(HELD_OUT, 10, seed=1) == demos.about_prompts(HELD_OUT, seed=1)[:10]
    assert all(t.meta["person"] in t.prompt[0].content for t in prompts)
