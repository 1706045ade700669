"""What an environment shows and takes, and the only place that imports Gymnasium."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.errors import ConfigError, missing_extra


@dataclass(frozen=True)
class Spaces:
    """Sizes and units of an environment. Policies see and give numbers of about unit size."""

    seen: int
    """Numbers in an observation."""
    choices: int
    """How many actions there are to choose from; 0 where an action is numbers."""
    moves: int
    """Numbers in an action; 0 where it is a choice."""
    limit: int
    """Steps after which an episode is cut off."""
    scale: tuple[float, ...]
    """What observations are divided by: the bound of each number where the environment states one, else 1."""
    low: tuple[float, ...] = ()
    """Lower bounds of an action's numbers; a policy's -1 stands for it, and less is cut off."""
    high: tuple[float, ...] = ()
    """Upper bounds; a policy's 1."""

    @classmethod
    def of(cls, name: str, env: Any) -> "Spaces":
        """The spaces of an environment. Raises ConfigError for what a small network cannot see or give."""
        seen, taken = env.observation_space, env.action_space
        limit = getattr(env.spec, "max_episode_steps", None)
        problems = []
        if type(seen).__name__ != "Box" or len(seen.shape) != 1:
            problems.append(f"it shows {seen}; a row of numbers (Box with one dimension) is needed")
        discrete = type(taken).__name__ == "Discrete"
        bounded = type(taken).__name__ == "Box" and len(taken.shape) == 1 and np.isfinite([taken.low, taken.high]).all()
        if not discrete and not bounded:
            problems.append(f"it takes {taken}; one of several choices, or a row of bounded numbers is needed")
        if not limit:
            problems.append("its episodes have no limit of steps, so a batch might never end")
        if problems:
            raise ConfigError(f'env = "{name}" does not fit: {"; ".join(problems)}. CartPole-v1 and Pendulum-v1 fit.')
        bounds = [float(x) for x in np.maximum(np.abs(seen.low), np.abs(seen.high))]
        scale = tuple(x if 0 < x < 1e3 else 1.0 for x in bounds)
        if discrete:
            return cls(int(seen.shape[0]), int(taken.n), 0, limit, scale)
        low, high = (tuple(map(float, x)) for x in (taken.low, taken.high))
        return cls(int(seen.shape[0]), 0, int(taken.shape[0]), limit, scale, low, high)

    def scaled(self, obs: Any) -> np.ndarray:
        """An observation as the policy sees it."""
        return np.asarray(obs, np.float32) / np.asarray(self.scale, np.float32)

    def outward(self, action: Any) -> Any:
        """A policy's action as the environment takes it."""
        if self.choices:
            return int(action)
        inside = [low + (min(max(a, -1.0), 1.0) + 1) / 2 * (high - low)
                  for a, low, high in zip(action, self.low, self.high, strict=True)]  # fmt: skip
        return np.array(inside, np.float32)


def make(name: str, n: int) -> list[Any]:
    """n environments of a Gymnasium id. Raises MissingExtra, or ConfigError where there is no such environment."""
    try:
        import gymnasium
    except ImportError:
        raise missing_extra("training on control tasks", "control") from None
    try:
        return [gymnasium.make(name, disable_env_checker=True) for _ in range(n)]
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(
            f'env = "{name}": Gymnasium cannot make it: {error}. "CartPole-v1" and "Pendulum-v1" need nothing else.'
        ) from None
