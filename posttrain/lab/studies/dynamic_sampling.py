"""DAPO's dynamic sampling: batches without dead groups, and what they cost in samples."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.surrogate import Clip
from posttrain.recipes.stages import curve


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Groups of a batch that teach, reward over equal steps, and answers sampled."""
    objective = Objective(clip=Clip(low=0.2, high=0.28), average=Average("token"), keep=settings["keep"])
    cfg = config(objective, seed, steps=settings["steps"], lr=settings["lr"], draws=settings["draws"])
    run(scratch, cfg)
    if settings["keep"] == "mixed":
        drawn = dict(curve(scratch, "prompts_drawn"))
        live = [share * drawn[step] / cfg.prompts for step, share in curve(scratch, "groups_kept_share")]
    else:
        drawn = dict.fromkeys(range(cfg.steps), cfg.prompts)
        live = [1 - share for _, share in curve(scratch, "zero_variance_share")]
    return {
        "live": fmean(live),
        "live_late": fmean(live[-10:]),
        "reward": mean_of(scratch, "reward_mean"),
        "reward_late": mean_of(scratch, "reward_mean", last=10),
        "answers": sum(drawn.values()) * cfg.group_size,
    }


def read(cells: Cells) -> list[Figure]:
    """A full batch, sooner learned per step; and the price."""
    figures = []
    for name, what, wanted in (
        ("live", "share of the batch that teaches", True),
        ("reward", "reward over the run, at equal steps", True),
        ("answers", "answers sampled", None),
    ):
        plain, full = column(cells["all"], name), column(cells["refill"], name)
        gain, low, high = paired(full, plain)
        text = f"{what}: {interval(plain)[0]:.3g} without, {interval(full)[0]:.3g} with; {gain:+.3g}"
        figures.append(
            Figure(
                what=what,
                before=interval(plain)[0],
                after=interval(full)[0],
                low=low,
                high=high,
                seen=low > 0 if wanted else True,
                text=f"{text} [{low:+.3g}, {high:+.3g}]",
            )
        )
    return figures


STUDY = Study(
    name="dynamic_sampling",
    claim="dynamic sampling removes dead groups, so that a step teaches more; it pays with samples",
    source="Yu et al. 2025 (arXiv 2503.14476), section 3.2",
    arms={
        "all": {"keep": "all", "draws": 1, "steps": 25, "lr": 1e-3},
        "refill": {"keep": "mixed", "draws": 8, "steps": 25, "lr": 1e-3},
    },
    seeds=(0, 1, 2, 3, 4),
    sections=("23",),
    measure=measure,
    read=read,
)
