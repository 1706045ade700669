"""The short run that the policy-gradient studies vary: questions about words, asked of the embedded base.

The base says the right thing to nine of ten such questions, and then runs on; one in sixteen whole answers is right.
Ten steps of 64 answers teach it to stop, which takes a baseline, a critic or a group to find out quickly. What a study
changes stands in its own file; rewards are those of prompts that the run has not seen before.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from posttrain.algorithms import ppo, reinforce, vapo
from posttrain.data.rows import Data
from posttrain.recipes.stages import curve, stage
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig

STEPS = 12
MAX_TOKENS = 16
ANSWERS = 64


def common(seed: int, steps: int = STEPS, task: str = "words", max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """What the three methods share."""
    return {
        "template": "plain",
        "data": Data(path=f"builtin:{task}", limit=2000),
        "steps": steps,
        "sampling": SamplingParams(max_tokens=max_tokens),
        "eval_every": 0,
        "run": RunConfig(seed=seed, threads=1, save_every=1000, keep=1, samples=0),
    }


def ppo_config(seed: int, *, lr: float = 3e-4, steps: int = STEPS, **changes: Any) -> ppo.Config:
    """PPO with a critic that learns three times as fast."""
    base = {"prompts": ANSWERS, "group_size": 1, "optim": Optim(lr=lr), "critic_optim": Optim(lr=3 * lr)}
    return ppo.Config(**(common(seed, steps) | base | changes))


def reinforce_config(seed: int, *, lr: float = 1e-3, steps: int = STEPS, **changes: Any) -> reinforce.Config:
    """REINFORCE on as many answers, four to a prompt."""
    base = {"prompts": ANSWERS // 4, "group_size": 4, "optim": Optim(lr=lr)}
    return reinforce.Config(**(common(seed, steps) | base | changes))


def vapo_config(seed: int, *, lr: float = 5e-4, steps: int = STEPS, **changes: Any) -> vapo.Config:
    """VAPO on as many answers, eight to a prompt; its answers are short, so λ reaches over a larger share of them."""
    base = {"prompts": ANSWERS // 8, "group_size": 8, "pretrain_steps": 3, "alpha": 0.5, "optim": Optim(lr=lr),
            "critic_optim": Optim(lr=3 * lr)}  # fmt: skip
    return vapo.Config(**(common(seed, steps) | base | changes))


def train(module: ModuleType, cfg: Any, folder: Path) -> Path:
    """Train in a folder; its model."""
    return stage(folder, module, cfg).model


def values(folder: Path, metric: str) -> list[float]:
    """A metric over the steps that have it."""
    return [y for _, y in curve(folder, metric)]


def start_and_end(folder: Path, metric: str = "reward_mean", last: int = 3) -> dict[str, float]:
    """A metric in the first step, and its mean over the last few."""
    seen = values(folder, metric)
    return {"before": seen[0], "after": fmean(seen[-last:])}


def column(cells: Mapping[int, Mapping[str, Any]], name: str) -> list[float]:
    """One figure of an arm, by seed."""
    return [float(cells[seed][name]) for seed in sorted(cells)]
