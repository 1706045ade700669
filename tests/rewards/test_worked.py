"""The reward of answers that show their work: accuracy and form in equal parts."""

import pytest

from posttrain.data.tasks import tasks
from posttrain.errors import ConfigError
from posttrain.records import Message, Stop, Task, Trajectory
from posttrain.rewards.resolve import rewards_for
from posttrain.rewards.worked import worked

CHAIN = Task("t", (Message("user", "What is 12+30-7?"),), "35", {"task": "chains"})


def answer(text: str, stop: Stop = Stop.END, task: Task = CHAIN) -> Trajectory:
    return Trajectory(task, (*task.prompt, Message("assistant", text)), (), stop)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12+30=42, 42-7=35, so 35.", 1.0),
        ("12+30=42, 42-7=36, so 36.", 0.5),  # in form, and wrong
        ("35.", 0.5),  # right, and shows nothing
        ("so 35.", 0.5),
        ("34.", 0.0),
        ("12+30=42, 42-7=35, so 35.\nQ: What is 1+1?", 0.0),  # runs on, and ends with another number
        ("12+30=42, 42-7=35, so 35.\n", 1.0),
        ("12+30=42, 42-7=35, so 35", 0.5),  # not finished
    ],
)
def test_half_for_each(text, value):
    found = worked(CHAIN, answer(text))
    assert found.value == value and found.value == (found.parts["accuracy"] + found.parts["form"]) / 2


def test_an_answer_cut_off_is_not_in_form():
    assert worked(CHAIN, answer("12+30=42, 42-7=35, so 35.", Stop.LENGTH)).value == 0.5


def test_what_shows_no_work_has_no_form():
    (task,) = tasks("copy", 1)
    assert worked(task, answer(task.answer, task=task)).value == 1.0
    assert worked(task, answer("1=1, so 1.", task=task)).value == 0.0


def test_it_is_on_the_menu_and_needs_a_verifier():
    assert rewards_for("worked", [CHAIN])["worked"][0] is worked
    with pytest.raises(ConfigError, match="no verifier"):
        worked(Task("t", CHAIN.prompt, "35"), answer("35."))
