"""`posttrain data show FILE`: rows exactly as training sees them, with what is learned in colour.

Nine of ten surprises in post-training are visible here: a template that is not the model's, a stop token that is not
learned, answers cut off by the context. Without colours (a pipe) what is learned stands between ⟦ and ⟧.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

from posttrain.chat.show import LEARNED, paint
from posttrain.cli.options import parse, wants_help
from posttrain.data.formats import Columns, Kind, column_problem
from posttrain.errors import ConfigError, UsageError, nearest
from posttrain.records import Segment

if TYPE_CHECKING:
    from posttrain.models.load import Loaded

_USAGE = "posttrain data show FILE|builtin:NAME [options]"
_BUILTIN: dict[str, Kind] = {"demonstrations": "sft", "corpus": "text", "preferences": "preference"}
"""Kind of the builtin data that are not tasks."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show rows of data as training sees them, and count what was cut or left out."""

    path: str
    """A file (.jsonl, .json, .jsonl.gz, .parquet), a pattern, "builtin:NAME" or "hf:NAME"."""
    kind: Literal["auto", "sft", "text", "preference", "prompt"] = "auto"
    """auto: by the columns. A file with questions and answers can be demonstrations (sft) or tasks (prompt)."""
    model: str = "base"
    """Whose tokenizer, template and context are used."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    n: int = 3
    """Rows to show."""
    limit: int | None = None
    """Rows to read. None: all; of builtin data 2000."""
    max_len: int | None = None
    """Cut rows to this many tokens. None: the model's context."""
    columns: Columns = Columns()
    """Column names, where they are unusual."""

    def __post_init__(self):
        if self.n < 1:
            raise ConfigError(f"n = {self.n}: show at least one row")


def main(words: Sequence[str]) -> None:
    """The only thing to do with data here is to show them."""
    if words and words[0] != "show" and not wants_help(words):
        raise UsageError(f'posttrain data "{words[0]}": {nearest(words[0], ("show",))} Write: {_USAGE}')
    options = parse(Options, words[1:] if words[:1] == ["show"] else words, _USAGE, ("path",))
    kind = _kind(options) if options.kind == "auto" else options.kind
    from posttrain.data import rows
    from posttrain.models.load import load

    loaded = load(options.model, template=options.template)
    data = rows.Data(
        path=options.path, kind="text" if kind == "text" else "auto", limit=options.limit, max_len=options.max_len,
        on_bad_row="skip", columns=options.columns,
    )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    names = [f"{loaded.tokenizer.token(i)} ({i})" for i in loaded.stop_ids]
    template = loaded.chosen.name if loaded.chosen else "none"
    console.print(
        f'{options.path} read as kind "{kind}", template {template}, stop tokens {", ".join(names)}, '
        f"context {loaded.context}",
        markup=False,
        style="bold",
    )
    if kind == "prompt":
        found = rows.tasks(data, loaded)
        _show_tasks(console, found.train[: options.n], loaded)
        segments = []
    elif kind == "preference":
        found = rows.pairs(data, loaded)
        for i, row in enumerate(found.train[: options.n], 1):
            for name, segment in zip(("chosen", "rejected"), row.pair, strict=True):
                margin = "" if row.margin is None else f", margin {row.margin:g}"
                _show(console, f"pair {i}, {name}{margin}", segment, loaded)
        segments = [s for row in found.train for s in row.pair]
    else:
        found = rows.demonstrations(data, loaded)
        for i, segment in enumerate(found.train[: options.n], 1):
            _show(console, f"row {i}", segment, loaded)
        segments = found.train
    console.print("\n" + rows.report(found), markup=False)
    if segments:
        console.print(statistics(segments), markup=False)


def _kind(options: Options) -> Kind:
    """The kind of data: builtin names have theirs; for files the first row's columns decide, narrowest kind first."""
    if options.path.startswith("builtin:"):
        return _BUILTIN.get(options.path.removeprefix("builtin:").partition(":")[0], "prompt")
    row = _first_row(options.path)
    kinds: tuple[Kind, ...] = ("preference", "sft", "prompt")
    for kind in kinds:
        fits = column_problem(kind, options.columns, row) is None
        if fits and not (kind == "sft" and _only_asks(row, options.columns)):
            return kind
    problem = column_problem("sft", options.columns, row)
    raise ConfigError(f"{options.path}: {problem} Or name the kind with --kind: sft, text, preference or prompt.")


def _first_row(path: str) -> dict:
    """The first row that is an object; reading the data says what is wrong where there is none."""
    from posttrain.data.sources import hub_rows, local_rows

    found = hub_rows(path.removeprefix("hf:")) if path.startswith("hf:") else local_rows(path)
    return next((row for _, row in found if isinstance(row, dict)), {})


def _only_asks(row: dict, columns: Columns) -> bool:
    """Whether the row is a conversation in which nobody answers: a prompt, not a demonstration."""
    name = columns.find("messages", row)
    said = row[name] if name else None
    if not isinstance(said, list):
        return False
    return not any(isinstance(m, dict) and m.get("role", m.get("from")) in ("assistant", "gpt") for m in said)


def _show_tasks(console: Console, tasks, loaded: "Loaded") -> None:
    """Prompts with their generation prompt: nothing of them is learned, the policy goes on from their end."""
    from posttrain import chat

    for i, task in enumerate(tasks, 1):
        ids = tuple(chat.prompt(task.prompt, loaded.template, loaded.tokenizer))
        _show(console, f"prompt {i}, {task.id}", Segment(ids, (False,) * len(ids)), loaded)
        gold = "none" if task.answer is None else task.answer
        console.print(f"gold answer: {gold}", markup=False)


def _show(console: Console, title: str, segment: Segment, loaded: "Loaded") -> None:
    console.print(f"\n{title}", style="bold", markup=False)
    text = Text.from_markup(paint(segment, loaded.tokenizer), emoji=False)
    console.print(text if console.color_system else Text(_bracketed(text)))


def _bracketed(text: Text) -> str:
    """The painted text for a place without colours."""
    plain = text.plain
    for span in sorted(text.spans, key=lambda s: -s.start):
        if span.style in LEARNED:
            plain = f"{plain[: span.start]}⟦{plain[span.start : span.end]}⟧{plain[span.end :]}"
    return plain


def statistics(segments: Sequence[Segment]) -> str:
    """Lengths and the share of tokens that are learned."""
    lengths = sorted(len(s.tokens) for s in segments)
    learned = sum(sum(s.mask) for s in segments)
    cut = sum(s.truncated for s in segments)
    return (
        f"{len(segments)} segments, {sum(lengths)} tokens: shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}. Learned: {learned} tokens ({learned / sum(lengths):.1%})"
        + (f". Cut off: {cut} tokens." if cut else ".")
    )
