"""`posttrain model-card`: what the embedded base is, and what it can do before any post-training, measured now."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from posttrain.cli.options import parse
from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from posttrain.evals.base_card import BaseCard


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the embedded base, or another model of its world. Takes about half a minute on one core."""

    model: str = "base"
    """A model: "base", or a folder that pre-training wrote."""
    n: int = 50
    """Tasks of each kind."""
    k: int = 8
    """Sampled answers per task."""
    seed: int = 0
    """Of tasks and draws: the same seed gives the same figures."""
    json: bool = False
    """One JSON object instead of text."""

    def __post_init__(self):
        if self.n < 1 or self.k < 1:
            raise ConfigError(f"n = {self.n}, k = {self.k}: each must be at least 1")


def main(words: Sequence[str]) -> None:
    """Measure and print."""
    options = parse(Options, words, "posttrain model-card [MODEL] [options]", ("model",))
    import torch

    from posttrain.cli.sample import writer
    from posttrain.evals.base_card import measure

    torch.set_num_threads(1)  # so small a model gains nothing from more, and figures repeat only with the same number
    loaded, _ = writer(options.model, "plain")
    card = measure(loaded, n=options.n, k=options.k, seed=options.seed)
    if options.json:
        print(json.dumps({"model": options.model, **card.as_json()}))
    else:
        show(Console(highlight=False, soft_wrap=True), options.model, card)


def show(console: Console, name: str, card: "BaseCard") -> None:
    """Print the card."""
    shape = ", ".join(f"{key} {value}" for key, value in card.architecture.items())
    console.print(f"[bold]Model card of {name}[/]\n")
    console.print(f"{card.parameters:,} parameters, vocabulary {card.vocabulary}.\n{shape}.")
    kinds = sorted(card.corpus.items(), key=lambda item: -item[1])
    console.print("\nCorpus, generated: " + ", ".join(f"{kind} {share:.0%}" for kind, share in kinds) + ".")
    console.print("Trained: " + _training(card))
    console.print(f"Validation loss: {card.validation_loss:.4f} nats per token.")
    console.print("\n[bold]Facts as statements[/]: is the true value the most probable one?")
    console.print(_recall(card))
    k = next(iter(card.tasks.values())).whole.k
    console.print(f"\n[bold]Tasks, asked as Q: ... A:[/], {k} samples each at temperature 1; 95 % intervals.")
    console.print("Stop: the answer ended by itself. Formed: it is whole sentences of the world and nothing else.")
    console.print(_tasks(card, k))
    console.print(f"\nSeed {card.seed}; measured in {card.seconds:.0f} s.")


def _training(card: "BaseCard") -> str:
    if card.training is None:
        return "not recorded (no training.json beside the weights)."
    t = card.training
    return f"{t['tokens']:,} tokens in {t['steps']:,} steps."


def _recall(card: "BaseCard") -> Table:
    from posttrain.cli.evaluate import percent

    t = Table("people", "facts", "most probable", "mean rank", "by chance", box=None, header_style="bold")
    for name, r in card.recall.items():
        t.add_row(name, str(r.facts), percent(r.first), f"{r.mean_rank:.2f}", f"{1 / r.values:.1%}")
    return t


def _tasks(card: "BaseCard", k: int) -> Table:
    from posttrain.cli.evaluate import percent

    columns = ("task", "greedy", "pass@1", f"pass@{k}", "stop", "formed")
    t = Table(*(Column(c, no_wrap=True) for c in columns), box=None, header_style="bold")
    for name, row in card.tasks.items():
        for label, m, formed in ((name, row.whole, row.formed), ("  first line", row.line, row.formed_line)):
            figures = [percent(x, 0) for x in (m.greedy, m.pass_1, m.pass_k)]
            t.add_row(label, *figures, f"{m.stop_share:.0%}", f"{formed:.0%}")
    return t
