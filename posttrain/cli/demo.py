"""`posttrain demo`: the whole pipeline on the embedded base, a table, answers side by side, and a report."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.cli.options import parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base, SFT, reward model, DPO, GRPO: five minutes on two CPU cores. Ctrl-C stops it; the same command goes on."""

    out: Path = Path("runs/demo")
    """Where the runs and the report are written."""
    size: Literal["full", "tiny"] = "full"
    """tiny: seconds, to see that everything runs; its figures mean nothing."""
    seed: int = 0
    """The same seed gives the same figures, bit for bit on one machine with the same threads."""
    threads: int = 2
    """CPU threads."""


def main(words: Sequence[str]) -> None:
    options = parse(Options, words, "posttrain demo [options]")
    from posttrain.recipes import demo

    console = Console(highlight=False)
    data = demo.run(
        options.out,
        demo.SIZES[options.size],
        seed=options.seed,
        threads=options.threads,
        command=shlex.join(["posttrain", "demo", *words]),
        say=lambda text: console.print(Text(text, style="bold")),
    )
    console.print()
    console.print(table(data))
    console.print(captions(data))
    for sample in data["samples"][::2]:
        console.print(side_by_side(sample))
    console.print(f"\nreport: {options.out / 'report.html'}    talk to it: posttrain chat {options.out}")


def table(data: Mapping[str, Any]) -> Table:
    """The stages in numbers."""
    t = Table(box=box.SIMPLE_HEAD, title="what each stage changed", title_justify="left")
    t.add_column("stage")
    for name in ("formed", "over base", "over SFT", "solved", "pass@8", "KL", "seconds"):
        t.add_column(name, justify="right", no_wrap=True)
    for s in data["stages"]:
        t.add_row(
            s["title"], share(s["well_formed"]), share(s["win_rate_base"]), share(s["win_rate"]), share(s["greedy"]),
            f"{s['pass_at_8']['value']:.0%}", number(s["kl_from_sft"], 2), number(s["seconds"], 0),
        )  # fmt: skip
    return t


def captions(data: Mapping[str, Any]) -> Text:
    """What the columns mean, and the reward model's figures."""
    first, rm = data["stages"][0], data["reward_model"]
    wins = data["stages"][1]["win_rate_base"]
    best = rm["best_of_8"]
    lines = [
        f"formed: greedy answers that stop and are sentences of the world, n = {first['well_formed']['n']}",
        f"over base, over SFT: gold prefers it in sampled portraits of held-out people, ties half, n = {wins['n']}",
        f"solved: greedy, held-out sums and chains, n = {first['greedy']['n']}",
        f"pass@8: eight sampled answers to each, n = {first['pass_at_8']['n']}",
        "KL: kl(stage || SFT), nats per answer; below the shares: 95 % intervals",
        f"reward model: right on {rm['accuracy']['value']:.0%} of held-out pairs; best of 8 under it raises gold from "
        f"{best['gold_mean_of_1']:.2f} to {best['gold_best_of_8']:.2f}; {rm['seconds']:.0f} s",
        f"all in all {data['seconds']:.0f} s, {data['peak_memory_mb']:.0f} MiB at most",
        *data["notes"],
    ]
    return Text("\n".join(lines), style="dim")


def side_by_side(sample: Mapping[str, Any]) -> Table:
    """One prompt, all stages."""
    t = Table(box=box.SIMPLE, title=Text(sample["prompt"]), title_justify="left", show_header=False, padding=(0, 1))
    for answer in sample["answers"]:
        style = {True: "green", False: "red", None: ""}[answer["good"]]
        text = answer["text"].replace("\n", " / ")
        t.add_row(
            answer["stage"],
            Text(text[:160] + (" ..." if len(text) > 160 else "")),
            Text(answer["verdict"], style=style),
        )
    return t


def share(x: Mapping[str, float] | None) -> str:
    """A share with its interval below it, in percent; empty for None."""
    return "" if x is None else f"{x['value']:.0%}\n{100 * x['low']:.0f}-{100 * x['high']:.0f}"


def number(x: float | None, digits: int) -> str:
    """A number with so many digits; empty for None."""
    return "" if x is None else f"{x:.{digits}f}"
