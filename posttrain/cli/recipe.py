"""`posttrain recipe NAME`: a paper's pipeline as stages, a table of what each changed, and a report."""

import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.cli.options import help_text, parse, wants_help
from posttrain.errors import UsageError, nearest

RECIPES: dict[str, str] = {
    "learning_to_summarize": "Stiennon et al. 2020: references, comparisons, PPO against a reward model",
    "instructgpt": "Ouyang et al. 2022: demonstrations, comparisons, PPO with pre-training text",
    "zephyr": "Tunstall et al. 2023: demonstrations, AI feedback, DPO",
    "r1_zero": "DeepSeek-AI 2025: reinforcement learning straight from a base model",
    "r1": "DeepSeek-AI 2025: cold start, RL, rejection sampling and SFT, RL, distillation",
}
"""Recipe -> its line in the list; the module is posttrain.recipes.<recipe>."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Stages on the embedded base. Ctrl-C stops after a step, with a checkpoint; the same command goes on."""

    size: Literal["laptop", "tiny"] = "laptop"
    """laptop: minutes on two CPU cores. tiny: to see that everything runs; its figures mean nothing."""
    out: Path | None = None
    """Where the runs and the report are written. Default: runs/<recipe>, or runs/<recipe>-tiny."""
    seed: int = 0
    """The same seed gives the same figures, bit for bit on one machine with the same threads."""
    threads: int = 2
    """CPU threads."""


def main(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        print("posttrain recipe NAME [options]      posttrain recipe NAME --help says what it does\n")
        print("\n".join(f"  {name:<22} {text}" for name, text in RECIPES.items()))
        if words and not wants_help(words[:1]):
            raise UsageError(f'"{words[0]}" comes before the recipe. Write: posttrain recipe NAME {words[0]} ...')
        return
    name = words[0].replace("-", "_")
    if name not in RECIPES:
        raise UsageError(f'there is no recipe "{words[0]}". {nearest(name, RECIPES)} `posttrain recipe` lists them.')
    module = importlib.import_module(f"posttrain.recipes.{name}")
    if wants_help(words):
        print(module.__doc__)
        print(help_text(Options, f"posttrain recipe {name} [options]"))
        return
    show(module, name, parse(Options, words[1:], f"posttrain recipe {name} [options]"), shlex.join(words))


def show(module: Any, name: str, options: Options, words: str) -> None:
    """Run a recipe, and print what came of it."""
    from rich.console import Console
    from rich.text import Text

    from posttrain.cli.demo import side_by_side
    from posttrain.recipes.gather import Setting

    console = Console(highlight=False)
    out = options.out or Path("runs") / (name if options.size == "laptop" else f"{name}-{options.size}")
    at = Setting(
        out=out,
        seed=options.seed,
        threads=options.threads,
        command=f"posttrain recipe {words}",
        say=lambda text: console.print(Text(text, style="bold")),
    )
    data = module.run(module.SIZES[options.size], at)
    console.print()
    console.print(table(data))
    console.print(Text("\n".join(captions(data)), style="dim"))
    for sample in data["samples"][::2]:
        console.print(side_by_side(sample))
    last = [stage["folder"] for stage in data["stages"] if stage["folder"]][-1]
    console.print(f"\nreport: {out / 'report.html'}    talk to a stage: posttrain chat {last}")


def table(data: Mapping[str, Any]):
    """The stages in numbers, in the report's own columns."""
    from rich import box
    from rich.table import Table

    t = Table(box=box.SIMPLE_HEAD, title="what each stage changed", title_justify="left")
    t.add_column("stage")
    columns = measured(data)
    for column in columns:
        t.add_column(column.label.lower(), justify="right", no_wrap=True)
    for stage in data["stages"]:
        t.add_row(stage["title"], *(cell(stage.get(c.key), c) for c in columns))
    return t


def measured(data: Mapping[str, Any]) -> list[Any]:
    """The report's columns that any stage has a figure for."""
    from posttrain.recipes.report import COLUMNS, Column

    columns = [Column(**c) for c in data["columns"]] if data.get("columns") else COLUMNS
    return [c for c in columns if any(stage.get(c.key) is not None for stage in data["stages"])]


def cell(entry: Mapping[str, Any] | float | None, column: Any) -> str:
    """A figure with its interval below it, in percent where it is a share."""
    if entry is None:
        return ""
    if not isinstance(entry, Mapping):
        return f"{entry:.{column.digits}f}"
    scale, digits = (100, 0) if column.share else (1, column.digits)
    text = f"{scale * entry['value']:.{digits}f}" + "%" * column.share
    if entry.get("low") is None:
        return text
    between = "-" if column.share else " to "  # plain numbers may be negative
    return f"{text}\n{scale * entry['low']:.{digits}f}{between}{scale * entry['high']:.{digits}f}"


def captions(data: Mapping[str, Any]) -> list[str]:
    """What the columns mean, and what the figures must be read with."""
    return [
        *(f"{c.label.lower()}: {c.meaning}" for c in measured(data)),
        "below the figures: 95 % intervals for the draw of prompts",
        *data["notes"],
        f"all in all {data['seconds']:.0f} s, {data['peak_memory_mb']:.0f} MiB at most",
    ]
