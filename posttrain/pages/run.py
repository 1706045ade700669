"""The report of one run as a page: what was asked, what was planned, what happened, what was said, what was checked."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.errors import ConfigError
from posttrain.pages import folder, page
from posttrain.pages.plot import Plot, draw
from posttrain.pages.samples import Sample, decoder, read
from posttrain.train.metrics import HEADLINE, lookup

NAME = "report.html"
SHOWN = 4
"""Samples of the first and of the last step."""
SKIPPED = ("epoch", "env_steps")
"""Metrics that only count."""


def write_run(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not; default: report.html in its folder."""
    path = out or run / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_run(run), encoding="utf-8", newline="\n")
    return path


def render_run(run: Path) -> str:
    """The page of a run as text."""
    meta, result, failed = (folder.table(run, f"{name}.json") for name in ("meta", "result", "failed"))
    curves = folder.curves(run)
    last = {name: points[-1][1] for name, points in curves.items()} | dict(result.get("metrics", {}))
    checks = sorted(folder.checks(run), key=lambda check: bool(check["ok"]))
    plots = [plot for name, points in curves.items() if name not in SKIPPED and len(points) > 1
             and (plot := draw({"metric": name, "title": name.replace("_", " "), "points": points}))]  # fmt: skip
    first = sum(plot.metric in HEADLINE or plot.metric.startswith("eval_") for plot in plots)
    plots.sort(key=lambda plot: not (plot.metric in HEADLINE or plot.metric.startswith("eval_")))
    return page.render(
        "run.html.jinja",
        name=run.resolve().name,
        folder=str(run),
        method=meta.get("method", "?"),
        state="finished" if result else "failed" if failed else "not finished",
        failed=failed,
        steps=max((points[-1][0] + 1 for points in curves.values() if points), default=0),
        seconds=folder.seconds(run),
        plan=folder.text(run, "plan.txt").strip(),
        settings=changed(run, meta),
        toml=folder.text(run, "config.toml"),
        metrics=[(name, value, _entry(name)) for name, value in last.items() if name not in SKIPPED],
        plots=plots,
        shown=first or len(plots),
        calibration=calibration(run),
        samples=examples(run),
        checks=checks,
        broken=sum(not check["ok"] for check in checks),
        meta=meta,
        inner=[str(path.parent.relative_to(run)) for path in sorted(run.glob("*/config.toml"))],
    )


def examples(run: Path) -> list[tuple[int, list[tuple[Sample, list[Plot]]]]]:
    """(step, samples with their curves) of the first and the last step that have samples."""
    decode, found = decoder(run), []
    for records in (folder.samples(run, first=True), folder.samples(run)):
        if records and (not found or found[0][0] != records[0]["step"]):
            drawn = []
            for one in (read(record, decode) for record in records[:SHOWN]):
                plots = (draw({"title": name, "points": points}) for name, points in one.curves.items())
                drawn.append((one, [plot for plot in plots if plot]))
            found.append((records[0]["step"], drawn))
    return found


def changed(run: Path, meta: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """(key, value, default where it is another) of each setting; all defaults None where the method is not known."""
    given = folder.settings(run)
    module, _, name = meta.get("config_class", "").rpartition(".")
    usual: dict[str, Any] = {}
    try:
        defaults = getattr(importlib.import_module(module), name)()
        usual = dict(folder.flat(folder.tomllib.loads(config.to_toml(defaults))))
    except (ImportError, ValueError, AttributeError, TypeError, ConfigError):
        pass  # somebody's own method, or one with required settings
    return [
        (key, _short(value), _short(usual[key]) if key in usual and usual[key] != value else None)
        for key, value in given.items()
    ]


def calibration(run: Path) -> Plot | None:
    """How often a reward model is right against how sure it is; None for any other run."""
    found = folder.table(run, "calibration.json")
    points = [(sure, right) for n, sure, right in zip(*found.values(), strict=True) if n] if found else []
    if not points:
        return None
    low = min(0.5, *(min(p) for p in points))
    lines = {"this reward model": points, "one that is calibrated": [(low, low), (1.0, 1.0)]}
    return draw({"lines": lines, "title": "How sure it is, and how often it is right", "metric": "share of pairs right",
                 "x": "confidence", "box": (low, 1.0, low, 1.0)})  # fmt: skip


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _entry(name: str) -> Any:
    try:
        return lookup(name)
    except KeyError:
        return None
