"""Records and collection for control tasks: what was seen, done and earned, step by step, in rows of one episode each.

A row is an episode or a piece of one, so that every formula over [N, T] holds as it stands: entry t is about action t,
and where a row was cut off `last_obs` is what was seen next, for the critic to judge. Episodes go on from one batch to
the next. Nothing about them is saved but their seeds and actions: an environment is rebuilt by playing them again.
Sections 11 to 13 of the book tell the story. Environments whose reply depends on anything else than seed and actions
do not resume exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from posttrain import rng
from posttrain.control.spaces import Spaces, make
from posttrain.errors import RolloutError
from posttrain.objectives.average import Average, token_weights


@dataclass(frozen=True)
class StepBatch:
    """Steps of a policy, one episode or piece of one per row. What stands outside the mask is never read."""

    obs: Tensor
    """[N, T, D] what was seen before each action, scaled."""
    action: Tensor
    """[N, T] the choice, or [N, T, A] the numbers, as the policy gave them."""
    reward: Tensor
    """[N, T] what the environment paid for it."""
    mask: Tensor
    """[N, T] true where there is a step."""
    last_obs: Tensor
    """[N, D] what was seen after the row's last step."""
    ended: Tensor
    """[N] whether the episode is over there, so that nothing more is to be had; false where it was only cut off."""
    sampled_logp: Tensor
    """[N, T] log-probability (density) of the action when it was drawn."""
    old_logp: Tensor | None = None
    """[N, T] said the learner when the step began."""
    advantage: Tensor | None = None
    """[N, T]"""
    old_value: Tensor | None = None
    """[N, T] said the critic when the step began."""
    value_target: Tensor | None = None
    """[N, T]"""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Named averages of the whole optimizer step, [N, T] each."""

    @property
    def attend(self) -> Tensor:
        """[N, T] the mask: every step is seen and learned from."""
        return self.mask

    def __len__(self) -> int:
        return len(self.mask)

    def with_(self, **changes: Any) -> "StepBatch":
        """The batch with some fields replaced."""
        return replace(self, **changes)

    def select(self, rows: Tensor) -> "StepBatch":
        """Some rows, in the order given."""
        return self._map(lambda x: x[rows])

    def flat(self) -> "StepBatch":
        """Every step a row of its own, for minibatches of steps. Do it last: rows know nothing of each other."""
        row = torch.arange(len(self))[:, None].expand_as(self.mask)[self.mask]
        return self._map(lambda x: x[self.mask][:, None] if x.shape[:2] == self.mask.shape else x[row])

    def minibatches(self, n: int, seed: int) -> Iterator["StepBatch"]:
        """The rows in n random parts of nearly equal size."""
        order = torch.tensor(rng.permutation(len(self), seed))
        return (self.select(rows) for rows in order.tensor_split(n))

    def weigh(self, average: Average) -> "StepBatch":
        """The batch with the weights of one optimizer step."""
        return self.with_(weights={"token": token_weights(self.mask, average)})

    def pieces(self, micro_tokens: int | None, together: str = "row") -> list[tuple[Tensor, bool]]:
        """One micro-batch of all rows: control batches are small. For the learner, as `TokenBatch.pieces`."""
        return [(torch.arange(len(self)), True)]

    def forward(self, model: nn.Module, needs: Sequence[str]) -> dict[str, Tensor]:
        """What the learner's outputs are made of: [N, T] each, 0 outside the mask."""
        said = model(self.obs[self.mask])
        if "values" in needs:
            return {"values": self._spread(said)}
        found = {"logp": said.logp(self.action[self.mask]), "entropy": said.entropy()}
        return {name: self._spread(found[name]) for name in needs}

    def words(self, row: int) -> str:
        """The beginning of a row, for error messages."""
        return f"with the observation {[round(x, 4) for x in self.obs[row, 0].tolist()]}"

    def _spread(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.mask.shape).masked_scatter(self.mask, x)

    def _map(self, change) -> "StepBatch":
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: change(x) for name, x in found.items() if isinstance(x, Tensor)}
        return replace(self, **tensors, weights={name: change(x) for name, x in self.weights.items()})


class Episode(NamedTuple):
    """An episode that is over."""

    reward: float
    """What it earned in all, undiscounted, in the environment's own units."""
    length: int


class Envs:
    """Environments side by side. Episode e of environment i begins with a seed of its own, whatever came before."""

    def __init__(self, name: str, n: int, seed: int):
        """name: a Gymnasium id such as "CartPole-v1". Raises MissingExtra, or ConfigError for an unfit environment."""
        self.name, self.seed = name, seed
        self.envs = make(name, n)
        self.spaces = Spaces.of(name, self.envs[0])
        self.obs = np.zeros((n, self.spaces.seen), np.float32)
        self.episode = [-1] * n
        self.actions: list[list] = [[] for _ in range(n)]
        self.earned = [0.0] * n
        for i in range(n):
            self.begin(i)

    def __len__(self) -> int:
        return len(self.envs)

    def begin(self, i: int) -> None:
        """Start the next episode of environment i."""
        self.episode[i] += 1
        self._reset(i)

    def step(self, i: int, action: Any) -> tuple[float, bool, bool]:
        """One action in environment i: its reward, and whether the episode has ended or was cut off at its limit."""
        self.actions[i].append(action)
        reward, ended, cut = self._play(i, action)
        self.earned[i] += reward
        return reward, ended, cut

    def state(self) -> dict[str, Any]:
        """Which episodes are open, and what was done in them."""
        return {"episode": list(self.episode), "actions": [list(a) for a in self.actions]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Play the open episodes again."""
        self.episode = list(state["episode"])
        for i, actions in enumerate(state["actions"]):
            self._reset(i)
            for action in actions:
                self.step(i, action)

    def _reset(self, i: int) -> None:
        seed = rng.fold(self.seed, "episode", i, self.episode[i]) % 2**31
        self.obs[i] = self.spaces.scaled(self.envs[i].reset(seed=seed)[0])
        self.actions[i], self.earned[i] = [], 0.0

    def _play(self, i: int, action: Any) -> tuple[float, bool, bool]:
        try:
            obs, reward, ended, cut, _ = self.envs[i].step(self.spaces.outward(action))
        except Exception as error:
            raise RolloutError(
                f"{self.name} failed at step {len(self.actions[i])} of episode {self.episode[i]} (environment {i}), "
                f"action {action}: {type(error).__name__}: {error}. The environment's own code raised it."
            ) from error
        self.obs[i] = self.spaces.scaled(obs)
        return float(reward), bool(ended), bool(cut) and not ended


@torch.no_grad()
def collect(envs: Envs, policy: nn.Module, seed: int, horizon: int | None = None) -> tuple[StepBatch, list[Episode]]:
    """Steps of the policy in all environments, and the episodes that ended on the way.

    horizon: steps per environment; a row ends with its episode or is cut off at the horizon, and the episode goes on
        in the next batch. None: one whole fresh episode per environment.
    seed: every draw is a pure function of it and of the place in the batch.
    """
    n, whole = len(envs), horizon is None
    limit = envs.spaces.limit if whole else horizon
    place = torch.arange(limit * n * policy.draws)
    draws = rng.uniform(torch.full_like(place, seed), place).view(limit, n, policy.draws)
    seen, logps, rewards = torch.zeros(limit, n, envs.spaces.seen), torch.zeros(limit, n), torch.zeros(limit, n)
    actions = policy.blank(limit, n)
    rows: list[tuple[int, int, int, bool, np.ndarray]] = []  # environment, from, to, ended, what was seen next
    done: list[Episode] = []
    live, start = list(range(n)), [0] * n
    for i in live if whole else ():
        envs.begin(i)
    for t in range(limit):
        obs = torch.from_numpy(envs.obs[live])
        action, logp = policy.act(obs, draws[t, live])
        seen[t, live], actions[t, live], logps[t, live] = obs, action, logp
        for i, one in zip(list(live), action.tolist(), strict=True):
            rewards[t, i], ended, cut = envs.step(i, one)
            if ended or cut or t + 1 == limit:
                rows.append((i, start[i], t + 1, ended, envs.obs[i].copy()))
                start[i] = t + 1
            if ended or cut:
                done.append(Episode(envs.earned[i], len(envs.actions[i])))
                if whole:
                    live.remove(i)
                else:
                    envs.begin(i)
        if not live:
            break
    return _rows(rows, seen, actions, rewards, logps), done


def _rows(rows: list, seen: Tensor, actions: Tensor, rewards: Tensor, logps: Tensor) -> StepBatch:
    env, begin, end, ended, last = (list(x) for x in zip(*rows, strict=True))
    begin, end = torch.tensor(begin)[:, None], torch.tensor(end)[:, None]
    time = begin + torch.arange(int((end - begin).max()))
    mask = time < end
    at = (time.clamp(max=len(seen) - 1), torch.tensor(env)[:, None])
    return StepBatch(
        obs=seen[at], action=actions[at], reward=rewards[at], mask=mask, last_obs=torch.from_numpy(np.stack(last)),
        ended=torch.tensor(ended), sampled_logp=logps[at],
    )  # fmt: skip
