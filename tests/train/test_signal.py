"""What a batch of scored groups says of itself, counted by hand."""

import pytest

from posttrain.records import Group, Message, Score, Segment, Stop, Task, Trajectory
from posttrain.train.invariants import reward_signal
from posttrain.train.metrics import lookup, mean
from posttrain.train.signal import group_metrics, scored, with_variance

TASK = Task("t", (Message("user", "?"),))


def group(*values: float | None, stops=(), length: int = 2, parts=None) -> Group:
    """A group of answers with these rewards; None: not scored."""
    members = []
    for i, value in enumerate(values):
        s = Segment((1,) * (length + 1), (False,) + (True,) * length, (0.0,) * (length + 1))
        stop = stops[i] if i < len(stops) else Stop.END
        score = Score(value, parts or {}) if value is not None else Score(None, why="?")
        members.append(Trajectory(TASK, TASK.prompt, (s,), stop, 0, score=score))
    return Group(TASK, tuple(members))


def test_metrics_by_hand():
    groups = [
        group(1.0, 0.0, None, stops=(Stop.END, Stop.LENGTH, Stop.ERROR)),
        group(0.0, 0.0, length=5),
        group(1.0),  # alone: nothing to compare with
    ]
    found = mean(group_metrics(groups))
    assert found["reward_mean"] == pytest.approx(2 / 5)
    assert found["reward_std"] == pytest.approx(0.3**0.5)  # of 1, 0, 0, 0, 1 with n - 1
    assert found["zero_variance_share"] == found["solved_share"] == 1 / 2
    assert found["abstained_share"] == found["failed_share"] == found["clipped_at_length_share"] == 1 / 6
    assert found["length_mean"] == (3 * 2 + 2 * 5 + 2) / 6


def test_every_metric_is_in_the_glossary():
    for name in group_metrics([group(1.0, 0.0, parts={"right": 1.0, "short": 0.5})]):
        lookup(name)


def test_parts_are_averaged_where_there_is_more_than_one():
    found = mean(group_metrics([group(1.0, 0.0, parts={"right": 1.0, "short": 0.5})]))
    assert found["reward_part_right"] == 1.0 and found["reward_part_short"] == 0.5
    assert not [n for n in group_metrics([group(1.0, parts={"right": 1.0})]) if n.startswith("reward_part")]


def test_nothing_scored_divides_by_nothing():
    found = mean(group_metrics([group(None, None)]))
    assert "reward_mean" not in found  # nothing to average is no zero
    assert found["abstained_share"] == 1 and found["zero_variance_share"] == 0


def test_only_groups_with_differing_rewards_are_kept():
    mixed, equal, alone = group(1.0, 0.0), group(1.0, 1.0, None), group(1.0, None)
    assert with_variance([mixed, equal, alone]) == [mixed]
    assert scored(equal) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("groups", "within", "over"),
    [
        ([group(1.0, 1.0), group(0.0, 0.0)], True, False),
        ([group(1.0), group(0.0)], True, False),
        ([group(1.0, 0.0), group(0.0, 0.0)], False, False),
        ([group(1.0, 1.0), group(1.0)], True, True),
        ([group(None, None)], True, True),
    ],
)
def test_silence_depends_on_what_is_compared(groups, within, over):
    """Answers to different prompts are compared by a baseline over the batch, and not by one of the group."""
    assert reward_signal(groups).silent is within
    assert reward_signal(groups, grouped=False).silent is over
