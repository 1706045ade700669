"""Are our learning curves those of TRL? DPO and GRPO on the tiny random model, at equal steps, five seeds each.

Both sides are processes of `benchmarks/curves.py`: the same weights, rows, order, batch, optimizer and step size. DPO
has no randomness left, so that its curves must agree seed by seed; GRPO draws its own answers on either side. Needs a
checkout and TRL's environment (`python benchmarks/peers.py`).
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from posttrain.errors import MissingExtra, RunError
from posttrain.lab.study import Cells, Figure, Study, interval, paired, t_quantile

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ENVIRONMENT = BENCHMARKS / ".venv-trl"
ROUNDING = 1e-5  # of float32 on either side, where all seeds say the same: DPO's loss is log 2 before the first update


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """The curves of one side: a list with one number per step for each."""
    if not (ENVIRONMENT / ".installed").exists():
        raise MissingExtra(
            f"TRL is compared with in an environment of its own, and {ENVIRONMENT} is missing. In a checkout, run: "
            "python benchmarks/peers.py"
        )
    side = settings["side"]
    told = json.dumps({k: v for k, v in settings.items() if k != "side"} | {"seed": seed})
    _call(sys.executable, "data", scratch, told)
    _call(ENVIRONMENT / "bin" / "python" if side == "theirs" else sys.executable, side, scratch, told)
    return json.loads((scratch / f"{side}.json").read_text())


def _call(python: Path | str, what: str, folder: Path, told: str) -> None:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "TOKENIZERS_PARALLELISM": "false"}
    words = [str(python), str(BENCHMARKS / "curves.py"), what, str(folder.resolve()), told]
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    if done.returncode:
        raise RunError(f"benchmarks/curves.py {what} ended with exit code {done.returncode}; its output is above")


def band(curves: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Where the mean over as many other seeds lies with 95 %, step by step.

        mean ± t · s · √(2/n)

    √2, since both means vary: a repetition of theirs leaves it in one step of twenty.
    """
    n = len(curves)
    ends = []
    for values in zip(*curves, strict=True):
        half = t_quantile(n - 1) * stdev(values) * math.sqrt(2 / n) if n > 1 else math.inf
        ends.append((fmean(values) - half, fmean(values) + half))
    return ends


def read(cells: Cells) -> list[Figure]:
    """Ours lies within theirs: at nine of ten steps or more, and so does its mean over all steps."""
    figures, seeds = [], sorted(cells["theirs"])
    for name in cells["theirs"][seeds[0]]:
        ours, theirs = ([cells[side][seed][name] for seed in seeds] for side in ("ours", "theirs"))
        mean = [fmean(values) for values in zip(*ours, strict=True)]
        inside = fmean(
            low - ROUNDING <= x <= high + ROUNDING for x, (low, high) in zip(mean, band(theirs), strict=True)
        )
        narrow = fmean(interval(x)[1] - ROUNDING <= y <= interval(x)[2] + ROUNDING
                       for x, y in zip(zip(*theirs, strict=True), mean, strict=True))  # fmt: skip
        ((low, high),) = band([[fmean(curve)] for curve in theirs])
        area = fmean(mean)
        last = max(1, len(mean) // 6)
        ends = [[fmean(curve[-last:]) for curve in side] for side in (theirs, ours)]
        gap, least, most = paired(ends[1], ends[0])
        furthest = max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
        text = (f"{name}, last {last} steps: TRL {fmean(ends[0]):.4f}, ours {fmean(ends[1]):.4f} ({gap:+.4f} "
                f"[{least:+.4f}, {most:+.4f}]); from {fmean(c[0] for c in theirs):.4f} in the first; within TRL's "
                f"interval at {inside:.0%} of {len(mean)} steps (at {narrow:.0%} within that of their mean alone, as "
                f"if ours had no spread); over all steps TRL {fmean(map(fmean, theirs)):.4f}, "
                f"ours {area:.4f}; the largest gap at one step of one seed is {furthest:.2g}")  # fmt: skip
        figures.append(Figure(what=f"{name}, last steps: TRL, ours", before=fmean(ends[0]), after=fmean(ends[1]),
                              low=least, high=most, seen=inside >= 0.9 and low <= area <= high, text=text))  # fmt: skip
    return figures


def arms(**settings: Any) -> dict[str, dict[str, Any]]:
    """Both sides, told the same."""
    return {side: {"side": side, **settings} for side in ("theirs", "ours")}


STUDIES = (
    Study(
        name="dpo_beside_trl",
        claim="at equal steps DPO's loss, margin and accuracy are those of TRL",
        source="Rafailov et al. 2023 (arXiv 2305.18290); TRL 1.16.0",
        arms=arms(job="dpo", steps=60, rows=8, samples=1, answer=0, lr=1e-4),
        seeds=(0, 1, 2, 3, 4),
        measure=measure,
        read=read,
    ),
    Study(
        name="grpo_beside_trl",
        claim="at equal steps GRPO's mean reward is that of TRL",
        source="Shao et al. 2024 (arXiv 2402.03300); TRL 1.16.0",
        arms=arms(job="grpo", steps=50, rows=4, samples=8, answer=16, lr=1e-3),
        seeds=(0, 1, 2, 3, 4),
        measure=measure,
        read=read,
    ),
)
