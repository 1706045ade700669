"""DAPO's clip-higher: a wider upper edge lets rare tokens become likely, so that entropy lasts longer.

On rewards that a coin decides nothing is to be learned, and what entropy does is the clip's own doing: the usual edges
push towards what is likely already (Shao et al. 2025, arXiv 2506.10947). On questions about words it is seen at work.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.lab.short_runs import column, config, mean_of, run
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.surrogate import Clip
from posttrain.recipes.stages import curve

COIN = """from posttrain import rng

def coin(task, trajectory):
    return float(rng.fold(0, task.id, trajectory.completion) % 2)
"""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Entropy over the second half, what the clip cut, and the reward, with twelve updates to a rollout."""
    objective = Objective(clip=Clip(low=0.2, high=settings["high"]), average=Average("token"))
    changes = {}
    if settings["reward"] == "coin":
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "coin.py").write_text(COIN)
        changes["reward"] = f"{scratch / 'coin.py'}:coin"
    folder = scratch / "run"
    cfg = config(objective, seed, steps=settings["steps"], lr=5e-4, task=settings["task"], max_tokens=16,
                 schedule="constant", epochs=3, minibatches=4, **changes)  # fmt: skip
    run(folder, cfg)
    late = max(1, settings["steps"] // 2)
    return {
        "entropy": mean_of(folder, "entropy", last=late),
        "cut": mean_of(folder, "clip_high_share"),
        "reward": mean_of(folder, "reward_mean", last=late),
        "curve": [y for _, y in curve(folder, "entropy")],
    }


def read(cells: Cells) -> list[Figure]:
    """More entropy; fewer tokens cut above; what the reward says of it where there is one to learn."""
    figures = []
    for task, high in (("coin", "1.0"), ("words", "0.28")):
        for name, what, sign in (("entropy", "entropy, second half", 1), ("cut", "share of tokens cut above", -1)):
            narrow, wide = (column(cells[f"{task}, {edge}"], name) for edge in ("0.2", high))
            gap, low, high_end = paired(wide, narrow)
            text = (
                f"{task}, {what}: edge 0.2 {interval(narrow)[0]:.4f}, edge {high} {interval(wide)[0]:.4f}; {gap:+.4f}"
            )
            figures.append(
                Figure(
                    what=f"{task}: {what}, upper edge {high} against 0.2",
                    before=interval(narrow)[0],
                    after=interval(wide)[0],
                    low=low,
                    high=high_end,
                    seen=low > 0 if sign > 0 else high_end < 0,
                    text=f"{text} [{low:+.4f}, {high_end:+.4f}]",
                )
            )
    return figures


STUDY = Study(
    name="clip_higher",
    claim="a wider upper edge of the clip keeps entropy",
    source="Yu et al. 2025 (arXiv 2503.14476), section 3.1",
    arms={f"coin, {high}": {"reward": "coin", "task": "sums", "high": high, "steps": 12} for high in (0.2, 1.0)}
    | {f"words, {high}": {"reward": "auto", "task": "words", "high": high, "steps": 12} for high in (0.2, 0.28)},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
