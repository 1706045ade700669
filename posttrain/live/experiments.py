"""Which experiments a page may start, and within which bounds: no page sends code, a path, or any other setting.

Each is a short run of the library on the embedded base, in one process. Settings are numbers or choices with bounds, so
that no run is longer than a few minutes. What happens in it is a list of events, the same that a study records for a
widget: {"step", "metrics", "samples"}.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.errors import ConfigError, nearest

Value = float | int | str


@dataclass(frozen=True)
class Number:
    """A setting between two ends; whole if its default is."""

    default: float | int
    low: float | int
    high: float | int

    def read(self, name: str, value: Any) -> float | int:
        """The value, if it is one. Raises ConfigError."""
        whole = isinstance(self.default, int)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.low <= value <= self.high:
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{name} = {value!r}: it is {kind} from {self.low:g} to {self.high:g}.")
        return value if whole else float(value)


@dataclass(frozen=True)
class Choice:
    """A setting of a few words."""

    default: str
    among: tuple[str, ...]

    def read(self, name: str, value: Any) -> str:
        """The value, if it is one. Raises ConfigError."""
        if not isinstance(value, str) or value not in self.among:
            raise ConfigError(f"{name} = {value!r}: it is one of {', '.join(self.among)}.")
        return value


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run that a page may start."""

    section: str
    says: str
    """What runs, in one sentence."""
    settings: Mapping[str, Number | Choice]
    run: Callable[[Mapping[str, Value], Path], tuple[ModuleType, Any]]
    """(settings, folder) -> method and its config; what must be there before it (a start, a reward) is made first."""
    metrics: tuple[str, ...]
    """Of the run's metrics, those that an event has."""
    samples: int = 8
    """Answers in an event, at most."""
    also: Callable[[Mapping[str, float], list[dict[str, Any]]], dict[str, float]] = lambda metrics, samples: {}
    """A step's metrics and all its answers (lines of samples.jsonl) -> further metrics of its event."""
    seconds: int = 600
    """After which it is stopped."""

    def read(self, given: Mapping[str, Any]) -> dict[str, Value]:
        """All settings, the others by default. Raises ConfigError for another name or a value outside."""
        for name in given:
            if name not in self.settings:
                raise ConfigError(f'there is no setting "{name}". {nearest(name, self.settings)}')
        return {n: s.read(n, given[n]) if n in given else s.default for n, s in self.settings.items()}


def leash(settings: Mapping[str, Value], folder: Path) -> tuple[ModuleType, Any]:
    """Portraits of one person with β times the KL in the reward: the run of the study."""
    from posttrain.algorithms import group
    from posttrain.lab.leash_runs import config

    return group, config(folder, settings["seed"], max(settings["beta"], UNCHARGED), settings["steps"], lr=1e-3)


def pressure(settings: Mapping[str, Value], folder: Path) -> tuple[ModuleType, Any]:
    """Portraits of people under a reward model of the rater's choices, who likes what gold does not."""
    from posttrain.lab.portrait_runs import proxies, start

    model = start(folder, settings["seed"], 100)
    (proxy,) = proxies(folder, model, settings["seed"], 80)
    return _group(settings, "builtin:about", _charging(settings["beta"]), max_tokens=64, lr=2e-4 * settings["pressure"],
                  model=str(model), template="auto", reward=f"model:{proxy}")  # fmt: skip


def kl_of(metrics: Mapping[str, float], samples: list[dict[str, Any]]) -> dict[str, float]:
    """The KL from the reference, in nats per answer."""
    return {"kl": metrics["kl_ref_k1"] * metrics["length_mean"]} if "kl_ref_k1" in metrics else {}


def gold_of(metrics: Mapping[str, float], samples: list[dict[str, Any]]) -> dict[str, float]:
    """The true grade of a step's portraits, and the KL."""
    from statistics import fmean

    from posttrain.assets.world import people
    from posttrain.recipes import measure
    from posttrain.records import Stop

    values = [
        measure.gold(people.PEOPLE[s["task"].split("-")[1]], s["messages"][-1]["content"], s["stop"] == Stop.END).value
        for s in samples
    ]
    return kl_of(metrics, samples) | ({"gold": fmean(values)} if values else {})


def resampled(settings: Mapping[str, Value], folder: Path) -> tuple[ModuleType, Any]:
    """Sums, with groups of any size, normalised by their spread or not."""
    from dataclasses import replace

    from posttrain.objectives.presets import PRESETS

    objective = replace(PRESETS["grpo"], advantage={"std": "zscore", "none": "center"}[settings["normalise"]])
    size = settings["group_size"]
    return _group(settings, "builtin:sums", objective, max_tokens=40, lr=2e-3, prompts=ANSWERS // size, group_size=size)


def _charging(beta: float) -> Any:
    """RLOO with β in the reward; where it charges nothing it still has a reference, by which the KL is measured."""
    from dataclasses import replace

    from posttrain.objectives.presets import PRESETS

    base = PRESETS["rloo"]
    return replace(base, kl=replace(base.kl, beta=max(beta, UNCHARGED)))


def _group(settings: Mapping[str, Value], data: str, objective: Any, *, max_tokens: int, lr: float,
           **changes: Any) -> tuple[ModuleType, Any]:  # fmt: skip
    """A run of the group family: every answer is kept for the events, nothing is evaluated."""
    from posttrain.algorithms import group
    from posttrain.data.rows import Data
    from posttrain.sample.base import SamplingParams
    from posttrain.train.learner import Optim
    from posttrain.train.run import RunConfig
    from posttrain.train.schedule import Schedule

    shared = {
        "template": "plain",
        "data": Data(path=data, limit=2000),
        "objective": objective,
        "prompts": ANSWERS // 4,
        "group_size": 4,
        "steps": settings["steps"],
        "eval_every": 0,
        "sampling": SamplingParams(max_tokens=max_tokens),
        "optim": Optim(lr=lr, schedule=Schedule(warmup=3)),
        "run": RunConfig(seed=settings["seed"], threads=1, save_every=1000, keep=1, samples=ANSWERS),
    }
    return group, group.Config(**(shared | changes))


ANSWERS = 64
"""Of a step."""
UNCHARGED = 1e-9
"""A leash that charges nothing and still has a reference, by which the KL is measured."""
_LEASHED = ("reward_mean", "kl_ref_k1", "entropy", "length_mean")
_SEED = Number(0, 0, 99)
EXPERIMENTS: dict[str, Experiment] = {
    "leash": Experiment(
        section="14",
        says="RLOO on portraits of one person, with β times the KL charged in the reward",
        settings={"beta": Number(0.5, 0.02, 10.0), "steps": Number(30, 1, 60), "seed": _SEED},
        run=leash,
        metrics=_LEASHED,
        also=kl_of,
    ),
    "pressure": Experiment(
        section="15",
        says="RLOO on portraits of people, under a reward model of a rater with a taste of its own",
        settings={
            "pressure": Number(2.0, 0.25, 8.0),
            "beta": Number(0.0, 0.0, 1.0),
            "steps": Number(40, 1, 120),
            "seed": _SEED,
        },
        run=pressure,
        metrics=_LEASHED,
        also=gold_of,
    ),
    "resampled": Experiment(
        section="23",
        says="GRPO on sums, 64 answers a step in groups of the size you choose",
        settings={
            "group_size": Number(8, 2, 32),
            "normalise": Choice("std", ("std", "none")),
            "steps": Number(30, 1, 60),
            "seed": _SEED,
        },
        run=resampled,
        metrics=("reward_mean", "zero_variance_share", "entropy", "length_mean"),
    ),
}
"""Name -> experiment."""
