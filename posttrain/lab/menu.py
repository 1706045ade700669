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
    "control_ppo",
    "control_reinforce",
    "group",
    "online_preference",
    "ppo",
    "preference",
    "presets",
    "reinforce",
    "reward_model",
    "rrhf",
    "segments",
    "sft",
    "trpo",
    "unpaired",
    "vapo",
)
"""One per method: one setting, three seeds."""

STUDIES = (
    "baseline",
    "beside_trl",
    "clip_epochs",
    "clip_higher",
    "comparisons_asked",
    "control_gradients",
    "dynamic_sampling",
    "flipped_labels",
    "group_size",
    "ipo_margin",
    "kl_controller",
    "kl_estimators",
    "kl_losses",
    "kto_half",
    "leash",
    "length_bias",
    "length_confounded",
    "likelihood",
    "longer_answers",
    "next_token",
    "one_loss",
    "online_rounds",
    "pass_at_k_training",
    "ppo_forms",
    "ppo_ptx",
    "ppo_rloo",
    "r1",
    "raft",
    "reward_flaws",
    "reward_hacking",
    "scorers",
    "stale_samples",
    "trust_regions",
)
"""Comparisons, sweeps, more seeds."""

FOLDERS = {"golden": GOLDEN, "studies": STUDIES}


@dataclass(frozen=True, eq=False)
class Entry:
    """A study and where it is written."""

    kind: str
    """golden or studies."""
    module: str
    """Dotted name of its file."""
    study: Study

    @property
    def words(self) -> tuple[str, str]:
        """By which it is asked for: its own name, and that of its file."""
        return self.study.name, self.module.rpartition(".")[2]


def entries(kind: str, names: Iterable[str] = ()) -> list[Entry]:
    """The studies of a kind in the menu's order; with names, those alone: of a study, or of a file with several.

    Raises UsageError for an unknown name.
    """
    wanted = [name.replace("-", "_") for name in names]
    files = [f for f in FOLDERS[kind] if f in wanted] if set(wanted) <= set(FOLDERS[kind]) else []
    found = [e for f in files or FOLDERS[kind] for e in of_module(f"posttrain.lab.{kind}.{f}", kind)]
    known = [word for e in found for word in e.words]
    for name in wanted:
        if name not in known:
            other = [k for k in FOLDERS if k != kind and name in FOLDERS[k]]
            hint = f"It is one of {other[0]}. " if other else ""
            raise UsageError(f'there is no study "{name}" in {kind}. {hint}{nearest(name, dict.fromkeys(known))}')
    return [e for e in found if not wanted or set(e.words) & set(wanted)]


def of_sections(numbers: Iterable[str]) -> list[Entry]:
    """The studies that sections of the book show, by the sections' numbers. Raises UsageError where there is none."""
    known = [e for kind in FOLDERS for e in entries(kind)]
    found: dict[str, Entry] = {}
    for number in numbers:
        of_it = {e.study.name: e for e in known if number.zfill(2) in e.study.sections}
        if not of_it:
            have = ", ".join(sorted({s for e in known for s in e.study.sections}))
            raise UsageError(f"section {number} of the book shows no study. Sections that do: {have or 'none'}.")
        found |= of_it
    return list(found.values())


def of_module(module: str, kind: str = "studies") -> list[Entry]:
    """The studies that a file ends in."""
    loaded = importlib.import_module(module)
    studies = (loaded.STUDY,) if hasattr(loaded, "STUDY") else loaded.STUDIES
    return [Entry(kind, module, study) for study in studies]
