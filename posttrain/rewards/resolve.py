"""The rewards of a run, from the name in its config: one menu, or the user's own function."""

from collections.abc import Callable, Sequence

from posttrain.data.tasks import verify
from posttrain.errors import ConfigError, nearest
from posttrain.records import Score, Stop, Task, Trajectory
from posttrain.rewards.base import GroupReward, Reward, Rewards, load_user_function
from posttrain.rewards.exact import exact_match, exact_number
from posttrain.rewards.model import Judges, ModelReward
from posttrain.rewards.portraits import gold, rater
from posttrain.rewards.worked import worked


def verified(task: Task, trajectory: Trajectory) -> Score:
    """The verifier that belongs to the task (`task.meta["task"]`)."""
    return verify(task, trajectory.completion)


def ended(task: Task, trajectory: Trajectory) -> float:
    """1 where the answer ended by itself, 0 where the token budget cut it off: the plainest reward for form."""
    return float(trajectory.stop is not Stop.LENGTH)


MENU: dict[str, Callable[[Task, Trajectory], Score]] = {
    "verify": verified,
    "exact_number": exact_number,
    "exact_match": exact_match,
    "ended": ended,
    "worked": worked,
    "gold": gold,
    "rater": rater,
}
"""Name -> reward."""


def rewards_for(name: str, tasks: Sequence[Task]) -> Rewards:
    """The rewards that `name` stands for: a menu word, "auto", model:FOLDER for a reward model, or file.py:function.

    "auto" takes the tasks' own verifier where they have one, else the exact number. Several are added up, each with a
    weight if it is not 1: "auto + 0.2 * ended". Raises ConfigError for an unknown name, for one that stands there
    twice, and where "auto" finds neither a verifier nor a gold answer.
    """
    found: dict[str, tuple[Reward | GroupReward, float]] = {}
    for part in name.split(" + "):
        weight, times, word = part.rpartition("*")
        ((key, reward),) = _one(word.strip(), tasks).items()
        if key in found:
            raise ConfigError(f'reward = "{name}": "{key}" stands there twice. Give it one weight, or another name.')
        found[key] = (reward, _weight(weight, name) if times else 1.0)
    return found


def _weight(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f'reward = "{name}": "{text.strip()}" is no weight. Write several rewards as "auto + 0.2 * ended".'
        ) from None


def _one(name: str, tasks: Sequence[Task]) -> dict[str, Reward | GroupReward]:
    """A single reward under its name."""
    if judges := Judges.read(name):
        return {"model": GroupReward(ModelReward(judges))}
    if ":" in name:
        return {name.rpartition(":")[2]: load_user_function(name)}
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
    return {name: MENU[name]}
