"""Two or more runs side by side: where their settings differ, where they ended, and their curves over the same axes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.pages import folder, page
from posttrain.pages.plot import draw
from posttrain.pages.run import SKIPPED, _short
from posttrain.train.metrics import HEADLINE

TAIL = 10
"""Steps at the end of a curve, or a tenth of it if that is more, whose mean is shown beside the last value."""


@dataclass(frozen=True)
class Side:
    """One of the runs."""

    name: str
    method: str
    settings: Mapping[str, Any]
    curves: Mapping[str, list[tuple[int, float]]]
    seconds: float

    @property
    def steps(self) -> int:
        """How many steps were logged."""
        return max((points[-1][0] + 1 for points in self.curves.values()), default=0)


def sides(runs: Sequence[Path]) -> list[Side]:
    """The runs, under the shortest names that tell them apart."""
    resolved = [run.resolve() for run in runs]
    shared = os.path.commonpath(resolved) if len(set(resolved)) > 1 else resolved[0].parent
    return [
        Side(str(path.relative_to(shared)), folder.method_of(run), folder.settings(run), folder.curves(run),
             folder.seconds(run))
        for run, path in zip(runs, resolved, strict=True)
    ]  # fmt: skip


def differing(found: Sequence[Side]) -> dict[str, list[str]]:
    """Setting -> its value in each run, "" where it has none; only those that differ."""
    keys = dict.fromkeys(key for side in found for key in side.settings)
    rows = {key: [_short(side.settings[key]) if key in side.settings else "" for side in found] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def shared_metrics(found: Sequence[Side], wanted: Sequence[str] = ()) -> list[str]:
    """Metrics that at least two of the runs have, those worth a glance first. wanted: only these."""
    names = dict.fromkeys(name for side in found for name in side.curves if name not in SKIPPED)
    counted = [name for name in names if sum(name in side.curves for side in found) > 1]
    order = {name: i for i, name in enumerate(HEADLINE)}
    chosen = [name for name in wanted if name in names] if wanted else counted
    return chosen if wanted else sorted(chosen, key=lambda name: order.get(name, len(order)))


def figures(side: Side, metric: str) -> tuple[float, float] | None:
    """(last value, mean over the last steps) of a metric; None where the run does not have it."""
    values = [value for _, value in side.curves.get(metric, ())]
    return (values[-1], fmean(values[-max(TAIL, len(values) // 10) :])) if values else None


def render_comparison(found: Sequence[Side], metrics: Sequence[str], command: str) -> str:
    """The comparison as one page."""
    plots = [plot for name in metrics if (plot := draw({
        "title": name.replace("_", " "), "metric": name,
        "lines": {side.name: side.curves.get(name, ()) for side in found},
    }))]  # fmt: skip
    rows = [(name, [figures(side, name) for side in found]) for name in metrics]
    return page.render(
        "compare.html.jinja", sides=found, settings=differing(found), plots=plots, rows=rows, command=command
    )
