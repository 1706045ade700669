"""Samples from old or rounded weights: what they cost, and what each correction gives back.

With samples of eight steps ago nothing can be learned for eight steps, whatever is done; a correction shows later, when
what was learned is lost again without it. So this is read from longer runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.errors import InvariantError, NonFiniteError
from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.average import Average
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.objective import Objective
from posttrain.recipes.stages import curve

PLAIN = Objective(average=Average("token"))
CORRECTIONS = {
    "none": PLAIN,
    "tis": replace(PLAIN, mismatch=Mismatch(kind="truncate", high=2.0)),
    "icepop": replace(PLAIN, mismatch=Mismatch(kind="mask", low=0.5, high=5.0)),
    "mis": replace(PLAIN, mismatch=Mismatch(kind="mask", level="sequence", high=2.0)),
    "bypass": replace(PLAIN, old="sampler"),
}
"""none: as if the samples were fresh. tis, icepop: a weight per token, cut or masked. mis: a weight per answer, masked.
bypass: the ratio of the clip starts from the sampler."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Reward over the run and at its end, the gap between sampler and learner, and what the correction cut."""
    cfg = config(CORRECTIONS[settings["correction"]], seed, steps=settings["steps"], lr=settings["lr"], task="words",
                 max_tokens=16, schedule="constant", lag=settings["lag"], rounding=settings["rounding"])  # fmt: skip
    broke = 0.0
    try:
        run(scratch, cfg)
    except (InvariantError, NonFiniteError):  # a collapse is a result: what was reached until then counts, then nothing
        broke = 1.0
    rewards = [y for _, y in curve(scratch, "reward_mean")]
    rewards += [0.0] * (cfg.steps - len(rewards))
    found = {
        "reward": sum(rewards) / len(rewards),
        "late": sum(rewards[-8:]) / 8,
        "gap": mean_of(scratch, "sampler_gap_mean"),
        "broke": broke,
        "curve": rewards,
    }
    cut = curve(scratch, "mismatch_cut_share")
    return found | ({"cut": mean_of(scratch, "mismatch_cut_share")} if cut else {})


def read(cells: Cells) -> list[Figure]:
    """Old and rounded samples against fresh ones; each correction against none, at the same age of the samples."""
    figures = []

    def compare(arm: str, base: str, name: str, sign: int) -> None:
        what = {"reward": "reward over the run", "late": "reward of the last eight steps", "gap": "sampler's gap"}[name]
        ours, theirs = column(cells[arm], name), column(cells[base], name)
        change, low, high = paired(ours, theirs)
        text = f"{what}: {base} {interval(theirs)[0]:.3f}, {arm} {interval(ours)[0]:.3f}; {change:+.3f}"
        figures.append(
            Figure(
                what=f"{what}: {arm} against {base}",
                before=interval(theirs)[0],
                after=interval(ours)[0],
                low=low,
                high=high,
                seen=low > 0 if sign > 0 else high < 0,
                text=f"{text} [{low:+.3f}, {high:+.3f}]",
            )
        )

    compare("lag, none", "fresh", "reward", -1)
    for name in ("tis", "icepop", "mis"):
        compare(f"lag for long, {name}", "lag for long, none", "late", +1)
    compare("lag for long, tis", "lag for long, none", "gap", -1)
    compare("lag, bypass", "lag, none", "reward", +1)
    compare("int4, none", "fresh", "reward", -1)
    for name in ("tis", "icepop"):
        compare(f"int4, {name}", "int4, none", "reward", +1)
    return figures


def _arm(correction: str, lag: int = 0, rounding: str = "none", steps: int = 24) -> dict[str, Any]:
    return {"correction": correction, "lag": lag, "rounding": rounding, "steps": steps, "lr": 1e-3}


STUDY = Study(
    name="stale_samples",
    claim="samples from weights of eight steps ago slow learning and in the end undo it; corrections keep it from that",
    source="Yao et al. 2025 (blog); Ling team 2025 (arXiv 2510.18855); Liu, Li et al. 2025 (blog)",
    arms={"fresh": _arm("none")}
    | {f"lag, {name}": _arm(name, lag=8) for name in ("none", "bypass")}
    | {f"lag for long, {name}": _arm(name, lag=8, steps=40) for name in ("none", "tis", "icepop", "mis")}
    | {f"int4, {name}": _arm(name, rounding="int4") for name in ("none", "tis", "icepop")},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
