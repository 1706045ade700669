"""`posttrain lab golden | studies | SECTION`: run what is missing, show what was seen, hold it against the record."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from posttrain.cli.options import help_text, parse, wants_help
from posttrain.errors import ConfigError, UsageError, nearest

_USAGE = "posttrain lab golden | studies | SECTION ... [NAME NAME ...] [options]"
KINDS = ("golden", "studies")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Golden runs are short, one or more for each method; studies are larger comparisons; a number, or several, stands
    for the studies that those sections of the book show. Each has a claim, arms that
    differ in their settings, and seeds. Cells that already ran are kept in runs/lab; Ctrl-C stops, and the same command
    goes on. Figures are compared with the digest that the package holds (posttrain/lab/digests): exit code 1 where one
    has left its tolerance, or a cell failed. A study without a digest, or of other settings, gets a new one. `golden`
    also repeats one recorded cell of the studies, another one every day."""

    names: tuple[str, ...] = ()
    """Which; none: all."""
    list: bool = False
    """Only list them, with what is recorded."""
    seeds: int | None = None
    """Another number of seeds; the digest then stays as it is, unless --record."""
    processes: int = min(2, _cores())
    """Cells at a time; each has one thread."""
    fresh: bool = False
    """Keep only cells that the present code made. Without it a cell counts until its settings, or the version of its
    study or of the package change."""
    record: bool = False
    """Write the digest anew where there is one."""

    def __post_init__(self):
        if self.processes < 1 or (self.seeds is not None and self.seeds < 1):
            raise ConfigError(f"processes = {self.processes}, seeds = {self.seeds}: one at least")


def main(words: Sequence[str]) -> int:
    """Run, show, compare; the exit code."""
    if not words or words[0].startswith("-"):
        print(help_text(Options, _USAGE))
        if words and not wants_help(words):
            raise UsageError(f'"{words[0]}" comes before golden or studies. Write: {_USAGE}')
        return 0
    kind = words[0]
    if kind not in KINDS and not kind.isdigit():
        raise UsageError(f'posttrain lab "{kind}": {nearest(kind, KINDS)} Write: {_USAGE}')
    options = parse(Options, words[not kind.isdigit() :], f"posttrain lab {kind} [NAME NAME ...] [options]", ("names",))
    from posttrain.lab.menu import entries  # needs torch

    found = _of_sections(options.names) if kind.isdigit() else entries(kind, options.names)
    if options.list:
        _list(found)
        return 0
    bad = _run(found, options)
    if kind == "golden" and not options.names:
        bad |= _one_cell_again(entries("studies"))
    return int(bad)


def _of_sections(words: Sequence[str]) -> list[Any]:
    """The studies of the sections among the words; with names among them, those of them alone."""
    from posttrain.lab.menu import of_sections

    numbers, names = [w for w in words if w.isdigit()], {w.replace("-", "_") for w in words if not w.isdigit()}
    found = of_sections(numbers)
    known = [word for e in found for word in e.words]
    for name in names - set(known):
        raise UsageError(f'there is no study "{name}" in {" ".join(numbers)}. {nearest(name, dict.fromkeys(known))}')
    return [e for e in found if not names or names & set(e.words)]


def _list(entries: Sequence[Any]) -> None:
    from posttrain.lab import digest

    for entry in entries:
        study, known = entry.study, digest.load(entry.study.name)
        state = "not recorded yet"
        if known:
            state = digest.outdated(study, known) or ("seen" if known["seen"] else "not all seen")
        size = f"{len(study.arms)} arm(s) x {len(study.seeds)} seeds{_minutes(known)}"
        print(f"{study.name}: {study.claim}\n    {study.source}\n    {size}; {state}")
        for figure in known["figures"] if known else ():
            print(f"      {'+' if figure['seen'] else '-'} {figure['text']}")


def _minutes(known: dict[str, Any] | None) -> str:
    return f", {known['provenance']['seconds'] / 60:.1f} minutes of a core" if known else ""


def _run(entries: Sequence[Any], options: Options) -> bool:
    """Run what is missing, record what is new, print the table. True where something is wrong."""
    from posttrain.lab import cells, digest

    wanted = {e: cells.cells_of(e, seeds_of(e.study.seeds, options.seeds)) for e in entries}
    known = {e: digest.load(e.study.name) for e in entries}
    missing = [c for group in wanted.values() for c in cells.missing(group, options.fresh)]
    count = sum(map(len, wanted.values()))
    print(f"{count} cells of {len(entries)} studies, {len(missing)} of them to run", flush=True)
    left = {e: sum(c.entry is e for c in missing) for e in entries}
    concluded = {e: _conclude(wanted[e], known[e], options) for e in entries if not left[e]}

    def done(cell: Any) -> None:
        left[cell.entry] -= 1
        if not left[cell.entry]:
            concluded[cell.entry] = _conclude(wanted[cell.entry], known[cell.entry], options)

    ran = cells.run_cells(
        missing,
        processes=options.processes,
        expected=lambda c: digest.seconds_of(known[c.entry], c),
        say=lambda text: print(text, flush=True),
        done=done,
    )
    table = _table()
    for entry in entries:
        if found := concluded.get(entry):
            _add(table, *found)
        else:
            word = "passed over" if entry.study.name in ran.skipped else "failed"
            table.add_row(entry.study.name, entry.study.claim, "", "", "", "", word, "")
    _print(table)
    for cell, log in ran.failed.items():
        print(f"failed: {cell}: {log}")
    for name, why in ran.skipped.items():
        print(f"passed over: {name}: {why}")
    moved = any(row.verdict == "moved" for found in concluded.values() if found for row in found[1])
    return moved or bool(ran.failed) or None in concluded.values()


def _conclude(cells: Sequence[Any], old: dict[str, Any] | None, options: Options) -> tuple | None:
    """The digest of a study whose cells are all there, and its figures beside the record; None where it is unreadable.

    It is written where there is none of these settings, or where it is asked for.
    """
    from posttrain.lab import digest, page, verdict

    entry = cells[0].entry
    try:
        made = digest.make(entry, cells)
        shown = page.make(entry.study, cells, made) if entry.study.page else None
    except (ValueError, ArithmeticError, LookupError) as error:
        print(f"{entry.study.name}: its cells ran, and cannot be read: {type(error).__name__}: {error}", flush=True)
        return None
    if old and (why := digest.outdated(entry.study, old)):
        print(f"{entry.study.name}: {why}", flush=True)
        old = None
    rows = verdict.judge(made, old)
    if options.record or (old is None and options.seeds is None):
        print(f"wrote {digest.write(made)}", flush=True)
        old = made
    if shown and old and (why := page.outdated(entry.study, page.load(made["name"]), old)):
        again = page.outdated(entry.study, shown, old)
        print(
            f"{made['name']}: {why}: " + (f"{again}; --record writes both" if again else f"wrote {page.write(shown)}")
        )
    return made, rows


def seeds_of(own: Sequence[int], number: int | None) -> tuple[int, ...]:
    """So many seeds: a study's own first, then the numbers after the largest."""
    number = len(own) if number is None else number
    return (*own, *range(max(own) + 1, max(own) + 1 + number))[:number]


def _table() -> Any:
    from rich.table import Column, Table

    right = [Column(name, justify="right") for name in ("before", "after", "interval", "seconds")]
    return Table("method", "what is measured", *right, "verdict", "claim", box=None, header_style="bold")


def _add(table: Any, made: dict[str, Any], rows: Sequence[Any]) -> None:
    for i, row in enumerate(rows):
        f = row.figure
        ends = f"{_end(f['low'])} to {_end(f['high'])}"
        mark = {"moved": "bold red", "new": "yellow"}.get(row.verdict, "")
        now = f"{row.verdict} ({row.recorded['after']:.4g})" if row.verdict == "moved" else row.verdict
        seconds = f"{made['provenance']['seconds']:.0f}" if i == 0 else ""
        name = made["name"] if i == 0 else ""
        table.add_row(
            name, f["what"], f"{f['before']:.4g}", f"{f['after']:.4g}", ends, seconds, now, row.shows, style=mark
        )


def _end(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    print()
    (console if console.is_terminal else Console(highlight=False, width=160)).print(table)


def _one_cell_again(entries: Sequence[Any]) -> bool:
    """Repeat one recorded cell of the studies. True where a figure of it left its interval."""
    from posttrain.lab import cells, digest, verdict

    today = date.today()
    drawn = verdict.pick(entries, today)
    if drawn is None:
        print("no study is recorded as it is written now, so no cell of them is repeated")
        return False
    entry, arm, seed = drawn
    cell = cells.Cell(entry, arm, seed, cells.ROOT / "again")
    print(f"\nthe cell of {today}: {cell}", flush=True)
    ran = cells.run_cells(
        cells.missing([cell], fresh=True), processes=1, say=lambda text: print(f"  {text}", flush=True)
    )
    if ran.failed or ran.skipped:
        return bool(ran.failed)
    bad = False
    for row in verdict.compare(cell.record["figures"], digest.load(entry.study.name), arm, seed):
        same = "the recorded value" if abs(row.now - row.then) <= 1e-5 * abs(row.then) else f"recorded {row.then:.5g}"
        word = "inside" if row.inside else "OUTSIDE"
        print(f"  {row.name:<24} {row.now:.5g}  {same}; {word} {row.low:.4g} to {row.high:.4g}")
        bad |= not row.inside
    return bad
