"""`posttrain runs`: the run folders below a folder, and one of them in detail. Only reads, so running runs are safe."""

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from posttrain.cli.options import parse
from posttrain.errors import UsageError, nearest
from posttrain.train import checkpoint
from posttrain.train.metrics import lookup
from posttrain.train.progress import headline

_USAGE = "posttrain runs [list [FOLDER] | show RUN]"


@dataclass(frozen=True, kw_only=True)
class List:
    """List run folders."""

    folder: Path = Path("runs")
    """Where to look, one and two levels deep."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """One run: where it comes from, where it stands, its last metrics with what healthy looks like."""

    run: Path
    """The run folder."""


def main(words: Sequence[str]) -> None:
    """List or show."""
    what = words[0] if words and not words[0].startswith("-") else "list"
    if what == "list":
        _list(parse(List, words[1:] if words[:1] == ["list"] else words, _USAGE, ("folder",)).folder)
    elif what == "show":
        _show(parse(Show, words[1:], _USAGE, ("run",)).run)
    else:
        raise UsageError(f'posttrain runs "{what}": {nearest(what, ("list", "show"))} Write: {_USAGE}')


def _list(folder: Path) -> None:
    found = sorted(p.parent for depth in ("*/", "*/*/") for p in folder.glob(depth + "config.toml"))
    if not found:
        print(f"There is no run in {folder}. `posttrain demo` makes some; `posttrain train METHOD` makes one.")
        return
    table = Table("run", "method", "steps", "state", "last metrics", box=None, header_style="bold")
    for run in found:
        last = last_metrics(run)
        line = headline({k: v for k, v in last.items() if k != "step"}, 4)
        table.add_row(str(run), method_of(run), str(last.get("step", -1) + 1), state(run), line)
    Console(highlight=False, soft_wrap=True).print(table)


def _show(run: Path) -> None:
    check_run(run)
    console = Console(highlight=False, soft_wrap=True)
    meta = json.loads((run / "meta.json").read_text()) if (run / "meta.json").exists() else {"sessions": []}
    console.print(f"[bold]{run}[/]  {method_of(run)}, {state(run)}")
    for session in meta["sessions"]:
        versions = " ".join(f"{k} {v}" for k, v in session["versions"].items())
        console.print(
            f"  {session['started']}  {session['command']}\n    {session['device']}, {versions}", markup=False
        )
    if (run / "failed.json").exists():
        failed = json.loads((run / "failed.json").read_text())
        console.print(f"  failed in step {failed['step']}: {failed['error']}: {failed['message']}", markup=False)
    console.print("  checkpoints: " + (", ".join(p.name for p in checkpoint.found(run / "checkpoints")) or "none"))
    table = Table("metric", "last", "healthy", "alarm", box=None, header_style="bold")
    for name, value in last_metrics(run).items():
        if name != "step":
            row = lookup(name)
            table.add_row(name, f"{value:.5g}", row.healthy, row.alarm)
    console.print(table)


def check_run(folder: Path) -> None:
    """Raises UsageError, with what is there instead, if the folder is no run."""
    if not (folder / "config.toml").exists():
        beside = [p.parent.name for p in folder.parent.glob("*/config.toml")] if folder.parent.is_dir() else []
        hint = nearest(folder.name, beside) if beside else "`posttrain runs list` shows what there is."
        raise UsageError(f"{folder} is not a run folder (it has no config.toml). {hint}")


def method_of(run: Path) -> str:
    """The method that a run used."""
    path = run / "meta.json"
    return json.loads(path.read_text())["method"] if path.exists() else "?"


def state(run: Path) -> str:
    """finished, failed, running (another process holds the folder), or stopped: it continues with its command."""
    if (run / "result.json").exists():
        return "finished"
    if _is_held(run):
        return "running"
    return "failed" if (run / "failed.json").exists() else "stopped"


def last_metrics(run: Path) -> dict[str, float]:
    """The last whole line of metrics.jsonl, empty if there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


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
