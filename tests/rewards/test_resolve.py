"""Rewards by name: several with weights, the plainest reward for form, and what is refused."""

import pytest

from posttrain.errors import ConfigError
from posttrain.records import Message, Stop, Task, Trajectory
from posttrain.rewards.resolve import ended, rewards_for


def test_several_rewards_with_weights(tmp_path):
    task = Task("t", (Message("user", "?"),), "5", {})
    found = rewards_for("auto + 0.2 * ended", [task])
    assert {name: weight for name, (_, weight) in found.items()} == {"exact_number": 1.0, "ended": 0.2}
    (tmp_path / "mine.py").write_text(
        "def a(task, trajectory):\n    return 1.0\n\ndef b(task, trajectory):\n    return 2.0\n"
    )
    found = rewards_for(f"2*{tmp_path}/mine.py:a + -1.5 * {tmp_path}/mine.py:b", [task])
    assert {name: weight for name, (_, weight) in found.items()} == {"a": 2.0, "b": -1.5}
    for name, text in (
        ("ended + ended", '"ended" stands there twice'),
        ("x * ended", '"x" is no weight'),
        ("auto + endd", 'no reward "endd".*Did you mean "ended"'),
    ):
        with pytest.raises(ConfigError, match=text):
            rewards_for(name, [task])


def test_ended_pays_for_an_end():
    task = Task("t", (Message("user", "?"),))
    for stop, value in ((Stop.END, 1.0), (Stop.LENGTH, 0.0), (Stop.TOOL, 1.0)):
        assert ended(task, Trajectory(task, task.prompt, (), stop)) == value
