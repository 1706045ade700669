"""`posttrain runs`: list run folders, look into one, hold several side by side, find where two part.

Only reads runs, so that those in progress are safe.
"""

import fcntl
import os
import shlex
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from posttrain.cli.options import parse, wants_help
from posttrain.errors import UsageError, nearest
from posttrain.pages import compare, diff, folder, samples, terminal
from posttrain.pages.folder import check_run, method_of
from posttrain.pages.words import number
from posttrain.train import checkpoint
from posttrain.train.metrics import HEADLINE, lookup
from posttrain.train.progress import headline

CURVES = 4
"""Curves that are shown unless some are asked for."""


@dataclass(frozen=True, kw_only=True)
class List:
    """List run folders: method, steps, whether finished, and the last metrics."""

    folder: Path = Path("runs")
    """Where to look, one and two levels deep."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """One run: where it comes from, where it stands, curves, its newest samples with scores and reasons, its last
    metrics with what healthy looks like."""

    run: Path
    """The run folder."""
    metrics: tuple[str, ...] = ()
    """Curves to draw, such as reward_mean,entropy. Default: the first few that a glance wants."""
    samples: int = 2
    """How many of the newest samples. 0: none."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Two or more runs side by side: settings that differ, last values, curves; and the same as one HTML page."""

    runs: tuple[Path, ...]
    """The run folders."""
    metrics: tuple[str, ...] = ()
    """Which metrics. Default: all that two runs share; of their curves the first few are drawn here."""
    html: Path | None = None
    """Where to write the page. Default: compare.html beside the first run."""


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Where two runs part: the first setting, row of data, sampled token and metric in which they differ. Exit code 0:
    nothing differs; 1: something does."""

    runs: tuple[Path, ...]
    """Two run folders."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report of a run, finished or not, as one HTML page that needs no network. A run that finishes writes
    its own, report.html in its folder."""

    run: Path
    """The run folder."""
    out: Path | None = None
    """Where to write it. Default: report.html in the run folder."""


def main(words: Sequence[str]) -> int:
    """Run one of the verbs; without one, list."""
    what = words[0] if words and not words[0].startswith("-") else "list"
    if what not in VERBS:
        raise UsageError(f'posttrain runs "{what}": {nearest(what, VERBS)} Write: {_USAGE}')
    if wants_help(words[:1]):
        print(_help())
        return 0
    options, usage, positional, run = VERBS[what]
    return run(parse(options, words[words[:1] == [what] :], usage, positional)) or 0


def _list(options: List) -> None:
    found = sorted(p.parent for depth in ("*/", "*/*/") for p in options.folder.glob(depth + "config.toml"))
    if not found:
        print(f"There is no run in {options.folder}. `posttrain demo` makes some; `posttrain train METHOD` makes one.")
        return
    table = Table("run", "method", "steps", "state", "last metrics", box=None, header_style="bold")
    for run in found:
        last = last_metrics(run)
        line = headline({k: v for k, v in last.items() if k != "step"}, 4)
        table.add_row(str(run), method_of(run), str(last.get("step", -1) + 1), state(run), line)
    Console(highlight=False, soft_wrap=True).print(table)


def _show(options: Show) -> None:
    run, console = options.run, Console(highlight=False, soft_wrap=True)
    check_run(run)
    console.print(f"[bold]{run}[/]  {method_of(run)}, {state(run)}")
    for session in folder.table(run, "meta.json").get("sessions", []):
        versions = " ".join(f"{k} {v}" for k, v in session["versions"].items())
        console.print(
            f"  {session['started']}  {session['command']}\n    {session['device']}, {versions}", markup=False
        )
    if failed := folder.table(run, "failed.json"):
        console.print(f"  failed in step {failed['step']}: {failed['error']}: {failed['message']}", markup=False)
    if plan := folder.text(run, "plan.txt").strip():
        console.print(f"  plan: {plan}", markup=False)
    console.print("  checkpoints: " + (", ".join(p.name for p in checkpoint.found(run / "checkpoints")) or "none"))
    curves = folder.curves(run)
    for name in _chosen(options.metrics, list(curves)):
        console.print(f"\n[bold]{name}[/]  {number(curves[name][-1][1])} in step {curves[name][-1][0]}")
        console.print(terminal.braille(curves[name], min(console.width - 12, 72)), markup=False)
    newest = folder.samples(run)[: options.samples]
    decode = samples.decoder(run) if newest else None
    for record in newest:
        text = samples.plain(samples.read(record, decode))
        console.print(f"\n[bold]sample of step {record['step']}[/]")
        console.print(textwrap.indent(text, "  "), markup=False)
    console.print()
    table = Table("metric", "last", "healthy", "alarm", box=None, header_style="bold")
    for name, value in last_metrics(run).items():
        if name != "step":
            row = lookup(name)
            table.add_row(name, f"{value:.5g}", row.healthy, row.alarm)
    console.print(table)


def _compare(options: Compare) -> None:
    if len(options.runs) < 2:
        raise UsageError(f"compare needs two runs or more. Write: {VERBS['compare'][1]}")
    for run in options.runs:
        check_run(run)
    found = compare.sides(options.runs)
    for name in options.metrics:
        if not any(name in side.curves for side in found):
            raise UsageError(f'no run has the metric "{name}". {nearest(name, {n for s in found for n in s.curves})}')
    console = Console(highlight=False, soft_wrap=True)
    metrics = compare.shared_metrics(found, options.metrics)
    table = Table("", *(side.name for side in found), box=None, header_style="bold")
    for key, values in {"method": [s.method for s in found], "steps": [str(s.steps) for s in found],
                        **compare.differing(found)}.items():  # fmt: skip
        table.add_row(key, *values)
    for name in metrics:
        values = [compare.figures(side, name) for side in found]
        table.add_row(name, *("–" if v is None else f"{number(v[0])} ({number(v[1])})" for v in values))
    console.print(table)
    console.print("In brackets: the mean over the last steps. One run each: a difference may be that of their draws.")
    for name in metrics if options.metrics else metrics[:CURVES]:
        lines = {side.name: side.curves[name] for side in found if name in side.curves}
        console.print(f"\n[bold]{name}[/]")
        console.print(terminal.chart(lines, min(console.width - 12, 76), 9, zero=False), markup=False)
    page = options.html or options.runs[0].parent / "compare.html"
    command = shlex.join(["posttrain", "runs", "compare", *map(str, options.runs)])
    page.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(page, compare.render_comparison(found, metrics, command))
    console.print(f"\nwrote {page}", markup=False)


def _diff(options: Diff) -> int:
    if len(options.runs) != 2:
        raise UsageError(f"diff takes two runs. Write: {VERBS['diff'][1]}")
    for run in options.runs:
        check_run(run)
    found = diff.findings(*options.runs)
    for f in found:
        print(f"{f.what:<9}{f.text}")
    differing = [f for f in found if f.differs]
    with_step = [f for f in differing if f.step is not None]
    if with_step:
        first = min(with_step, key=lambda f: f.step)
        print(f"\nThey part in step {first.step}, first seen in the {first.what}.")
    elif not differing:
        print("\nNothing differs.")
    return int(bool(differing))


def _report(options: Report) -> None:
    from posttrain.pages.run import write_run

    check_run(options.run)
    print(f"wrote {write_run(options.run, options.out)}")


VERBS: dict[str, tuple[type, str, tuple[str, ...], Callable]] = {
    "list": (List, "posttrain runs list [FOLDER]", ("folder",), _list),
    "show": (Show, "posttrain runs show RUN [options]", ("run",), _show),
    "compare": (Compare, "posttrain runs compare RUN RUN [RUN ...] [options]", ("runs",), _compare),
    "diff": (Diff, "posttrain runs diff RUN RUN", ("runs",), _diff),
    "report": (Report, "posttrain runs report RUN [options]", ("run",), _report),
}
"""Verb -> its options, how it is written, fields given without a flag, what it does."""

_USAGE = "posttrain runs [list [FOLDER] | show RUN | compare RUN RUN ... | diff RUN RUN | report RUN]"


def _help() -> str:
    lines = [f"  {usage}\n{textwrap.indent(textwrap.fill(' '.join((options.__doc__ or '').split()), 100), '      ')}"
             for options, usage, _, _ in VERBS.values()]  # fmt: skip
    return "\n".join([_USAGE, "", *lines, "", "posttrain runs VERB --help lists the options of one."])


def _chosen(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The curves to draw. Raises UsageError for one that the run does not have."""
    for name in wanted:
        if name not in known:
            raise UsageError(f'the run has no metric "{name}". {nearest(name, known)}')
    return list(wanted) or [name for name in known if name in HEADLINE][:CURVES]


def state(run: Path) -> str:
    """finished, failed, running (another process holds the folder), or stopped: it continues with its command."""
    if (run / "result.json").exists():
        return "finished"
    if _is_held(run):
        return "running"
    return "failed" if (run / "failed.json").exists() else "stopped"


def last_metrics(run: Path) -> dict[str, float]:
    """The last whole line of metrics.jsonl, empty if there is none."""
    last: dict[str, float] = {}
    for last in folder.lines(run, "metrics.jsonl"):  # noqa: B007 - the last one is wanted
        pass
    return last


def _is_held(run: Path) -> bool:
    if not (run / ".lock").exists():
        return False
    handle = os.open(run / ".lock", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
