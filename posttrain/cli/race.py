"""`posttrain methods race`: methods against each other on one task, as curves and a table with intervals."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from posttrain.cli.options import parse
from posttrain.errors import ConfigError

USAGE = "posttrain methods race [METHOD METHOD ...] [options]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Races methods on one task: the same start, data and answers per step for all, several seeds each, and a search
    over each method's step size on a seed that is not reported. What is finished is kept: the same command goes on."""

    methods: tuple[str, ...] = ("reinforce", "rloo", "grpo", "dr_grpo", "dapo")
    """Names of `posttrain methods` and of training loops; a preset in a loop is written ppo/ppo_dual_clip. The first is
    the one that others are compared with."""
    task: str = "sums"
    """A task of the embedded world (sums, chains, countdown, copy, facts, words; several as sums+chains), or a file of
    your own tasks."""
    model: str = "base"
    """Model to start from: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template; auto: the model's own, and for "base" plain text, which is all that it has read."""
    reward: str = "auto"
    """As in `posttrain train group`."""
    seeds: int = 3
    """Runs of each method that are reported."""
    steps: int = 40
    """Steps of each run."""
    prompts: int = 8
    """Prompts per step."""
    samples: int = 8
    """Samples per prompt."""
    max_tokens: int = 40
    """Length limit of an answer."""
    lr: str = "search"
    """search: each method tries all of --lrs. A number: all use that."""
    lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """Step sizes to search."""
    eval_every: int = 5
    """Steps between evaluations."""
    by: Literal["held_out", "training"] = "held_out"
    """What is compared: greedy answers to held-out tasks, or the samples of training, whose tasks are new to the
    run. Where held-out tasks are of another kind (words, facts), only the second moves."""
    eval_rows: int = 100
    """Held-out tasks of an evaluation, answered greedily."""
    rows: int = 4000
    """Tasks to train on, of the embedded world."""
    threads: int = 1
    """CPU threads."""
    out: Path | None = None
    """Folder of all runs. Default: runs/race-<hash of what is the same for all>."""
    html: Path | None = None
    """Where to write the page. Default: race.html in the folder."""


def main(words: Sequence[str]) -> None:
    """Race, print, and write the page."""
    options = parse(Options, words, USAGE, ("methods",))
    from posttrain.cli.race_view import render, search_text, show, table, what_text
    from posttrain.lab.race import as_json, entrant, mean_curve, run_race
    from posttrain.pages.terminal import chart
    from posttrain.train.checkpoint import write_text

    track = track_of(options)
    if len(set(options.methods)) < len(options.methods):
        raise ConfigError(f"methods = {', '.join(options.methods)}: one of them stands there twice")
    all_loops = loops()
    entrants = [entrant(name, all_loops) for name in options.methods]
    out = options.out or default_folder(track)
    print(f"{len(entrants)} methods, {len(track.seeds)} seeds, {track.steps} steps of {track.prompts} x "
          f"{track.group_size} answers; runs in {out}\n{search_text(track)}\n", flush=True)  # fmt: skip
    found = run_race(entrants, track, out, say=lambda text: print(text, flush=True))
    rows = table(found)
    print(f"\n{what_text(track)}\n" + chart({r.name: curve for r in found if (curve := mean_curve(r))}) + "\n")
    show(rows)
    page = options.html or out / "race.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, render(found, rows, track, options.task))
    write_text(out / "race.json", as_json(found, track, rows))
    print(f"\nwrote {os.fspath(page)} and {out / 'race.json'}")


def loops() -> dict[str, ModuleType]:
    """The training loops of language models, by name; control tasks have no answers to grade."""
    from posttrain.cli.train import METHODS, method

    return {name: method(name)[1] for name in METHODS if find_spec(f"posttrain.algorithms.{name}")}


def track_of(options: Options) -> Any:
    """What the options make the same for all."""
    from posttrain.data.rows import Data
    from posttrain.data.tasks import NAMES
    from posttrain.lab.race import Track

    own = set(options.task.split("+")) <= set(NAMES)
    data = Data(
        path=f"builtin:{options.task}" if own else options.task,
        limit=options.rows if own else None,
        eval_rows=options.eval_rows,
    )
    if options.seeds < 1:
        raise ConfigError(f"seeds = {options.seeds}: a race needs one at least (3 give an interval)")
    return Track(
        data=data,
        model=options.model,
        template="plain" if (options.template, options.model) == ("auto", "base") else options.template,
        reward=options.reward,
        steps=options.steps,
        prompts=options.prompts,
        group_size=options.samples,
        max_tokens=options.max_tokens,
        eval_every=options.eval_every,
        by=options.by,
        seeds=tuple(range(options.seeds)),
        lrs=step_sizes(options),
        threads=options.threads,
    )


def step_sizes(options: Options) -> tuple[float, ...]:
    """Those to try; one alone is not searched."""
    if options.lr == "search":
        return tuple(dict.fromkeys(options.lrs))
    try:
        return (float(options.lr),)
    except ValueError:
        raise ConfigError(f'lr = "{options.lr}" is neither "search" nor a number such as 1e-3') from None


def default_folder(track: Any) -> Path:
    """runs/race-<hash>: the same whatever the seeds, methods and step sizes, so that their runs are shared."""
    same = [track.data, track.model, track.template, track.reward, track.steps, track.prompts, track.group_size,
            track.max_tokens, track.eval_every, track.by]  # fmt: skip
    return Path("runs") / f"race-{hashlib.blake2b(repr(same).encode(), digest_size=2).hexdigest()}"
