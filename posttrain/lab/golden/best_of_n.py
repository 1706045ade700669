"""Golden run: RAFT, three rounds of sampling, choosing and fine-tuning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import best_of_n
from posttrain.algorithms.best_of_n import Keep
from posttrain.data.rows import Data
from posttrain.lab.portrait_runs import column
from posttrain.lab.portrait_runs import settings as common
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.recipes.stages import curve, stage
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Share of right sampled answers to new questions about words, before any choice: first round and last."""
    cfg = best_of_n.Config(
        template="plain",
        data=Data(path="builtin:words", limit=2000),
        keep=Keep(most=1, least=1.0),
        rounds=settings["rounds"],
        prompts=16,
        group_size=16,
        steps=settings["steps"],
        sampling=SamplingParams(max_tokens=16),
        batch_size=16,
        epochs=2.0,
        optim=Optim(lr=settings["lr"]),
        run=common(seed),
    )
    stage(scratch, best_of_n, cfg)
    steps = settings["steps"]
    right, distinct = ([y for _, y in curve(scratch, name)] for name in ("reward_mean", "distinct_share"))
    return {
        "before": sum(right[:steps]) / steps,
        "after": sum(right[-steps:]) / steps,
        "distinct_before": sum(distinct[:steps]) / steps,
        "distinct_after": sum(distinct[-steps:]) / steps,
    }


def read(cells: Cells) -> list[Figure]:
    """The share rises by a third of all answers; and fewer of them are distinct."""
    figures = []
    for what, ends, wanted in (("right answers", ("before", "after"), 1 / 3),
                               ("distinct answers", ("distinct_before", "distinct_after"), None)):  # fmt: skip
        before, after = (column(cells["raft"], name) for name in ends)
        gain, low, high = paired(after, before)
        seen = low > wanted if wanted else high < 0
        start, end = interval(before)[0], interval(after)[0]
        text = f"{what} {start:.3f} → {end:.3f}: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=start, after=end, low=low, high=high, seen=seen, text=text))
    return figures


STUDY = Study(
    name="best_of_n",
    claim="RAFT turns what one answer in sixteen does into what most do, and its answers grow more alike",
    source="Dong et al. 2023 (arXiv 2304.06767)",
    arms={"raft": {"rounds": 4, "steps": 3, "lr": 5e-4}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
