"""`posttrain plan CONFIG`: batch arithmetic and memory of a run before it begins, and whether it fits here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.cli.options import help_text, wants_help
from posttrain.cli.train import CONTROL, METHODS, listed, method
from posttrain.errors import ConfigError, UsageError

_USAGE = "posttrain plan METHOD [options]      posttrain plan CONFIG.toml | RUN [options]"
_FLAGS = {
    "--config FILE": "A TOML file that is read before the flags.",
    "--longest N": "Tokens of the longest row, or of the longest prompt where answers are sampled, in place of reading "
    "the data. Needed only where the model's folder has no tokenizer; default there: what the model can take.",
    "--memory GIB": "Compare with so many GiB, not with this machine.",
    "--json": "Everything as JSON.",
}
_TEXT = {
    "weights": "of all models that are trained",
    "gradients": "as large as the trained weights",
    "optimizer": "AdamW's two moments",
    "reference": "a frozen copy",
    "cache": "the sampler's keys and values",
    "decoding": "the sampler's own copy of the matrices",
    "layers": "kept for the backward pass: grows with the micro-batch's tokens",
    "attention": "kept for the backward pass: grows with the micro-batch's tokens",
    "head": "last hidden states and chunks of probabilities",
    "passing": "logits of a chunk, and gradients on their way",
    "sampling": "a pass over prompts, or the choice of tokens",
    "rows": "ids, masks, log-probabilities",
    "unused": "pages that the allocator holds besides",
    "process": "libraries that torch loads when it begins to train",
}


def main(words: Sequence[str]) -> None:
    """Print what a run needs."""
    rest, own = _own_flags(list(words))
    if not rest or rest[0].startswith("-"):
        print(f"{_USAGE}\n\n{listed()}\n\nposttrain plan METHOD --help lists all options.")
        if rest and not wants_help(rest[:1]):
            raise UsageError(f'"{rest[0]}" comes before the method. Write: {_USAGE}')
        return
    if wants_help(rest) and rest[0].replace("-", "_") in METHODS:
        print(help_text(method(rest[0])[1].Config, _USAGE, _FLAGS))
        return
    name, cfg = _config(rest)
    found = _plan(name, cfg, own)
    if "json" in own:
        print(json.dumps(found, indent=1))
    else:
        _show(found)


def _own_flags(words: list[str]) -> tuple[list[str], dict[str, float]]:
    """Take the flags of this command, which are no part of a config, out of the words."""
    rest, own = [], {}
    while words:
        word, equals, value = words.pop(0).partition("=")
        if word == "--json":
            own["json"] = 1
        elif word in ("--longest", "--memory"):
            value = value if equals else words.pop(0) if words else ""
            try:
                own[word[2:]] = int(value) if word == "--longest" else float(value)
            except ValueError:
                raise UsageError(f'{word} needs a number, not "{value}"') from None
        else:
            rest.append(word + equals + value)
    return rest, own


def _config(words: list[str]) -> tuple[str, Any]:
    """The method's name and config: from a method and flags, or from a file, whose fields tell the method."""
    path = Path(words[0])
    path = path / "config.toml" if path.is_dir() else path
    if words[0].replace("-", "_") in METHODS or not path.is_file():
        if path.suffix == ".toml" or path.parent != Path("."):
            raise UsageError(f"{path} is no config file, and its folder no run. Write: {_USAGE}")
        name, module = method(words[0])
        return name, config.load(module.Config, None, words[1:])
    fitting, problems = [], {}
    for name in METHODS:
        try:
            fitting.append((name, config.load(method(name)[1].Config, path, words[1:])))
        except ConfigError as error:
            problems[name] = str(error)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(name for name, _ in fitting)
        raise UsageError(f"{path} fits several methods ({names}). Write: posttrain plan METHOD --config {path}")
    name = min(problems, key=lambda name: problems[name].count("\n"))
    raise ConfigError(f"{path} fits no method. {name} is nearest:\n{problems[name]}")


def _plan(name: str, cfg: Any, own: dict[str, float]) -> dict[str, Any]:
    """Everything that is known, as plain values."""
    if name in CONTROL:
        raise UsageError(
            f"{name} trains networks of a few thousand weights, whose memory is nobody's worry. "
            f"posttrain train {name} --dry-run says what a run would do."
        )
    from posttrain.algorithms.plan import demand, rows_of
    from posttrain.train.demand import PROCESS, moments, remedies
    from posttrain.train.machine import Machine, machine
    from posttrain.train.memory import sizes, weight_bytes

    rows = rows_of(cfg, own.get("longest"))
    needed = demand(cfg, rows)
    found = moments(needed)
    peak = max(found, key=lambda m: m.total)
    size = int(own["memory"] * 2**30) if "memory" in own else None
    here = Machine("memory", size, size) if size else machine()
    models = []
    for t in needed.trained:
        piece, _ = t.piece()
        largest = sizes(piece)
        trained = sum(p.numel() for p in t.model.parameters() if p.requires_grad)
        models.append({
            "name": t.name,
            "parameters": sum(p.numel() for p in t.model.parameters()),
            "trained": trained,
            "bytes": weight_bytes(t.model),
            "rows_per_update": t.rows,
            "tokens_per_update_at_most": t.rows * largest.longest,
            "micro_batches_at_most": -(-t.rows // largest.rows),
            "largest_micro_batch": largest._asdict(),
        })  # fmt: skip
    return {
        "method": name,
        "model": cfg.model,
        "rows": needed.words,
        "data_read": bool(rows.path),
        "steps": needed.steps,
        "updates_per_step": needed.updates,
        "trained": models,
        "moments": [
            {"name": m.name, "bytes": m.total, "parts": m.parts, "unused": m.unused, "process": PROCESS} for m in found
        ],
        "peak": {"moment": peak.name, "bytes": peak.total},
        "machine": here and here._asdict(),
        "fits": None if here is None else peak.total <= here.free,
        "remedies": [r._asdict() for r in remedies(cfg, lambda changed: demand(changed, rows))],
    }


def _show(found: dict[str, Any]) -> None:
    """The plan for people."""
    from rich.console import Console
    from rich.table import Table

    from posttrain.train.machine import amount

    console = Console(highlight=False, soft_wrap=True)
    steps = "" if found["steps"] is None else f"{found['steps']} steps of "
    updates = found["updates_per_step"]
    console.print(f"{found['method']}, {found['model']}: {steps}{found['rows']}"
                  + (f", {updates} updates each" if updates > 1 else ""), markup=False)  # fmt: skip
    for t in found["trained"]:
        largest = t["largest_micro_batch"]
        console.print(
            f"  {t['name']}: {t['parameters']:,} parameters, {t['trained']:,} trained. An update takes "
            f"{t['rows_per_update']} rows, at most {t['tokens_per_update_at_most']:,} tokens in "
            f"{t['micro_batches_at_most']} micro-batch(es); the largest: {largest['rows']} rows of up to "
            f"{largest['longest']} tokens, {largest['tokens']:,} computed, {largest['learned']:,} learned"
        )
    if not found["data_read"]:
        console.print("  The data were not read: rows are taken to be as long as they may be (--longest N).")
    highest = next(m for m in found["moments"] if m["name"] == found["peak"]["moment"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("part")
    table.add_column("bytes", justify="right")
    table.add_column(f"at the highest moment: {highest['name']}")
    for part, size in {**highest["parts"], "unused": highest["unused"], "process": highest["process"]}.items():
        if size:
            table.add_row(part, amount(size), _TEXT[part])
    table.add_row("[bold]together", f"[bold]{amount(highest['bytes'])}", "")
    console.print()
    console.print(table)
    others = ", ".join(f"{m['name']} {amount(m['bytes'])}" for m in found["moments"] if m is not highest)
    console.print(f"\nOther moments: {others}")
    _show_fit(console, found)


def _show_fit(console: Any, found: dict[str, Any]) -> None:
    from posttrain.train.machine import amount

    here = found["machine"]
    if here is None:
        console.print("How much memory this machine has is not known here.")
    else:
        verdict = "[green]It fits" if found["fits"] else "[bold red]It does not fit"
        console.print(f"{verdict}[/]: {amount(here['free'])} of {amount(here['total'])} {here['name']} are free.")
    for r in found["remedies"]:
        fits = ", which fits" if here and not found["fits"] and r["peak"] <= here["free"] else ""
        console.print(f"  {r['setting']}: {amount(r['less'])} less, {amount(r['peak'])} in all{fits}", markup=False)
