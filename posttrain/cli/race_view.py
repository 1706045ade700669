"""What a race shows: a table with intervals, curves in the terminal, and one HTML page that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.lab.race import SEARCH_SEED, Ran, Track, mean_curve
from posttrain.lab.study import interval, paired
from posttrain.pages import page
from posttrain.pages.plot import draw


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


def render(found: Sequence[Ran], rows: Sequence[Mapping[str, Any]], track: Track, task: str) -> str:
    """The race as one HTML page that needs no network."""
    plot = draw({
        "title": f"Reward on {task}", "metric": what_text(track) + " Thin: each seed.",
        "lines": {r.name: mean_curve(r) for r in found},
        "behind": {r.name: list(r.curves.values()) for r in found},
    }, (700, 330))  # fmt: skip
    return page.render(
        "race.html.jinja",
        Path(__file__).parent,
        names=", ".join(r.name for r in found),
        plot=plot,
        rows=rows,
        cells=[cells(row) for row in rows],
        track=track,
        task=task,
        search=search_text(track),
        first=rows[0]["method"],
    )
