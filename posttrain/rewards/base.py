"""The reward port, the weighted sum of several rewards, and rewards from a user's own file.

A reward is `function(task, trajectory)` and returns a Score, a number, or None for *could not be scored*. One that
raises has not scored either: the reason goes into `Score.why`, the answer is left out of its group, and nobody counts
it as zero. Rewards that compare the members of a group are wrapped in `GroupReward`.
"""

import importlib.util
import inspect
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain import dist, rng
from posttrain.errors import ConfigError, Interrupted, MissingExtra, nearest
from posttrain.records import Group, Score, Stop, Task, Trajectory

Reward = Callable[[Task, Trajectory], Score | float | None]
"""Grades one answer; `trajectory.completion` is what the policy said last."""


@dataclass(frozen=True)
class GroupReward:
    """A reward of all members of a group at once: comparisons, tournaments, diversity."""

    function: Callable[[Group], Sequence[Score | float | None]]
    """One verdict per member, in order."""


Rewards = Mapping[str, tuple[Reward | GroupReward, float]]
"""Name -> (reward, weight). A weight of 0 reports the reward without using it."""


def score(groups: Sequence[Group], rewards: Rewards) -> list[Group]:
    """Groups whose members carry a Score: value = Σ weight · component, parts = the components.

    Parts of a component appear as "name.part". The value is None where a component with a weight is None, where a
    reward raised, and for rollouts that failed. Raises ConfigError for an empty mapping; errors in the request itself
    (ConfigError, MissingExtra) pass through, since they would repeat for every answer. Several processes grade a share
    of the groups each, and all get all scores, so that no grader is asked twice.
    """
    if not rewards:
        raise ConfigError(
            "no reward is given, so no answer can be graded. Name one, such as rewards = ['exact_number']."
        )
    return dist.spread(groups, lambda share: [_score_group(group, rewards) for group in share])


def _score_group(group: Group, rewards: Rewards) -> Group:
    alive = replace(group, members=tuple(m for m in group.members if m.stop is not Stop.ERROR))
    columns = {name: _verdicts(reward, alive) for name, (reward, _) in rewards.items()}
    weights = {name: weight for name, (_, weight) in rewards.items()}
    totals = iter([combine({name: c[i] for name, c in columns.items()}, weights) for i in range(len(alive.members))])
    members = (
        replace(m, score=Score(None, why=f"the rollout failed: {m.error}") if m.stop is Stop.ERROR else next(totals))
        for m in group.members
    )
    return replace(group, members=tuple(members))


def _verdicts(reward: Reward | GroupReward, group: Group) -> list[Score]:
    """One Score per member; what raises becomes a Score without a value."""
    if not isinstance(reward, GroupReward):
        return [_guarded(lambda m=m: as_score(reward(group.task, m))) for m in group.members]
    if not group.members:
        return []
    found: list[Score] = []

    def judge() -> Score:
        found.extend(as_score(v) for v in reward.function(group))
        if len(found) != len(group.members):
            raise ValueError(f"{len(found)} verdicts for {len(group.members)} members")
        return Score(None)

    failure = _guarded(judge)
    return [failure] * len(group.members) if failure.why else found


def _guarded(verdict: Callable[[], Score]) -> Score:
    try:
        return verdict()
    except (ConfigError, MissingExtra, Interrupted):
        raise
    except Exception as e:  # noqa: BLE001 - a grader that fails has not scored; the share of such answers is watched
        return Score(None, why=f"raised {type(e).__name__}: {e}")


def as_score(verdict: Score | float | None) -> Score:
    """What a reward may return, as a Score. Raises TypeError for anything else, ValueError for NaN and infinities."""
    if isinstance(verdict, Score):
        return verdict
    if verdict is None:
        return Score(None, why="the reward returned None")
    if hasattr(verdict, "item"):  # numbers of numpy and torch
        verdict = verdict.item()
    if not isinstance(verdict, numbers.Real):
        raise TypeError(f"a reward returned {type(verdict).__name__}, not a number, None or a Score")
    return Score(float(verdict))


def combine(components: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    """The weighted sum of components; None where one that counts has no value."""
    values = {name: s.value for name, s in components.items()}
    parts = {name: v for name, v in values.items() if v is not None}
    parts |= {f"{name}.{part}": v for name, s in components.items() for part, v in s.parts.items()}
    counted = [name for name in components if weights[name] != 0]
    missing = any(values[name] is None for name in counted)
    return Score(
        None if missing else sum(weights[name] * values[name] for name in counted),
        parts=parts,
        answer=next((s.answer for s in components.values() if s.answer is not None), None),
        why="; ".join(f"{name}: {s.why}" for name, s in components.items() if s.why),
    )


def load_user_function(spec: str, takes: Sequence[str] = ("task", "trajectory")) -> Callable:
    """The function that `spec`, "path/to/file.py:name", points to. The file is run: it is the user's own, trusted code.

    takes: the arguments it will be called with, in order. The names are free, their number is checked.

    Raises ConfigError where the file or the function is missing, the file fails, or the arguments do not fit.
    """
    file, colon, name = spec.rpartition(":")
    path = Path(file)
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f'"{spec}" does not name a function: write file.py:function, such as my_rewards.py:polite')
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        tail = nearest(path.name, beside) if beside else "Paths are relative to the working directory."
        raise ConfigError(f'"{spec}": there is no file {path}. {tail}')
    module = _run(path, spec)
    function = getattr(module, name, None)
    if function is None:
        known = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        tail = nearest(name, known) if known else "The file defines no function."
        raise ConfigError(f'"{spec}": {path} has no function "{name}". {tail}')
    if not callable(function):
        raise ConfigError(f'"{spec}" is of type {type(function).__name__}, not a function of ({", ".join(takes)})')
    try:
        inspect.signature(function).bind(*takes)
    except TypeError as e:
        raise ConfigError(
            f'"{spec}" will be called as {name}({", ".join(takes)}), but is defined as '
            f"{name}{inspect.signature(function)}: {e}. Change its arguments."
        ) from None
    except ValueError:  # a builtin without a signature: nothing to check
        pass
    return function


def _run(path: Path, spec: str):
    module_name = f"posttrain_user_{path.stem}_{rng.fold(0, str(path.resolve()))}"
    source = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(source)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up here
    try:
        source.loader.exec_module(module)
    except Exception as e:  # noqa: BLE001 - whatever the user's file raises, the message names the file
        del sys.modules[module_name]
        frames = (t for t in _frames(e) if Path(t.tb_frame.f_code.co_filename).resolve() == path.resolve())
        line = next((f"line {t.tb_lineno}: " for t in frames), "")
        raise ConfigError(f'"{spec}": {path} cannot be imported: {line}{type(e).__name__}: {e}') from e
    return module


def _frames(e: BaseException):
    t = e.__traceback__
    while t is not None:
        yield t
        t = t.tb_next
