"""Which weakness of an annotator RL finds: the pressure of `reward_hacking` on proxies of annotators with one or none.

All arms of a seed begin with one start and let different annotators choose among the same answers. An annotator without
weaknesses is as noisy as the others, and his proxy is learned from as few comparisons.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.assets.world.rater import Weaknesses
from posttrain.lab.portrait_runs import column, proxies, start
from posttrain.lab.studies.reward_hacking import UNCHARGED, pressed, reward_of
from posttrain.lab.study import Cells, Figure, Study, interval, paired

KEPT = ("gold_start", "gold_peak", "gold_end", "peak_distance", "end_distance")


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Gold along a run against the annotator's proxy, and what the last answers look like."""
    model = start(scratch, seed, given["start_steps"])
    weak = Weaknesses(given["missed"], given["length"], given["politeness"])
    judges = proxies(scratch, model, seed, given["pair_prompts"], weak=weak)
    found = pressed(scratch / "rl", model, reward_of(judges), UNCHARGED, given, seed)
    traits = {name: values[-1] for name, values in found["page"]["traits"].items()}
    return {name: found[name] for name in (*KEPT, "gold")} | traits


def read(cells: Cells) -> list[Figure]:
    """Gold up to the peak and after it, by annotator; then each beside the one with all weaknesses."""
    figures: list[Figure] = []

    def differ(what: str, before: list[float], after: list[float], wanted: int) -> None:
        gain, low, high = paired(after, before)
        first, last = interval(before)[0], interval(after)[0]
        seen = low > 0 if wanted > 0 else high < 0
        text = f"{what}: {first:+.3f} → {last:+.3f}, {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=first, after=last, low=low, high=high, seen=seen, text=text))

    for arm, by_seed in cells.items():
        at = {name: column(by_seed, name) for name in KEPT}
        differ(f"{arm}: gold, start to peak", at["gold_start"], at["gold_peak"], +1)
        differ(f"{arm}: gold, peak to end", at["gold_peak"], at["gold_end"], -1)
    every = cells["all three"]
    for arm in (name for name in cells if name != "all three"):
        for name, what in (("gold_peak", "gold at the peak"), ("gold_end", "gold at the end")):
            differ(f"{what}: all three → {arm}", column(every, name), column(cells[arm], name), +1)
    return figures


_SIZE = {"start_steps": 100, "pair_prompts": 160, "steps": 96, "lr": 1e-3}
_NO = {"missed": 0.0, "length": 0.0, "politeness": 0.0}

STUDY = Study(
    name="reward_flaws",
    claim="under the same pressure gold ends higher where the annotator has one weakness or none than where all three",
    source="Gao et al. 2022 (arXiv 2210.10760); Singhal et al. 2023 (arXiv 2310.03716)",
    arms={
        "all three": {"missed": 0.5, "length": 0.35, "politeness": 0.6, **_SIZE},
        "errors missed": {**_NO, "missed": 0.5, **_SIZE},
        "likes length": {**_NO, "length": 0.35, **_SIZE},
        "likes politeness": {**_NO, "politeness": 0.6, **_SIZE},
        "none": {**_NO, **_SIZE},
    },
    seeds=(11, 12, 13, 14, 15),
    measure=measure,
    read=read,
)
