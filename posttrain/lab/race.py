"""Methods against each other on one task: the same start, data and budget, and a stated search over each step size.

Every method samples as many answers per step, for as many steps. Its learning rate is searched on a seed of its own,
which is not reported; the seeds that are reported all use the one found. Each cell is an ordinary run in a folder, so
that an interrupted race goes on, and a wider one (more seeds, more methods) reuses what is there. Section 24 of the
book shows one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, Literal

from posttrain.data.rows import Data
from posttrain.errors import ConfigError, InvariantError, NonFiniteError, RolloutError, RunError, UsageError, nearest
from posttrain.objectives.average import Average
from posttrain.objectives.presets import PRESETS
from posttrain.recipes.stages import curve, seconds, stage
from posttrain.sample.base import SamplingParams
from posttrain.train.folder import read_result
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

SEARCH_SEED = 1000
"""On which step sizes are tried. Its figures are never among those reported."""
_NEEDED = ("data", "reward", "prompts", "group_size", "steps", "sampling", "eval_every", "optim", "run")


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is the same for all."""

    data: Data
    model: str = "base"
    template: str = "auto"
    reward: str = "auto"
    steps: int = 40
    prompts: int = 8
    group_size: int = 8
    max_tokens: int = 40
    eval_every: int = 5
    by: Literal["held_out", "training"] = "held_out"
    """What is compared: the reward of greedy answers to held-out tasks every `eval_every` steps, or the mean reward of
    the samples of as many steps, which are answers to tasks that a run has not trained on yet."""
    seeds: tuple[int, ...] = (0, 1, 2)
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Step sizes to try; a single one is not searched."""
    threads: int = 1

    def __post_init__(self):
        problems = []
        for name in ("steps", "prompts", "group_size", "max_tokens", "eval_every"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)} must be at least 1")
        if not self.seeds or not self.lrs or min(self.lrs) <= 0:
            problems.append(f"seeds = {self.seeds}, lrs = {self.lrs}: a race needs a seed, and positive step sizes")
        if self.by not in ("held_out", "training"):
            problems.append(f'by = "{self.by}" is not one of held_out, training')
        if self.eval_every > self.steps:
            problems.append(f"eval_every = {self.eval_every} exceeds steps = {self.steps}: nothing would be measured")
        if SEARCH_SEED in self.seeds:
            problems.append(f"seed {SEARCH_SEED} is the one that step sizes are searched on, so it is not reported")
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True)
class Entrant:
    """A method in a race."""

    name: str
    module: ModuleType
    preset: str | None
    """Of `objectives.presets`; None: the method's own default."""


@dataclass
class Ran:
    """What one entrant did."""

    name: str
    lr: float
    searched: dict[float, float]
    """Step size -> score on the search seed: the mean of the last two evaluations. Empty where there was one only."""
    curves: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """Seed -> (step, reward)."""
    answers: dict[int, int] = field(default_factory=dict)
    """Seed -> sampled answers; dynamic sampling takes more."""
    seconds: dict[int, float] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)
    """Seed -> why its run stopped."""

    def finals(self) -> dict[int, float]:
        """Seed -> mean of the last two evaluations."""
        return {seed: final(points) for seed, points in self.curves.items()}

    def areas(self) -> dict[int, float]:
        """Seed -> mean of all evaluations: who is early counts."""
        return {seed: fmean(y for _, y in points) for seed, points in self.curves.items()}


def final(points: Sequence[tuple[int, float]]) -> float:
    """The mean of the last two evaluations."""
    return fmean(y for _, y in points[-2:])


def entrant(name: str, loops: Mapping[str, ModuleType]) -> Entrant:
    """The method of a name: a loop ("vapo"), a preset ("dapo"), or a preset in a loop ("ppo/ppo_dual_clip").

    loops: name -> module with Config and train. Raises UsageError for an unknown name, and for a loop that has no
    rewards and evaluations to be measured by.
    """
    loop, slash, preset = name.replace("-", "_").lower().partition("/")
    if not slash and loop not in loops:
        if loop not in PRESETS:
            raise UsageError(f'there is no method "{name}". {nearest(loop, [*PRESETS, *racing(loops)])}')
        loop, preset = ("ppo" if PRESETS[loop].needs_critic else "group"), loop
    if loop not in loops or (preset and preset not in PRESETS):
        raise UsageError(f'there is no method "{name}". A preset in a loop is written group/dapo or ppo/ppo_dual_clip.')
    if lacking := _lacking(loops[loop]):
        raise UsageError(
            f'"{name}" cannot race: its loop does not learn from rewards with evaluations on the way (its config has '
            f"no {', '.join(lacking)}). Race any preset of `posttrain methods`, or {', '.join(racing(loops))}."
        )
    return Entrant(name, loops[loop], preset or None)


def racing(loops: Mapping[str, ModuleType]) -> list[str]:
    """The loops that can race."""
    return [name for name, module in loops.items() if not _lacking(module)]


def _lacking(module: ModuleType) -> list[str]:
    return [name for name in _NEEDED if name not in module.Config.__dataclass_fields__]


def config_of(e: Entrant, track: Track, lr: float, seed: int) -> Any:
    """The config of one cell. What the track does not say is the method's own default."""
    kind = e.module.Config
    given: dict[str, Any] = {
        name: getattr(track, name) for name in ("data", "model", "template", "reward", "steps", "prompts", "group_size")
    }
    given["eval_every"] = track.eval_every if track.by == "held_out" else 0
    if e.preset is not None:
        objective = PRESETS[e.preset]
        if objective.average.kind == "constant":
            objective = replace(objective, average=Average("constant", horizon=track.max_tokens))
        given["objective"] = objective
    optim = kind.__dataclass_fields__["optim"].default
    return kind(
        **given,
        sampling=SamplingParams(max_tokens=track.max_tokens),
        optim=replace(optim, lr=lr, schedule=Schedule(kind="linear", warmup=min(3, track.steps))),
        run=RunConfig(seed=seed, threads=track.threads, save_every=max(10, track.steps // 2), keep=1, samples=1),
    )


def run_race(
    entrants: Sequence[Entrant], track: Track, out: Path, say: Callable[[str], None] = lambda text: None
) -> list[Ran]:
    """Train what is not there yet, and return what everybody did, in the order given. say: told of every cell."""
    found = []
    for e in entrants:
        tried = {lr: _cell(e, track, lr, SEARCH_SEED, out, say) for lr in track.lrs} if len(track.lrs) > 1 else {}
        scores = {lr: final(points) if points else float("-inf") for lr, (points, *_) in tried.items()}
        if scores and max(scores.values()) == float("-inf"):
            raise RunError(f"{e.name} broke down at every step size: {tried[track.lrs[0]][1]}. Give other --lrs.")
        lr = max(scores, key=scores.__getitem__) if scores else track.lrs[0]
        ran = Ran(e.name, lr, scores)
        for seed in track.seeds:
            points, why, folder = _cell(e, track, lr, seed, out, say)
            if not points:
                ran.broken[seed] = why
                continue
            ran.curves[seed], ran.seconds[seed] = points, seconds(folder)
            drawn = dict(curve(folder, "prompts_drawn"))
            ran.answers[seed] = int(sum(drawn.get(s, track.prompts) for s in range(track.steps)) * track.group_size)
        found.append(ran)
    return found


def _cell(
    e: Entrant, track: Track, lr: float, seed: int, out: Path, say: Callable[[str], None]
) -> tuple[list[tuple[int, float]], str, Path]:
    """(evaluations, why there are none, folder) of one run. A run that stops itself is a result, not the race's end."""
    folder = out / e.name.replace("/", "-") / f"lr-{lr:g}-seed-{seed}"
    there = read_result(folder) is not None
    try:
        stage(folder, e.module, config_of(e, track, lr, seed))
    except (InvariantError, NonFiniteError, RolloutError) as error:
        say(f"{e.name}  lr {lr:g}  seed {seed}: stopped: {error}")
        return [], str(error), folder
    points = measured(folder, track)
    if not there:
        say(f"{e.name}  lr {lr:g}  seed {seed}: {final(points):.3f}  ({seconds(folder):.0f} s)")
    return points, "", folder


def measured(folder: Path, track: Track) -> list[tuple[int, float]]:
    """(steps done, reward) of a run."""
    if track.by == "held_out":
        return [(step + 1, y) for step, y in curve(folder, "eval_reward")]
    ends = range(track.eval_every, track.steps + 1, track.eval_every)
    rewards = dict(curve(folder, "reward_mean"))
    return [(end, fmean(rewards[s] for s in range(end - track.eval_every, end) if s in rewards)) for end in ends]


def mean_curve(ran: Ran) -> list[tuple[int, float]]:
    """(step, mean over the seeds)."""
    by_step: dict[int, list[float]] = {}
    for points in ran.curves.values():
        for step, y in points:
            by_step.setdefault(step, []).append(y)
    return [(step, fmean(ys)) for step, ys in sorted(by_step.items()) if len(ys) == len(ran.curves)]


def as_json(found: Sequence[Ran], track: Track, rows: Sequence[Mapping[str, Any]]) -> str:
    """Everything that is shown, for other programs."""
    curves = {r.name: r.curves for r in found}
    return json.dumps({"track": _plain(track), "rows": list(rows), "curves": curves}, indent=1)


def _plain(track: Track) -> dict[str, Any]:
    plain = {f.name: getattr(track, f.name) for f in fields(track)}
    return plain | {"data": track.data.path, "search_seed": SEARCH_SEED if len(track.lrs) > 1 else None}
