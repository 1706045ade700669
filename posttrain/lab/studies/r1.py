"""R1 against R1-Zero at equal steps of RL: the recipe at a smaller size, three seeds.

Its shares are the paper's: most of the RL in the first stage, three quarters of the fine-tuning data from its model. On
seed 0, which is therefore not reported, a split in halves and a fifth gave R1 no lead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.portrait_runs import column
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.recipes import r1
from posttrain.recipes.gather import Setting

KEYS = ("form", "greedy", "pass_1", "pass_8", "other")


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """The recipe's figures of R1, R1-Zero and the distilled small model."""
    found = r1.run(r1.Size(**settings), Setting(out=scratch, seed=seed, threads=1, say=lambda text: None))
    stages = {s["name"]: s for s in found["stages"]}
    figures = {f"{name}_{key}": stages[name][key]["value"] for name in stages for key in KEYS}
    return figures | {f"{name}_length": stages[name]["length"] for name in stages}


def read(cells: Cells) -> list[Figure]:
    """R1 minus R1-Zero, and the distilled model minus the cold start of the large one, seed by seed."""
    cell, figures = cells["recipe"], []
    for one, other, key, what in (
        ("r1", "zero", "form", "answers in form, R1-Zero → R1"),
        ("r1", "zero", "greedy", "problems solved, R1-Zero → R1"),
        ("r1", "zero", "pass_1", "pass@1, R1-Zero → R1"),
        ("r1", "zero", "other", "other tasks solved, R1-Zero → R1"),
        ("small", "cold", "greedy", "problems solved, cold start → distilled, a layer fewer"),
    ):
        before, after = column(cell, f"{other}_{key}"), column(cell, f"{one}_{key}")
        gain, low, high = paired(after, before)
        start, end = interval(before)[0], interval(after)[0]
        text = f"{what}: {start:.3f} → {end:.3f}, {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=start, after=end, low=low, high=high, seen=low > 0, text=text))
    return figures


STUDY = Study(
    name="r1",
    claim="the R1 recipe beats R1-Zero in form and in accuracy at equal steps of RL",
    source="DeepSeek-AI 2025 (arXiv 2501.12948)",
    arms={
        "recipe": {
            "cold": 1500,
            "rl_steps": 35,
            "all_steps": 15,
            "sampling_steps": 80,
            "general": 350,
            "problems": 90,
            "others": 60,
        },
    },
    seeds=(3, 4, 5),
    measure=measure,
    read=read,
)
