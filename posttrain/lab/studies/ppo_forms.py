"""PPO's two forms beside the surrogate that neither bounds, when each rollout is used for many updates.

Six passes of two updates over 32 answers, at a step size at which four updates are harmless. What is compared is how
far the policy moves from the one that sampled, per token and step, and what becomes of the share of right answers.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log10
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import ppo
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column, ppo_config, train, values
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.surrogate import Clip

CLIP = PRESETS["ppo"]
FREE = replace(CLIP, clip=Clip(kind="none"))
FORMS = {"none": FREE, "clip": CLIP, "penalty": replace(FREE, proximal=PRESETS["ppo_penalty"].proximal)}


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Distance from the old policy, and right answers over all steps and the last three."""
    cfg = ppo_config(seed, lr=settings["lr"], steps=settings["steps"], prompts=settings["prompts"], epochs=6,
                     objective=FORMS[settings["form"]])  # fmt: skip
    train(ppo, cfg, scratch)
    right = values(scratch, "reward_mean")
    return {"kl_old": fmean(values(scratch, "kl_old")), "mean": fmean(right), "last": fmean(right[-3:]), "curve": right}


def read(cells: Cells) -> list[Figure]:
    """Each form against none: nearer to the old policy, and more right answers."""
    figures = []
    for form in ("clip", "penalty"):
        for name, what, sign in (
            ("kl_old", "log10 of kl(old ‖ policy) per token", -1),
            ("last", "right answers at the end", 1),
        ):
            free, held = column(cells["none"], name), column(cells[form], name)
            if name == "kl_old":  # without a bound some steps go anywhere: means of such numbers say nothing
                free, held = ([log10(x) for x in arm] for arm in (free, held))
            gap, low, high = paired(held, free)
            text = f"{what}: without {interval(free)[0]:.3f}, {form} {interval(held)[0]:.3f}; {gap:+.3f}"
            figures.append(
                Figure(
                    what=f"{what}: no bound, then {form}",
                    before=interval(free)[0],
                    after=interval(held)[0],
                    low=low,
                    high=high,
                    seen=low > 0 if sign > 0 else high < 0,
                    text=f"{text} [{low:+.3f}, {high:+.3f}]",
                )  # fmt: skip
            )
    return figures


STUDY = Study(
    name="ppo_forms",
    claim="with many updates per rollout, clip and adaptive penalty keep the policy near and the answers right",
    source="Schulman et al. 2017 (arXiv 1707.06347), table 1",
    arms={form: {"form": form, "lr": 1e-3, "steps": 8, "prompts": 32} for form in FORMS},
    seeds=tuple(range(8)),
    sections=("13",),
    measure=measure,
    read=read,
)
