"""The rewards of a run, from the name in its config: one menu, or the user's own function."""

from collections.abc import Callable, Sequence

from posttrain.data.tasks import verify
from posttrain.errors import ConfigError, nearest
from posttrain.records import Score, Task, Trajectory
from posttrain.rewards.base import GroupReward, Rewards, load_user_function
from posttrain.rewards.exact import exact_match, exact_number
from posttrain.rewards.model import PREFIX, ModelReward
from posttrain.rewards.worked import worked


def verified(task: Task, trajectory: Trajectory) -> Score:
    """The verifier that belongs to the task (`task.meta["task"]`)."""
    return verify(task, trajectory.completion)


MENU: dict[str, Callable[[Task, Trajectory], Score]] = {
    "verify": verified,
    "exact_number": exact_number,
    "exact_match": exact_match,
    "worked": worked,
}
"""Name -> reward."""


def rewards_for(name: str, tasks: Sequence[Task]) -> Rewards:
    """The rewards that `name` stands for: a menu word, "auto", model:FOLDER for a reward model, or file.py:function.

    "auto" takes the tasks' own verifier where they have one, else the exact number. Raises ConfigError for an unknown
    name, and where "auto" finds neither a verifier nor a gold answer.
    """
    if name.startswith(PREFIX):
        return {"model": (GroupReward(ModelReward(name.removeprefix(PREFIX))), 1.0)}
    if ":" in name:
        return {name.rpartition(":")[2]: (load_user_function(name), 1.0)}
    if name == "auto":
        own = all("task" in t.meta for t in tasks)
        if not own and all(t.answer is None for t in tasks):
            raise ConfigError(
                'reward = "auto", but the tasks have neither a verifier of their own nor a gold answer (columns '
                "answer, target, solution). Name the column with data.columns.answer, or give a reward as "
                "file.py:function."
            )
        name = "verify" if own else "exact_number"
    if name not in MENU:
        raise ConfigError(f'there is no reward "{name}". {nearest(name, [*MENU, "auto"])} Your own: file.py:function.')
    return {name: (MENU[name], 1.0)}
