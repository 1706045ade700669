"""Weighted sums, abstaining, failures, group rewards, and functions from a user's file."""

import math
from dataclasses import replace

import numpy as np
import pytest

from posttrain.errors import ConfigError, Interrupted
from posttrain.records import Group, Message, Score, Stop, Task, Trajectory
from posttrain.rewards.base import GroupReward, as_score, load_user_function, score
from posttrain.rewards.exact import exact_number

TASK = Task("t", (Message("user", "2 + 2"),), answer="4")


def member(text: str) -> Trajectory:
    return Trajectory(TASK, (*TASK.prompt, Message("assistant", text)), (), Stop.END)


def group(*texts: str) -> Group:
    return Group(TASK, tuple(map(member, texts)))


def length(task, trajectory):
    return len(trajectory.completion)


def values(groups):
    return [m.score.value for g in groups for m in g.members]


def test_the_value_is_the_weighted_sum_and_parts_are_the_components():
    scored = score([group("4", "five")], {"right": (exact_number, 1.0), "length": (length, -0.1)})
    assert values(scored) == pytest.approx([1 - 0.1, -0.4])
    assert scored[0].members[0].score.parts == {"right": 1.0, "length": 1.0}
    assert scored[0].members[0].score.answer == "4"
    assert scored[0].members[1].score.why == "right: no number in the answer"


def test_parts_of_a_component_are_kept_under_its_name():
    rewards = {"style": (lambda task, t: Score(0.5, parts={"polite": 1.0, "short": 0.0}), 2.0)}
    found = score([group("x")], rewards)[0].members[0].score
    assert found.parts == {"style": 0.5, "style.polite": 1.0, "style.short": 0.0} and found.value == 1.0


def test_a_component_that_abstains_leaves_the_answer_unscored():
    def shy(task, trajectory):
        return None if trajectory.completion == "?" else 1.0

    scored = score([group("?", "4")], {"right": (exact_number, 1.0), "shy": (shy, 1.0)})
    assert values(scored) == [None, 2.0]
    assert scored[0].members[0].score.parts == {"right": 0.0}


def test_a_component_of_weight_zero_is_reported_only():
    scored = score(
        [group("4")], {"right": (exact_number, 1.0), "watched": (lambda *_: None, 0.0), "length": (length, 0.0)}
    )
    assert values(scored) == [1.0]
    assert scored[0].members[0].score.parts == {"right": 1.0, "length": 1.0}


def test_a_reward_that_raises_abstains_and_says_why():
    def broken(task, trajectory):
        return 1 / (len(trajectory.completion) - 1)

    scored = score([group("4", "four")], {"broken": (broken, 1.0)})
    assert values(scored) == [None, pytest.approx(1 / 3)]
    assert scored[0].members[0].score.why == "broken: raised ZeroDivisionError: division by zero"


@pytest.mark.parametrize("verdict", [math.nan, math.inf, "1", [1.0]])
def test_a_verdict_that_is_no_number_abstains(verdict):
    scored = score([group("4")], {"odd": (lambda *_: verdict, 1.0)})
    assert values(scored) == [None]
    assert scored[0].members[0].score.why.startswith("odd: raised")


def test_numbers_of_other_libraries_are_numbers():
    assert [as_score(x).value for x in (True, 2, np.float32(0.5), np.int64(3))] == [1.0, 2.0, 0.5, 3.0]


@pytest.mark.parametrize("error", [ConfigError("no such task"), Interrupted("Ctrl-C")])
def test_errors_in_the_request_itself_pass_through(error):
    def refuses(task, trajectory):
        raise error

    with pytest.raises(type(error)):
        score([group("4")], {"r": (refuses, 1.0)})


def test_a_failed_rollout_is_unscored_and_not_shown_to_rewards():
    seen = []

    def watching(task, trajectory):
        seen.append(trajectory.completion)
        return 1.0

    failed = replace(member("half"), stop=Stop.ERROR, error="tool timed out")
    scored = score([Group(TASK, (member("a"), failed, member("b")))], {"w": (watching, 1.0)})
    assert values(scored) == [1.0, None, 1.0] and seen == ["a", "b"]
    assert scored[0].members[1].score.why == "the rollout failed: tool timed out"


def test_group_rewards_see_all_members_at_once():
    def rank(group):
        order = sorted(m.completion for m in group.members)
        return [order.index(m.completion) for m in group.members]

    rewards = {"rank": (GroupReward(rank), 1.0), "right": (exact_number, 10.0)}
    assert values(score([group("b", "4", "c")], rewards)) == [1.0, 10.0, 2.0]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda g: [1.0], "j: raised ValueError: 1 verdicts for 2 members"),
        (lambda g: 1 / 0, "j: raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_group_reward_that_fails_leaves_the_group_unscored(function, why):
    scored = score([group("a", "b")], {"j": (GroupReward(function), 1.0)})
    assert values(scored) == [None, None]
    assert {m.score.why for m in scored[0].members} == {why}


def test_no_reward_at_all_is_refused():
    with pytest.raises(ConfigError, match="no reward is given"):
        score([group("4")], {})


# --- functions of a user -----------------------------------------------------------------------------------------

SOURCE = """
from dataclasses import dataclass
from math import sqrt

@dataclass
class Options:
    scale: float = 2.0

def polite(task, trajectory):
    return Options().scale * ("please" in trajectory.completion)

def alone(text):
    return 1.0

def with_default(task, trajectory, strict=True):
    return 1.0

number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(SOURCE)
    return path


def test_a_users_function_is_loaded_and_used(file):
    rewards = {"polite": (load_user_function(f"{file}:polite"), 1.0)}
    assert values(score([group("4 please", "4")], rewards)) == [2.0, 0.0]
    assert load_user_function(f"{file}:with_default")(TASK, member("")) == 1.0
    assert load_user_function(f"{file}:alone", takes=("group",))([]) == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{f}", "does not name a function: write file.py:function"),
        ("{f}:", "does not name a function"),
        ("rewards.txt:polite", "does not name a function"),
        ("{d}/my_reward.py:polite", 'there is no file .*my_reward.py. Did you mean "my_rewards.py"'),
        ("nowhere/at_all.py:polite", "relative to the working directory"),
        ("{f}:polit", 'no function "polit". Did you mean "polite"'),
        ("{f}:number", "is of type int, not a function"),
        ("{f}:alone", r"called as alone\(task, trajectory\), but is defined as alone\(text\)"),
    ],
)
def test_a_spec_that_does_not_fit_is_told(file, spec, message):
    with pytest.raises(ConfigError, match=message):
        load_user_function(spec.format(f=file, d=file.parent))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport no_such_module\n", "line 2: ModuleNotFoundError"),
        ("def broken(:\n", "SyntaxError"),
        ("", "defines no function"),
    ],
)
def test_a_file_that_fails_is_told(file, source, message):
    file.write_text(source)
    with pytest.raises(ConfigError, match=message):
        load_user_function(f"{file}:polite")
