"""`posttrain doctor`: what is installed here; `posttrain doctor RUN`: what the invariants of a run found."""

import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from posttrain.cli.options import parse
from posttrain.cli.runs import check_run, state

EXTRAS: dict[str, tuple[str, str]] = {
    "hf": ("transformers", "any other model architecture"),
    "data": ("pyarrow", "Parquet files"),
    "math": ("math_verify", "symbolic comparison of mathematical answers"),
    "vllm": ("vllm", "fast sampling on a GPU"),
    "ray": ("ray", "many machines"),
    "control": ("gymnasium", "control tasks"),
    "tensorboard": ("tensorboard", "run.mirror = tensorboard"),
    "trackio": ("trackio", "run.mirror = trackio"),
    "wandb": ("wandb", "run.mirror = wandb"),
    "book": ("sphinx", "building the book"),
    "dev": ("pytest", "tests"),
}
"""Extra of the package -> a module it brings, and what it is for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Without a run: what is installed. With one: the checks it recorded, and what to do about those that failed."""

    run: Path | None = None
    """A run folder, or a folder of runs."""


def main(words: Sequence[str]) -> int:
    """Print the report; exit code 1 if a check of the run failed."""
    options = parse(Options, words, "posttrain doctor [RUN]", ("run",))
    console = Console(highlight=False, soft_wrap=True)
    if options.run is None:
        for ok, name, text in installed():
            _line(console, ok, name, text)
        return 0
    stages = sorted(path.parent for path in options.run.glob("*/config.toml"))
    if (options.run / "config.toml").exists() or not stages:
        check_run(options.run)
        stages = [options.run]
    return max([_run(console, run) for run in stages])


def installed() -> list[tuple[bool, str, str]]:
    """(fine, name, text) of Python, torch, the device, each extra and the embedded base."""
    import torch

    from posttrain import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    base = Path(__file__).parents[1] / "assets" / "base-1" / "model.safetensors"
    size = f"{base.stat().st_size / 2**20:.1f} MiB" if base.exists() else f"{base} is missing: `make base` makes it"
    rows = [
        (True, "posttrain", __version__),
        (True, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"),
        (True, "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        (True, "device", cuda or "cpu (no CUDA device; everything here runs on a CPU)"),
        (base.exists(), "embedded base", size),
    ]
    for extra, (module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        rows.append((there, f"extra {extra}", purpose if there else f'{purpose}: pip install "posttrain[{extra}]"'))
    return rows


def _run(console: Console, run: Path) -> int:
    path = run / "invariants.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    console.print(f"{run}: {state(run)}, {len(lines)} checks recorded", markup=False)
    bad = False
    for name in dict.fromkeys(line["check"] for line in lines):
        same = [line for line in lines if line["check"] == name]
        failed = [line for line in same if not line["ok"]]
        bad = bad or bool(failed)
        shown = failed[-1] if failed else same[-1]
        often = f" (failed in {len(failed)} of {len(same)})" if failed and len(same) > 1 else ""
        _line(console, not failed, name, f"step {shown['step']}: {shown['value']}{often}")
        if failed:
            console.print(f"        {shown['advice']}", markup=False)
    return int(bad)


def _line(console: Console, ok: bool, name: str, text: str) -> None:
    mark = Text("  ok    " if ok else "  --    ", style="green" if ok else "red")
    console.print(mark + Text(f"{name:<28}{text}"))
