"""The table of a benchmark: rates, ratios with their spread, share of the floor, memory. Pure functions of results."""

import statistics
from collections.abc import Sequence

MIB = 2**20
ADAM = 12  # bytes per trained parameter: the weight and AdamW's two moments, in float32
HEADER = (
    "job", "size", "thr", "ours", "default", "best", "floor", "x default", "x best", "min q1 med q3 max",
    "of floor", "MiB ours", "default", "best", "n", "best setting",
)  # fmt: skip


def spread(values: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Minimum, lower quartile, median, upper quartile, maximum."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return (ordered[0],) * 5
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return ordered[0], low, middle, high, ordered[-1]


def rate(took: dict, *, once: bool = False) -> float:
    """Tokens per second; once: with the step's share of what was computed before training (DPO's reference)."""
    return took["tokens"] / (took["seconds"] + (took.get("once", 0.0) if once else 0.0))


def above(took: dict, job: str) -> float | None:
    """MiB at the peak above imports, weights and optimizer."""
    if "parameters" not in took:
        return None
    held = took["parameters"] * (4 if job.startswith("sample-") else ADAM)
    return (took["peak"] - took["imported"] - held) / MIB


def row(key: dict, rounds: list[dict]) -> list[str]:
    """One line of the table from the rounds of one job, size and number of threads."""
    job = key["job"]

    def middle(name: str, what) -> float | None:
        found = [what(r["took"][name]) for r in rounds if name in r["took"]]
        return statistics.median(found) if found and None not in found else None

    def ratios(name: str) -> list[float]:
        # Their default computes the reference in the step, so ours counts it too; a setting that precomputes does not.
        once = name == "default" or "precomputed" not in rounds[-1]["best"]
        return [rate(r["took"]["ours"], once=once) / rate(r["took"][name]) for r in rounds if name in r["took"]]

    default, best = ratios("default"), ratios("best") or ratios("default")
    floor = statistics.median(rate(r["took"]["ours"]) / rate(r["took"]["floor"]) for r in rounds)
    rates = [middle(name, rate) for name in ("ours", "default", "best", "floor")]
    memory = [middle(name, lambda x: above(x, job)) for name in ("ours", "default", "best")]
    return [
        job,
        key["size"] + ("" if key["precision"] == "float32" else " bf16"),
        str(key["threads"]),
        *("=" if x is None else f"{x:.0f}" for x in rates),
        f"{statistics.median(default):.2f}",
        f"{statistics.median(best):.2f}",
        " ".join(f"{x:.2f}" for x in spread(best)),
        f"{floor:.0%}",
        *("=" if x is None else f"{x:.0f}" for x in memory),
        str(len(rounds)),
        rounds[-1]["best"],
    ]


def asides(key: dict, rounds: list[dict]) -> list[str]:
    """What else was measured: two cores beside two copies, the floor of torch.mm, bfloat16 beside their float32."""
    said = []
    for ours, other, words in (
        ("ours", "copies", "two threads reach {:.0%} of two one-core copies"),
        ("processes", "copies", "two processes reach {:.0%} of two one-core copies"),
        ("ours", "plain floor", "{:.0%} of the floor at torch.mm's own rate"),
        ("ours", "float32", "our bfloat16 is {:.2f} x their best in float32"),
    ):
        found = [rate(r["took"][ours]) / rate(r["took"][other]) for r in rounds if {ours, other} <= r["took"].keys()]
        if found:
            _, low, middle, high, _ = spread(found)
            said.append(f"{key['job']}, {key['size']}: {words.format(middle)} ({low:.2f} to {high:.2f})")
    return said


def table(results: dict) -> str:
    """Of everything that was measured the newest."""
    if not results["rounds"]:
        return "nothing was measured yet"
    newest = results["rounds"][-1]["key"]["code"]
    groups: dict[tuple, list[dict]] = {}
    for r in results["rounds"]:
        what = tuple((k, v) for k, v in r["key"].items() if k != "code")
        if what in groups and groups[what][-1]["key"]["code"] != r["key"]["code"]:
            del groups[what]  # of older code
        groups.setdefault(what, []).append(r)
    lines = [list(HEADER)] + [row(rounds[-1]["key"], rounds) for rounds in groups.values()]
    for line, rounds in zip(lines[1:], groups.values(), strict=True):
        line[0] += "" if rounds[-1]["key"]["code"] == newest else " *"
    wide = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = ["  ".join(x.ljust(w) for x, w in zip(line, wide, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    text += [said for key, rounds in groups.items() for said in asides(dict(key), rounds)]
    m = results["machine"]
    where = f"{m['cpu']}{', ' + m['gpu'] if m['gpu'] else ''}, our float32 products by {m['products']}"
    about = f"{where}; torch {m['torch']}, {', '.join(m['trl'])}; code {newest}"
    notes = (
        "ours, default, best, floor: median tokens per second (of answers in reinforcement learning and sampling).",
        "x: our rate over theirs, medians; the spread is that of the best setting. = : best is the default.",
        "DPO against the default counts our pass over the reference, made once before training, as if for one epoch.",
        "MiB: peak above imports, weights and AdamW. * : measured with older code than the last row that was made.",
    )
    return "\n".join(["", about, "", *text, "", *notes])
