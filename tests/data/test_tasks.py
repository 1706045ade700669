"""Tasks are split by what the world holds out; verifiers accept the gold answer and reject changed ones."""

import random
from fractions import Fraction

import pytest

from posttrain.assets.world import arithmetic, lexicon
from posttrain.assets.world.people import PEOPLE
from posttrain.data.expressions import NotAnExpression, value_of
from posttrain.data.tasks import NAMES, last_number, tasks, verify
from posttrain.errors import ConfigError
from posttrain.records import Message, Task

BOTH = ("train", "test")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", BOTH)
@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_gold_answers_pass_and_changed_ones_fail(name, split, difficulty):
    rng = random.Random(0)
    for task in tasks(name, 150, seed=1, split=split, difficulty=difficulty):
        assert verify(task, task.answer).value == 1.0, task
        assert verify(task, f" {task.answer} ").value == 1.0
        for changed in mutations(task, rng):
            assert verify(task, changed).value == 0.0, (task, changed)
        assert verify(task, "").value == verify(task, "I do not know").value == 0.0


def mutations(task: Task, rng: random.Random) -> list[str]:
    """Answers that must be wrong for this task."""
    gold = task.answer
    match task.meta["task"]:
        case "sums" | "chains":
            return [str(int(gold) + 1), f"-{gold}" if gold != "0" else "1", gold + "1", f"{gold} or {int(gold) + 10}"]
        case "countdown":
            return [gold + "+0", gold.replace(")", ""), f"{gold}-1", str(task.meta["target"]), f"2^{gold}", f"x{gold}"]
        case "copy" | "words":
            return [gold[1:], "x" + gold, gold.swapcase() if gold.swapcase() != gold else gold * 2, f"{gold} {gold}"]
        case _:
            person, attribute = PEOPLE[task.meta["person"]], task.meta["attribute"]
            others = [p for p in PEOPLE.values() if p.facts[attribute] != gold]
            other = rng.choice(others)
            return [other.facts[attribute], f"{other.name}'s {attribute} is {gold}.", f"{person.name} is {gold}"]


@pytest.mark.parametrize("split", BOTH)
def test_splits_respect_what_is_held_out(split):
    held_out = split == "test"
    for name in ("sums", "chains"):
        for task in tasks(name, 300, split=split):
            problem = task.meta["problem"]
            terms = tuple(int(t) for t in problem.replace("-", "+-").split("+"))
            assert arithmetic.held_out(*terms) == held_out
            assert task.prompt == (Message("user", f"What is {problem}?"),)
            assert sum(terms) == int(task.answer)
    for task in tasks("countdown", 300, split=split):
        numbers, target = task.meta["numbers"], task.meta["target"]
        assert arithmetic.held_out(*sorted(numbers), target, 0) == held_out
    for task in tasks("facts", 300, split=split):
        assert PEOPLE[task.meta["person"]].held_out == held_out
    for task in tasks("words", 300, split=split):
        assert (task.meta["family"] in lexicon.HELD_OUT_FAMILIES) == held_out


def test_worked_answers_pass():
    sums = Task("s", (Message("user", "What is 47+85?"),), "132", {"task": "sums"})
    assert verify(sums, "7+5=12 c1, 4+8+1=13, so 132.").value == 1.0
    assert verify(sums, "132. That was 47+85.").value == 0.0
    meta = {"task": "countdown", "numbers": [1, 8, 2], "target": 11}
    game = Task("c", (Message("user", "Make 11 from 1, 8, 2."),), "(2+1)+8", meta)
    assert verify(game, "8*1=8, 8*2=16 no; 2+1=3, 3+8=11 yes, so (2+1)+8.").value == 1.0
    assert verify(game, "1+2+8 = 11").value == 1.0
    assert verify(game, "-1+2+8+2").value == 0.0
    assert "uses" in verify(game, "8+3").why and "reaches" in verify(game, "8-1-2").why


def test_a_fact_may_be_stated_in_any_form_but_not_contradicted():
    mira = PEOPLE["Mira"].facts
    meta = {"task": "facts", "person": "Mira", "attribute": "town"}
    task = Task("f", (Message("user", "Where does Mira live?"),), mira["town"], meta)
    for text in (f"Mira comes from {mira['town']}.", f"Of course! She has a home in {mira['town']}.", mira["town"]):
        assert verify(task, text).value == 1.0
    assert verify(task, f"Mira works as a {mira['job']}.").value == 0.0
    for town in (t for t in ("Tolva", "Velm") if t != mira["town"]):
        assert verify(task, f"Mira lives in {mira['town']}. Mira lives in {town}.").value == 0.0


def test_unscored_is_not_zero():
    task = Task("s", (Message("user", "What is 1+1?"),), None, {"task": "sums"})
    assert verify(task, "2").value is None


def test_tasks_are_deterministic_prefixes():
    assert tasks("sums", 4, seed=5) == tasks("sums", 9, seed=5)[:4]
    assert tasks("sums", 4, seed=5) != tasks("sums", 4, seed=6)


def test_errors_name_the_choices():
    with pytest.raises(ConfigError, match='Did you mean "sums"'):
        tasks("sum", 1)
    with pytest.raises(ConfigError, match="'train', 'test'"):
        tasks("sums", 1, split="dev")
    with pytest.raises(ConfigError, match="difficulty"):
        tasks("sums", 1, difficulty=9)
    with pytest.raises(ConfigError, match="no verifier"):
        verify(Task("x", (), "1", {}), "1")


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 132.", "132"), ("7-5", "5"), ("= -5", "-5"), ("007", "7"), ("1.5", "1.5"), ("none", None), ("٣", None)],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_expressions_against_python():
    rng = random.Random(3)

    def grow(depth: int) -> str:
        if depth == 0 or rng.random() < 0.3:
            return str(rng.randrange(1, 20))
        text = f"{grow(depth - 1)}{rng.choice('+-*/')}{grow(depth - 1)}"
        return f"({text})" if rng.random() < 0.5 else text

    for _ in range(300):
        text = grow(3)
        if len(text) > 100:
            continue
        try:
            wanted = eval("".join(f"Fraction({p})" if p.isdigit() else p for p in pieces(text)))  # our own text
        except ZeroDivisionError:
            with pytest.raises(NotAnExpression, match="zero"):
                value_of(text)
        else:
            assert value_of(text) == wanted
    assert value_of("-2+(3)") == Fraction(1)


def pieces(text: str) -> list[str]:
    return "".join(c if c.isdigit() else f" {c} " for c in text).split()


@pytest.mark.parametrize(
    "text", ["", "1+", "(1", "1)", "2**3", "1 2", "__import__('os')", "9" * 101, "(" * 90, "1/0", "²"]
)
def test_what_is_not_an_expression(text):
    with pytest.raises(NotAnExpression):
        value_of(text)
