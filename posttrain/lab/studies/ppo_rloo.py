"""PPO with a critic beside RLOO, which lets the other answers to a prompt be the critic, at equal samples.

Both see 64 answers in each of twelve steps, PPO one to a prompt and RLOO four; PPO makes four updates of them, RLOO
one, as their papers do. Each method's step size is searched over three values on two seeds, which are then left out of
the comparison. The figures are the mean share of right answers over all steps, so that faster counts, and over the last
three.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import ppo, reinforce
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import ppo_config, reinforce_config, train, values

SIZES = {"ppo": (1e-4, 3e-4, 1e-3), "rloo": (3e-4, 1e-3, 3e-3)}
SEARCH = (100, 101)


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Right answers by step."""
    if settings["method"] == "ppo":
        train(ppo, ppo_config(seed, lr=settings["lr"], steps=settings["steps"]), scratch)
    else:
        cfg = reinforce_config(seed, lr=settings["lr"], steps=settings["steps"], baseline="leave_one_out")
        train(reinforce, cfg, scratch)
    curve = values(scratch, "reward_mean")
    return {"mean": fmean(curve), "last": fmean(curve[-3:]), "curve": curve}


def best(cells: Cells, method: str) -> str:
    """The arm of a method's best step size, by the mean over all steps on the seeds of the search."""
    arms = [arm for arm in cells if arm.startswith(method)]
    return max(arms, key=lambda arm: fmean(x["mean"] for seed, x in cells[arm].items() if seed in SEARCH))


def read(cells: Cells) -> list[Figure]:
    """Each at its best step size, on seeds that chose nothing."""
    ours, theirs = best(cells, "ppo"), best(cells, "rloo")
    seeds = [seed for seed in sorted(cells[ours]) if seed not in SEARCH]
    figures = []
    for name, what in (("mean", "right answers, all steps"), ("last", "right answers, last three steps")):
        a, b = ([float(cells[arm][seed][name]) for seed in seeds] for arm in (ours, theirs))
        gap, low, high = paired(a, b)
        text = f"{what}: {theirs} {interval(b)[0]:.3f}, {ours} {interval(a)[0]:.3f}; PPO - RLOO {gap:+.3f}"
        figures.append(
            Figure(
                what=f"{what}: RLOO, then PPO",
                before=interval(b)[0],
                after=interval(a)[0],
                low=low,
                high=high,
                seen=low > 0 or high < 0,
                text=f"{text} [{low:+.3f}, {high:+.3f}]",
            )  # fmt: skip
        )
    return figures


STUDY = Study(
    name="ppo_rloo",
    claim="PPO with a critic and RLOO differ at equal samples, each at its best step size",
    source="Ahmadian et al. 2024 (arXiv 2402.14740)",
    arms={
        f"{method} {lr:g}": {"method": method, "lr": lr, "steps": 12} for method, sizes in SIZES.items() for lr in sizes
    },
    seeds=(*SEARCH, 0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
