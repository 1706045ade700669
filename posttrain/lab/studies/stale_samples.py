"""Samples from old or rounded weights: what they cost, and what each correction gives back."""

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
    """Old and rounded samples against fresh ones; each correction against none, on the same samples' age."""
    figures = []

    def compare(arm: str, base: str, wanted: int) -> None:
        ours, theirs = column(cells[arm], "reward"), column(cells[base], "reward")
        gap, low, high = paired(ours, theirs)
        text = f"reward over the run: {base} {interval(theirs)[0]:.3f}, {arm} {interval(ours)[0]:.3f}; {gap:+.3f}"
        figures.append(
            Figure(
                what=f"{arm} against {base}",
                before=interval(theirs)[0],
                after=interval(ours)[0],
                low=low,
                high=high,
                seen=low > 0 if wanted > 0 else high < 0,
                text=f"{text} [{low:+.3f}, {high:+.3f}]",
            )
        )

    for source in ("lag", "int4"):
        compare(f"{source}, none", "fresh", -1)
        for name in CORRECTIONS:
            if name != "none" and f"{source}, {name}" in cells:
                compare(f"{source}, {name}", f"{source}, none", +1)
    return figures


def _arm(correction: str, lag: int = 0, rounding: str = "none") -> dict[str, Any]:
    return {"correction": correction, "lag": lag, "rounding": rounding, "steps": 24, "lr": 1e-3}


STUDY = Study(
    name="stale_samples",
    claim="samples from weights of eight steps ago, or from weights in four bits, slow learning, and corrections help",
    source="Yao et al. 2025 (blog); Ling team 2025 (arXiv 2510.18855); Liu, Li et al. 2025 (blog)",
    arms={"fresh": _arm("none")}
    | {f"lag, {name}": _arm(name, lag=8) for name in CORRECTIONS}
    | {f"int4, {name}": _arm(name, rounding="int4") for name in ("none", "tis", "icepop")},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
