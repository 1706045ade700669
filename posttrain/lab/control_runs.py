"""What the studies on control tasks share: runs of seconds on CartPole-v1 and Pendulum-v1, and gradients compared.

Settings of an arm are flat: "lr", "delta", "form", "epochs" and the like. Returns are in the environments' own units: a
cart's pole that stands for all 500 steps earns 500, a pendulum that hangs about -1200, one that stands about -150.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from posttrain.control import ppo, reinforce, segments, trpo
from posttrain.control.learning import Task
from posttrain.control.policies import Policy, Value
from posttrain.control.steps import Envs
from posttrain.lab.study import Cells, Figure, paired
from posttrain.recipes.stages import curve, stage
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig


def settings(seed: int) -> RunConfig:
    """One thread, and a checkpoint at the end alone."""
    return RunConfig(seed=seed, threads=1, save_every=1000, keep=1, samples=0)


def cart(seed: int, method: ModuleType, *, steps: int = 12, **changes: Any) -> Any:
    """A config on CartPole-v1: batches of 1024 steps, or of 8 whole episodes.

    changes: lr, epochs and form (a name of `ppo.FORMS`) for PPO; fields of the config for the others.
    """
    if method is reinforce:
        return reinforce.Config(episodes=8, hidden=(32,), steps=steps, critic_updates=10, run=settings(seed), **changes)
    task = Task(envs=8, horizon=128, hidden=(32,))
    if method is trpo:
        return trpo.Config(task=task, steps=steps, critic_updates=20, run=settings(seed), **changes)
    return ppo.Config(task=task, steps=steps, update=update(**changes), run=settings(seed))


def update(*, lr: float = 3e-3, epochs: int = 10, form: str = "ppo", **changes: Any) -> ppo.Update:
    """What PPO makes of a batch, four minibatches per pass."""
    optim = Optim(lr=lr, beta2=0.999, max_grad_norm=0.5)
    return ppo.Update(objective=ppo.FORMS[form], epochs=epochs, optim=optim, **changes)


def pendulum(seed: int, *, steps: int = 30, comparisons: int | None = None, **changes: Any) -> Any:
    """A config on Pendulum-v1, batches of 8 episodes: PPO on the true reward, or on one learned from comparisons."""
    task, made = Task(env="Pendulum-v1", envs=8, horizon=200), update(lr=3e-3, gamma=0.9)
    if comparisons is None:
        return ppo.Config(task=task, steps=steps, update=made, run=settings(seed))
    return segments.Config(task=task, steps=steps, comparisons=comparisons, update=made, run=settings(seed), **changes)


def run(method: ModuleType, cfg: Any, folder: Path) -> dict[str, float]:
    """Train: the return before and after (mean of the last three batches that saw an episode end), and its cost.

    seconds: of this process alone, so that a busy machine does not change them much; 0 where the run was there already.
    """
    torch.set_num_threads(1)
    began = time.process_time()
    stage(folder, method, cfg)
    returns = [y for _, y in curve(folder, "episode_return")]
    spent = time.process_time() - began
    return {"before": returns[0], "after": fmean(returns[-3:]), "best": max(returns), "mean": fmean(returns),
            "seconds": spent, "env_steps": curve(folder, "env_steps")[-1][1]}  # fmt: skip


def column(cells: Mapping[int, Mapping[str, Any]], name: str, seeds: Sequence[int] | None = None) -> list[float]:
    """One figure of an arm, by seed."""
    return [float(cells[seed][name]) for seed in (sorted(cells) if seeds is None else seeds)]


def compare(what: str, ours: Sequence[float], theirs: Sequence[float], text: str, *, sign: int = 1) -> Figure:
    """ours - theirs over the same seeds; seen where the interval lies on the side of `sign`, 0 where it holds 0.

    text: the sentence, to which the numbers are added.
    """
    gap, low, high = paired(ours, theirs)
    seen = low > 0 if sign > 0 else high < 0 if sign < 0 else low <= 0 <= high
    before, after = fmean(theirs), fmean(ours)
    said = f"{text}: {before:.4g} → {after:.4g}, {gap:+.4g} [{low:+.4g}, {high:+.4g}]"
    return Figure(what=what, before=before, after=after, low=low, high=high, seen=seen, text=said)


def rise(arm: str, text: str) -> Callable[[Cells], list[Figure]]:
    """Reads a golden run: does the return rise?"""
    return lambda cells: [compare("return", column(cells[arm], "after"), column(cells[arm], "before"), text)]


def trained(seed: int, folder: Path, steps: int) -> tuple[Envs, Policy, Value]:
    """Fresh environments, with the policy and the half-trained critic of a short run of REINFORCE on CartPole-v1."""
    torch.set_num_threads(1)
    cfg = cart(seed, reinforce, steps=steps)
    found = stage(folder, reinforce, cfg).model
    envs = Envs(cfg.env, cfg.episodes, seed)
    policy, critic = Policy(envs.spaces, cfg.hidden, 0), Value(envs.spaces, cfg.hidden, 0)
    policy.load_state_dict(torch.load(found / "optimizer.pt", weights_only=True)["weights"])
    critic.load_state_dict(torch.load(found / "critic" / "optimizer.pt", weights_only=True)["weights"])
    return envs, policy, critic


def moments(gradients: Mapping[str, Sequence[Tensor]], plain: str) -> dict[str, float]:
    """Of each kind of gradient, taken on the same batches: variance, and squared distance of its mean from the plain's.

    The distance is estimated without bias from pairs of different batches: 0 in expectation if the means agree, and
    sometimes negative. Both are shares of the squared length of the plain gradient's mean.
    """

    def square(rows: Tensor) -> float:  # of the mean, from pairs of different rows
        n = len(rows)
        return float((rows.sum(0).square().sum() - rows.square().sum()) / (n * (n - 1)))

    stacked = {kind: torch.stack(list(g)).double() for kind, g in gradients.items()}
    unit = square(stacked[plain])
    return {f"variance, {kind}": float(g.var(0).sum()) / unit for kind, g in stacked.items()} | {
        f"distance, {kind}": square(g - stacked[plain]) / unit for kind, g in stacked.items()
    }


def rewarded(batch: Any, cfg: reinforce.Config) -> Any:
    """A batch with its rewards on the scale that the critic knows."""
    return replace(batch, reward=cfg.reward_scale * batch.reward)
