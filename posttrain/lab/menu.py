"""Which studies there are: the files of `posttrain/lab/golden` and `posttrain/lab/studies`, by name.

A file ends in `STUDY = Study(...)`, or in `STUDIES`, a tuple of them. Golden studies take seconds, one per method, and
are repeated whole by `make golden`; the others are larger.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from posttrain.errors import UsageError, nearest
from posttrain.lab.study import Study

GOLDEN = (
    "best_of_n",
    "group",
    "ppo",
    "presets",
    "reinforce",
    "vapo",
)
"""One per method: one setting, three seeds."""

STUDIES = (
    "baseline",
    "clip_higher",
    "dynamic_sampling",
    "kl_controller",
    "length_bias",
    "longer_answers",
    "over_optimisation",
    "pass_at_k_training",
    "ppo_forms",
    "ppo_ptx",
    "ppo_rloo",
    "r1",
    "raft",
    "stale_samples",
)
"""Comparisons, sweeps, more seeds."""

FOLDERS = {"golden": GOLDEN, "studies": STUDIES}


@dataclass(frozen=True)
class Entry:
    """A study and where it is written."""

    kind: str
    """golden or studies."""
    module: str
    """Dotted name of its file."""
    study: Study


def entries(kind: str, names: Iterable[str] = ()) -> list[Entry]:
    """The studies of a kind in the menu's order; with names, those alone: of a study, or of a file with several.

    Raises UsageError for an unknown name.
    """
    found = [e for name in FOLDERS[kind] for e in of_module(f"posttrain.lab.{kind}.{name}", kind)]
    wanted = [name.replace("-", "_") for name in names]
    known = [w for e in found for w in (e.study.name, e.module.rpartition(".")[2])]
    for name in wanted:
        if name not in known:
            other = [k for k in FOLDERS if k != kind and name in FOLDERS[k]]
            hint = f"It is one of {other[0]}. " if other else ""
            raise UsageError(f'there is no study "{name}" in {kind}. {hint}{nearest(name, dict.fromkeys(known))}')
    return [e for e in found if not wanted or {e.study.name, e.module.rpartition(".")[2]} & set(wanted)]


def of_module(module: str, kind: str = "studies") -> list[Entry]:
    """The studies that a file ends in."""
    loaded = importlib.import_module(module)
    studies = (loaded.STUDY,) if hasattr(loaded, "STUDY") else loaded.STUDIES
    return [Entry(kind, module, study) for study in studies]
