"""R1-Zero's curve: answers grow longer as they get better, when working a problem out pays."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.lab.short_runs import answers_of, column, config, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.models.load import load


def first_lines(model: Path | str, problems: int, seed: int) -> tuple[float, float]:
    """Tokens of the first line of sampled answers, where the answer stands, and the share of right ones among them.

    What a base model writes after it belongs to the next document of its corpus, and is no part of the answer.
    """
    said = [m for g in answers_of(model, k=8, n=problems, seed=seed).sampled for m in g.members]
    tokenizer = load("base").tokenizer
    length = fmean(len(tokenizer.encode(m.completion.partition("\n")[0])) for m in said)
    return length, fmean(last_of_line(m.completion) == m.task.answer for m in said)


def last_of_line(text: str) -> str | None:
    """The last number of the first line."""
    from posttrain.data.tasks import last_number

    return last_number(text.partition("\n")[0])


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Before and after."""
    model = run(scratch, config("grpo", seed, steps=settings["steps"], lr=settings["lr"]))
    before, after = (first_lines(m, settings["problems"], seed) for m in ("base", model))
    return {"length_before": before[0], "right_before": before[1], "length": after[0], "right": after[1]}


def read(cells: Cells) -> list[Figure]:
    """Both rise."""
    figures = []
    for name, what in (("length", "tokens of an answer"), ("right", "share of right answers")):
        before, after = column(cells["grpo"], f"{name}_before"), column(cells["grpo"], name)
        gain, low, high = paired(after, before)
        text = f"{what}: {interval(before)[0]:.3g} → {interval(after)[0]:.3g}, by {gain:+.3g} [{low:+.3g}, {high:+.3g}]"
        figures.append(Figure(what=what, before=interval(before)[0], after=interval(after)[0], low=low, high=high,
                              seen=low > 0, text=text))  # fmt: skip
    return figures


STUDY = Study(
    name="longer_answers",
    claim="answers grow longer as they get better: from a guess to columns worked out, unasked",
    source="DeepSeek-AI 2025 (arXiv 2501.12948), figure 3",
    arms={"grpo": {"steps": 40, "lr": 2e-3, "problems": 48}},
    seeds=(0, 1, 2, 3, 4),
    sections=("23",),
    measure=measure,
    read=read,
)
