"""What a race shows: a table with intervals, curves in the terminal, and one HTML page that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from posttrain.lab.race import SEARCH_SEED, Ran, Track, mean_curve
from posttrain.lab.study import interval, paired

_MARKS = "ox+*#@%&=~"


def search_text(track: Track) -> str:
    """How step sizes were chosen, in a sentence."""
    if len(track.lrs) == 1:
        return f"Step size {track.lrs[0]:g} for all, not searched."
    return (f"Each method tried step sizes {', '.join(f'{lr:g}' for lr in track.lrs)} on seed {SEARCH_SEED}, which is "
            "not reported, and runs with the best by its last two evaluations.")  # fmt: skip


def what_text(track: Track) -> str:
    """What the curves show."""
    if track.by == "held_out":
        return f"Reward of greedy answers to {track.data.eval_rows} held-out tasks, mean over seeds."
    return (
        f"Mean reward of the samples of {track.eval_every} steps, which answer tasks new to the run; mean over seeds."
    )


def table(found: Sequence[Ran]) -> list[dict[str, Any]]:
    """One row per method: figures with 95 % intervals over the seeds (Student's t), and paired with the first one's."""

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


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table, and what to know of it."""
    head = ["method", "step size", "at the end", "over the run", f"against {rows[0]['method']}", "answers", "s"]
    lines = [head, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        for seed, why in row["broken"].items():
            print(f"{row['method']}, seed {seed} stopped itself: {why}")
    if all(row["area"] is None or row["area"][0] == 0 for row in rows):
        print("Nobody got any reward: the tasks are too hard, or held-out ones of another kind (try --by training).")
    elif any(row["edge"] for row in rows):
        print("*: the best of the step sizes tried is the first or last of them; a wider search may find more.")


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


def chart(curves: Mapping[str, Sequence[tuple[float, float]]], width: int = 76, height: int = 15) -> str:
    """Curves in characters, with a mark for each."""
    points = [p for curve in curves.values() for p in curve]
    if not points:
        return "No run was measured."
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    high = high if high > low else low + 1
    grid = [[" "] * width for _ in range(height)]
    for mark, curve in zip(_MARKS * len(curves), curves.values(), strict=False):
        for column in range(width):
            y = _at(curve, left + (right - left) * column / (width - 1))
            if y is not None:
                row = round((y - low) / (high - low) * (height - 1))
                line = grid[height - 1 - row]
                line[column] = mark if line[column] == " " else line[column]
    lines = [f"{high - (high - low) * i / (height - 1):7.2f} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    axis = f"{'':7} +{'-' * width}\n{'':9}{left:<6g}{'steps':^{max(width - 12, 5)}}{right:>6g}"
    key = "   ".join(f"{mark} {name}" for mark, name in zip(_MARKS * len(curves), curves, strict=False))
    return "\n".join([*lines, axis, key])


def _at(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """The curve at x, by straight lines; None outside of it."""
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1] if len(curve) == 1 else None


def render(found: Sequence[Ran], rows: Sequence[Mapping[str, Any]], track: Track, task: str) -> str:
    """The race as one HTML page that needs no network."""
    points = [p for r in found for curve in r.curves.values() for p in curve]
    right, high = max((x for x, _ in points), default=1), max((y for _, y in points), default=1.0)
    left, low = min((x for x, _ in points), default=0), min((0.0, *(y for _, y in points)))

    def path(curve: Sequence[tuple[float, float]]) -> str:
        wide, tall = max(right - left, 1), (high - low) or 1
        return " ".join(f"{40 + 640 * (x - left) / wide:.1f},{300 - 280 * (y - low) / tall:.1f}" for x, y in curve)

    lines = [
        {"name": r.name, "hue": round(360 * i / len(found)), "mean": path(mean_curve(r)),
         "seeds": [path(curve) for curve in r.curves.values()]}
        for i, r in enumerate(found)
    ]  # fmt: skip
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("race.html.jinja").render(
        lines=lines, rows=rows, cells=[cells(row) for row in rows], track=track, task=task,
        search=search_text(track), what=what_text(track), left=left, right=right, low=low, high=high,
        first=rows[0]["method"],
    )  # fmt: skip
