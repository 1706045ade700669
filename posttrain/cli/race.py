"""`posttrain methods race`: methods against each other on one task, as curves and a table with intervals."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.cli.options import parse
from posttrain.errors import ConfigError

USAGE = "posttrain methods race [METHOD METHOD ...] [options]"
_MARKS = "ox+*#@%&=~"


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
    from posttrain.lab.race import as_json, entrant, run_race
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
    print("\n" + chart({r.name: curve for r in found if (curve := _mean(r))}) + "\n")
    _show(rows)
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
            track.max_tokens, track.eval_every]  # fmt: skip
    return Path("runs") / f"race-{hashlib.blake2b(repr(same).encode(), digest_size=2).hexdigest()}"


def search_text(track: Any) -> str:
    """How step sizes were chosen, in a sentence."""
    from posttrain.lab.race import SEARCH_SEED

    if len(track.lrs) == 1:
        return f"Step size {track.lrs[0]:g} for all, not searched."
    return (f"Each method tried step sizes {', '.join(f'{lr:g}' for lr in track.lrs)} on seed {SEARCH_SEED}, which is "
            "not reported, and runs with the best by its last two evaluations.")  # fmt: skip


def table(found: Sequence[Any]) -> list[dict[str, Any]]:
    """One row per method: figures with 95 % intervals over the seeds (Student's t), and paired with the first one's."""
    from posttrain.lab.study import interval, paired

    def over(values: list[float], others: list[float] | None = None) -> tuple[float, float | None, float | None] | None:
        if not values:
            return None
        mean, low, high = interval(values) if others is None else paired(values, others)
        return (mean, low, high) if len(values) > 1 else (mean, None, None)

    rows, first = [], found[0].finals()
    for r in found:
        finals, areas = r.finals(), r.areas()
        shared = [seed for seed in finals if seed in first]
        rows.append({
            "method": r.name,
            "lr": r.lr,
            "edge": bool(r.searched) and r.lr in (min(r.searched), max(r.searched)),
            "final": over(list(finals.values())),
            "area": over(list(areas.values())),
            "over_first": over([finals[s] for s in shared], [first[s] for s in shared]) if r is not found[0] else None,
            "answers": sum(r.answers.values()) / len(r.answers) if r.answers else None,
            "seconds": sum(r.seconds.values()) / len(r.seconds) if r.seconds else None,
            "broken": {str(seed): why for seed, why in r.broken.items()},
            "searched": {f"{lr:g}": score for lr, score in r.searched.items() if score > float("-inf")},
        })  # fmt: skip
    return rows


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    shown = Table("method", "step size", "held-out reward at the end", "over the run", f"against {rows[0]['method']}",
                  "answers", "s", box=None, header_style="bold")  # fmt: skip
    for row in rows:
        shown.add_row(*cells(row))
    console.print(shown)
    for row in rows:
        for seed, why in row["broken"].items():
            console.print(f"{row['method']}, seed {seed} stopped itself: {why}")
    if any(row["edge"] for row in rows):
        console.print("*: the best of the step sizes tried is the first or last of them; a wider search may find more.")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table as text."""
    return [
        row["method"],
        f"{row['lr']:g}{'*' if row['edge'] else ''}",
        _figure(row["final"]),
        _figure(row["area"]),
        _figure(row["over_first"], sign="+"),
        "" if row["answers"] is None else f"{row['answers']:.0f}",
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
    ]


def _figure(figure: tuple[float, float | None, float | None] | None, sign: str = "") -> str:
    """0.700 [0.612, 0.788]; of a single seed, which has no interval, 0.700."""
    if figure is None:
        return ""
    mean, low, high = figure
    return f"{mean:{sign}.3f}" + ("" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")


def _mean(ran: Any) -> list[tuple[int, float]]:
    from posttrain.lab.race import mean_curve

    return mean_curve(ran)


def chart(curves: Mapping[str, Sequence[tuple[float, float]]], width: int = 76, height: int = 15) -> str:
    """Curves in characters, with a mark for each: the mean held-out reward over steps."""
    points = [p for curve in curves.values() for p in curve]
    if not points:
        return "No run was measured."
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    grid = [[" "] * width for _ in range(height)]
    for mark, curve in zip(_MARKS * len(curves), curves.values(), strict=False):
        for column in range(width):
            y = _at(curve, left + (right - left) * column / (width - 1))
            if y is not None:
                row = round((y - low) / ((high - low) or 1) * (height - 1))
                line = grid[height - 1 - row]
                line[column] = mark if line[column] == " " else line[column]
    lines = [f"{high - (high - low) * i / (height - 1):7.2f} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    axis = f"{'':7} +{'-' * width}\n{'':9}{left:<6g}{'steps':^{max(width - 12, 5)}}{right:>6g}"
    key = "   ".join(f"{mark} {name}" for mark, name in zip(_MARKS * len(curves), curves, strict=False))
    return "\n".join(["held-out reward, mean over seeds", *lines, axis, key])


def _at(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """The curve at x, by straight lines; None outside of it."""
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1] if len(curve) == 1 else None


def render(found: Sequence[Any], rows: Sequence[Mapping[str, Any]], track: Any, task: str) -> str:
    """The race as one HTML page that needs no network."""
    import jinja2

    points = [p for r in found for curve in r.curves.values() for p in curve]
    right, high = max((x for x, _ in points), default=1), max((y for _, y in points), default=1.0)
    left, low = min((x for x, _ in points), default=0), min((0.0, *(y for _, y in points)))

    def path(curve: Sequence[tuple[float, float]]) -> str:
        wide, tall = max(right - left, 1), (high - low) or 1
        return " ".join(f"{40 + 640 * (x - left) / wide:.1f},{300 - 280 * (y - low) / tall:.1f}" for x, y in curve)

    lines = [
        {"name": r.name, "hue": round(360 * i / len(found)), "mean": path(_mean(r)),
         "seeds": [path(curve) for curve in r.curves.values()]}
        for i, r in enumerate(found)
    ]  # fmt: skip
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("race.html.jinja").render(
        lines=lines, rows=rows, cells=[cells(row) for row in rows], track=track, task=task,
        search=search_text(track), left=left, right=right, low=low, high=high, first=rows[0]["method"],
    )  # fmt: skip
