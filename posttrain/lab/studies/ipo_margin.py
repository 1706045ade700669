"""Where the margin ends: IPO's at 1/(2β), where its formula says, DPO's nowhere.

A few pairs are shown again and again, so that every preference is certain. DPO's best margin is then infinite, and only
the number of steps holds it; IPO's loss is least at one finite gap h of the log-ratios, whatever the number of steps.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import preference
from posttrain.lab.preference_runs import column, common, compared, rise, start, trained, values
from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.objectives.preference import PreferenceLoss


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Of each loss the gap h between the two log-ratios, in the middle of the run and at its end."""
    model = start(scratch, seed)
    rows = compared(scratch, model, seed, given["prompts"]).read_text().splitlines()[: given["pairs"]]
    few = scratch / "few.jsonl"
    few.write_text("\n".join(rows) + "\n")
    found = {}
    for name, beta in given["losses"].items():
        same = common(model, few, seed, steps=given["steps"], lr=given["lr"], batch_size=given["pairs"], held=0)
        trained(scratch / name, preference, preference.Config(loss=PreferenceLoss(name=name, beta=beta), **same))
        gap = [x / beta for x in values(scratch / name, "margin")]
        half = len(gap) // 2
        found |= {f"{name} middle": fmean(gap[half - 3 : half + 3]), f"{name} end": fmean(gap[-6:])}
    return found | {"target": 1 / (2 * given["losses"]["ipo"])}


def read(cells: Cells) -> list[Figure]:
    """DPO's gap goes on growing; IPO's lies within a tenth of its target and moves no more."""
    seeds = cells["few pairs"]
    target = column(seeds, "target")
    middle, end = (column(seeds, f"ipo {when}") for when in ("middle", "end"))
    mean, low, high = interval([x / t for x, t in zip(end, target, strict=True)])
    text = f"ipo: the gap ends at {mean:.3f} [{low:.3f}, {high:.3f}] of 1/(2β) = {target[0]:g}"
    still, *ends = interval([(b - a) / t for a, b, t in zip(middle, end, target, strict=True)])
    return [
        rise("dpo: gap in the middle and at the end", column(seeds, "dpo middle"), column(seeds, "dpo end")),
        Figure(what="ipo: end over target", before=1.0, after=mean, low=low, high=high,
               seen=low > 0.9 and high < 1.1, text=text),
        Figure(what="ipo: second half", before=0.0, after=still, low=ends[0], high=ends[1],
               seen=max(map(abs, ends)) < 0.1,
               text=f"ipo: in the second half the gap moves by {still:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}] targets"),
    ]  # fmt: skip


STUDY = Study(
    name="ipo_margin",
    claim="on certain preferences IPO's margin stops at 1/(2β), and DPO's grows as long as one trains",
    source="Azar et al. 2023 (arXiv 2310.12036)",
    arms={"few pairs": {"prompts": 16, "pairs": 12, "steps": 60, "lr": 5e-4, "losses": {"dpo": 0.1, "ipo": 0.1}}},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
    sections=("16",),
)
