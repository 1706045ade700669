"""What a study saw, as a small file in the package: posttrain/lab/digests/<name>.json. The book is drawn from these.

    schema      1
    name, kind  of the study; kind is "golden" or "studies"
    claim, source
                what must be seen, and the paper that says so
    version, hash
                the study's version; a hash of name, version and arms, by which changed settings are noticed
    arms        arm -> its settings
    seeds       all of them ran in every arm
    figures     a list of: what, before, after, low, high (95 % over seeds; null: infinite), seen, text (see
                `study.Figure`), and tolerance: how far `after` may be off when the study is repeated
    seen        whether all figures are
    cells       arm -> seed -> {"figures": name -> number or list of numbers, "seconds": of a core}
    provenance  made (UTC), posttrain, torch, python, machine, revisions (git; "+": changed files), code, seconds (sum)

Numbers are rounded to six digits, curves to four.
"""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.lab.cells import Cell, config_hash, figures_of
from posttrain.lab.menu import Entry
from posttrain.lab.study import Cells, Figure, Study, t_quantile
from posttrain.train import checkpoint

FOLDER = Path(__file__).with_name("digests")
SCHEMA = 1
SURE = 0.99
"""Of a tolerance: one repetition of unchanged things in a hundred leaves it, were it drawn anew."""


def make(entry: Entry, cells: Sequence[Cell]) -> dict[str, Any]:
    """The digest of a study whose cells have all run. Raises what `Study.read` raises."""
    study, found = entry.study, figures_of(cells)
    figures = study.read(found)
    tolerances = tolerances_of(study, found, figures)
    records = {cell: cell.record for cell in cells}
    by_arm: dict[str, dict[str, Any]] = {}
    for cell, record in records.items():
        values = {name: _short(x) for name, x in record["figures"].items()}
        by_arm.setdefault(cell.arm, {})[str(cell.seed)] = {"figures": values, "seconds": round(record["seconds"], 1)}
    return {
        "schema": SCHEMA,
        "name": study.name,
        "kind": entry.kind,
        "claim": study.claim,
        "source": study.source,
        "version": study.version,
        "hash": config_hash(study),
        "arms": json.loads(json.dumps(study.arms, default=dict)),
        "seeds": sorted({cell.seed for cell in cells}),
        "seen": all(bool(f.seen) for f in figures),
        "figures": [_figure(f, tolerances.get(f.what)) for f in figures],
        "cells": by_arm,
        "provenance": _provenance(list(records.values())),
    }


def tolerances_of(study: Study, cells: Cells, figures: Sequence[Figure]) -> dict[str, float]:
    """Figure -> how far its `after` may be off in a repetition, from its deviation between seeds.

        tolerance = t · √2 · e,   e² = (n - 1)/n · Σ_s (x₋ₛ - mean x₋)²

    x₋ₛ: the figure read without seed s (the jackknife, Tukey 1958; for a mean, e = s / √n). √2, since the record and
    the repetition both vary; t at 2 (n - 1) degrees of freedom. At least 5 % of |after - before|: a deviation of 0 over
    three seeds is no promise. A figure that cannot be read from n - 1 seeds has none.
    """
    seeds = sorted(next(iter(cells.values())))
    left: dict[str, list[float]] = {f.what: [] for f in figures}
    for out in seeds if len(seeds) > 2 else ():
        try:
            read = study.read({arm: {s: x for s, x in by.items() if s != out} for arm, by in cells.items()})
        except (ValueError, ArithmeticError, LookupError):
            return {}
        for f in read:
            left.setdefault(f.what, []).append(float(f.after))
    found, n = {}, len(seeds)
    for f in figures:
        values = left[f.what]
        if len(values) == n > 2 and all(map(math.isfinite, values)):
            mean = fmean(values)
            error = math.sqrt((n - 1) / n * sum((x - mean) ** 2 for x in values))
            least = max(0.05 * abs(f.after - f.before), 1e-6 * abs(f.after), 1e-9)
            found[f.what] = max(t_quantile(2 * (n - 1), SURE) * math.sqrt(2) * error, least)
    return found


def path_of(name: str, folder: Path | None = None) -> Path:
    """Where a study's digest is."""
    return (folder or FOLDER) / f"{name}.json"


def load(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The recorded digest of a study, None where there is none."""
    path = path_of(name, folder)
    return json.loads(path.read_text()) if path.exists() else None


def write(digest: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Record a digest; lists of numbers stay on a line."""
    path = path_of(digest["name"], folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(digest, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[[\s\d.,eE+-]*\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    checkpoint.write_text(path, text + "\n")
    return path


def outdated(study: Study, digest: Mapping[str, Any]) -> str | None:
    """Why a digest is not of this study as it is written now; None if it is."""
    if digest["hash"] == config_hash(study):
        return None
    arms = json.loads(json.dumps(study.arms, default=dict))
    if digest["version"] != study.version:
        return f"it was recorded with version {digest['version']}, now it is {study.version}"
    changed = [arm for arm in {**digest["arms"], **arms} if digest["arms"].get(arm) != arms.get(arm)]
    return f"its settings changed since it was recorded ({', '.join(changed)})"


def seconds_of(digest: Mapping[str, Any] | None, cell: Cell) -> float | None:
    """What a cell took when it was recorded."""
    found = (digest or {}).get("cells", {}).get(cell.arm, {}).get(str(cell.seed))
    return found and found["seconds"]


def _figure(figure: Figure, tolerance: float | None) -> dict[str, Any]:
    if not math.isfinite(figure.before) or not math.isfinite(figure.after):
        raise ValueError(f'the figure "{figure.what}" goes from {figure.before} to {figure.after}: both must be finite')
    plain = {k: _short(float(v)) if k in ("before", "after", "low", "high") else v for k, v in asdict(figure).items()}
    return plain | {"seen": bool(figure.seen), "tolerance": None if tolerance is None else _short(tolerance)}


def _short(value: Any) -> Any:
    """Rounded: six digits, in a list four; an infinite end of an interval is None."""
    if isinstance(value, list):
        return [float(f"{x:.4g}") for x in value]
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _provenance(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    versions = [r["versions"] for r in records]
    return {
        "made": max(r["made"] for r in records),
        "posttrain": versions[0].get("posttrain"),
        "torch": versions[0].get("torch"),
        "python": platform.python_version(),
        "machine": machine(),
        "revisions": sorted({r["revision"] or "installed" for r in records}),
        "code": sorted({r["code"] for r in records}),
        "seconds": round(sum(r["seconds"] for r in records), 1),
    }


def machine() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, one core per cell"
