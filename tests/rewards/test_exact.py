from fractions import Fraction

import pytest

from posttrain.records import Message, Stop, Task, Trajectory
from posttrain.rewards.exact import exact_match, exact_number, marked, read_number


def grade(reward, said, gold):
    task = Task("t", (Message("user", "?"),), answer=gold)
    return reward(task, Trajectory(task, (*task.prompt, Message("assistant", said)), (), Stop.END))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("so 3 and then 5.", 5),
        ("it is 1,234,567.50 in all", Fraction("1234567.5")),
        ("1,23", 23),
        ("-7", -7),
        ("= -7.", -7),
        ("+7", 7),
        ("7-5", 5),
        ("x-5", 5),
        ("(3)-5", 5),
        ("\N{MINUS SIGN}12", -12),
        (".5", Fraction(1, 2)),
        ("costs $.75!", Fraction(3, 4)),
        ("$1,000", 1000),
        ("10%", 10),
        ("1e3", 1000),
        ("-2.5E-1", Fraction(-1, 4)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1.5/2", Fraction(3, 4)),
        ("007", 7),
        ("#### 72", 72),
        ("first #### 3, no: #### 1,080 dollars", 1080),
        (r"\boxed{12} is wrong, \boxed{-13}", -13),
        (r"we get \boxed{\frac{3}{4}} of 100", Fraction(3, 4)),
        (r"\boxed{-\dfrac{3}{4}}", Fraction(-3, 4)),
        (r"\boxed{1\frac{1}{2}}", Fraction(3, 2)),
        (r"\boxed{1{,}200\text{ m}}", 1200),
        (r"\boxed{10\,000}", 10000),
        (r"cut off \boxed{5", 5),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert read_number(text)[0] == value


@pytest.mark.parametrize("text", ["", "no number", "1/0", "####", r"12 \boxed{none}", "1e999999999", "9" * 500])
def test_what_is_no_number_is_none(text):
    assert read_number(text) is None


def test_marks_balance_braces():
    assert marked(r"a \boxed{x^{2} + \frac{1}{2}} b") == r"x^{2} + \frac{1}{2}"
    assert marked("a #### b") == " b"
    assert marked("plain") == "plain"


@pytest.mark.parametrize(
    ("said", "gold", "value"),
    [
        ("The answer is 4.", "4", 1.0),
        ("4.0", "4", 1.0),
        ("0.75", "3/4", 1.0),
        ("1,000", "1000", 1.0),
        ("0.1", "1/10", 1.0),
        ("0.3333333333333333", "1/3", 0.0),
        ("4 or 5", "4", 0.0),
        ("none", "4", 0.0),
        ("#### 18", "He pays 9 * 2 = 18\n#### 18", 1.0),
    ],
)
def test_numbers_are_compared_as_fractions(said, gold, value):
    assert grade(exact_number, said, gold).value == value


def test_scores_explain_themselves():
    assert grade(exact_number, "about 5", "4").why == "5 is not 4"
    assert grade(exact_number, "5,000", "5000").answer == "5,000"


@pytest.mark.parametrize("gold", [None, "four"])
def test_without_a_gold_number_there_is_no_score(gold):
    assert grade(exact_number, "4", gold).value is None


@pytest.mark.parametrize(
    ("said", "gold", "value"),
    [
        ("  the  cat\n", "the cat", 1.0),
        ("The cat", "the cat", 0.0),
        (r"so \boxed{cat}", "cat", 1.0),
        ("cat", None, None),
    ],
)
def test_texts_match_but_for_white_space(said, gold, value):
    assert grade(exact_match, said, gold).value == value


def test_the_gold_answer_always_passes():
    for gold in ("4", "-17", "3/4", "1,234.5", r"\boxed{2\frac{1}{3}}", "#### 72"):
        assert grade(exact_number, gold, gold).value == 1.0
        assert grade(exact_match, gold, gold).value == 1.0
