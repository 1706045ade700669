"""The same 64 answers in groups of two, eight or sixteen: how many groups teach, and what is learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.recipes.stages import curve

ANSWERS = 64
"""Of a step, in all arms."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Reward and share of dead groups, step by step."""
    size = settings["size"]
    cfg = config("grpo", seed, steps=settings["steps"], lr=settings["lr"], prompts=ANSWERS // size, group_size=size)
    run(scratch, cfg)
    return {
        "dead": mean_of(scratch, "zero_variance_share", first=10),
        "reward": mean_of(scratch, "reward_mean"),
        "reward_late": mean_of(scratch, "reward_mean", last=5),
        "rewards": [y for _, y in curve(scratch, "reward_mean")],
    }


def read(cells: Cells) -> list[Figure]:
    """Small groups against eight: more are dead while answers are seldom right, and less is learned."""
    figures = []
    for arm in ("two", "sixteen"):
        for name, what in (
            ("dead", "share of dead groups, first ten steps"),
            ("reward", "reward over the run"),
            ("reward_late", "reward, last five steps"),
        ):
            ours, theirs = column(cells[arm], name), column(cells["eight"], name)
            gap, low, high = paired(ours, theirs)
            before, after = interval(theirs)[0], interval(ours)[0]
            worse = low > 0 if name == "dead" else high < 0
            text = f"{what}: eight {before:.3f}, {arm} {after:.3f}; {gap:+.3f} [{low:+.3f}, {high:+.3f}]"
            figures.append(
                Figure(
                    what=f"{what}: {arm}",
                    before=before,
                    after=after,
                    low=low,
                    high=high,
                    seen=worse if arm == "two" else low > 0 or high < 0,
                    text=text,
                )
            )
    return figures


STUDY = Study(
    name="group_size",
    claim="of the same number of answers, groups of two are dead more often than groups of eight and teach less",
    source="Shao et al. 2024 (arXiv 2402.03300), section 4.1",
    arms={name: {"size": size, "steps": 30, "lr": 2e-3} for name, size in (("two", 2), ("eight", 8), ("sixteen", 16))},
    seeds=(0, 1, 2, 3, 4),
    sections=("23",),
    measure=measure,
    read=read,
)
