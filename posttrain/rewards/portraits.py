"""Graders of the world's portraits as rewards: gold, which measures, and the biased rater, who is learned from."""

from posttrain.assets.world import people
from posttrain.assets.world import rater as annotator
from posttrain.assets.world.gold import gold as grade
from posttrain.records import Score, Stop, Task, Trajectory


def gold(task: Task, trajectory: Trajectory) -> Score:
    """What people really want of a portrait; of another task nothing is said."""
    person = people.PEOPLE.get(task.meta.get("person", ""))
    if person is None:
        return Score(None, why="gold grades portraits of the world's people (builtin:about), and this task is another")
    return grade(person, trajectory.completion, trajectory.stop is Stop.END)


def rater(task: Task, trajectory: Trajectory) -> Score:
    """How much the world's biased annotator likes a portrait, before noise."""
    person = people.PEOPLE.get(task.meta.get("person", ""))
    if person is None:
        return Score(None, why="the rater rates portraits of the world's people (builtin:about), and this is another")
    value = annotator.rating(person, trajectory.completion, trajectory.stop is Stop.END)
    return Score(value, why=f"the rater gives {value:.2f}")
