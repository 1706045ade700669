"""Rows of the layouts that data files come in, as records: one pure function per kind of record.

A row is a dict from JSON or Parquet. Prompts and answers may be strings, messages or lists of messages; Alpaca has
instruction, input and output; HH-RLHF writes a whole dialogue in one string. A row that does not fit raises DataError
with the reason alone; `sources.py` adds file and line. What single messages look like is known to `messages.py`.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from posttrain.data.messages import kind_of, message, transcript
from posttrain.errors import DataError
from posttrain.records import Example, Judged, Message, Pair, Ranking, Task, Text

Kind = Literal["sft", "text", "preference", "prompt", "judged", "ranking"]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what. None: the first of the usual names (`USUAL`) that the file has."""

    messages: str | None = None
    """A chat: a list of messages."""
    prompt: str | None = None
    """The question: text, or a list of messages."""
    input: str | None = None
    """Text added to the prompt after an empty line (Alpaca)."""
    system: str | None = None
    """A system message for chats that have none."""
    completion: str | None = None
    """The answer to be learned or judged."""
    text: str | None = None
    """A plain document."""
    chosen: str | None = None
    """The better answer, or the whole better conversation."""
    rejected: str | None = None
    """The worse one."""
    margin: str | None = None
    """By how much the chosen answer is better."""
    answer: str | None = None
    """The gold answer that a verifier compares with."""
    label: str | None = None
    """Whether an answer is good: true or false, 1 or 0."""
    answers: str | None = None
    """Several answers to one prompt: a list of texts or messages, or of objects that hold their own scores."""
    scores: str | None = None
    """What each of these answers is worth, a list of numbers."""
    ranks: str | None = None
    """The place of each of these answers, 1 for the best, where there are no scores."""
    completions: str | None = None
    """Reasoning steps, a list of texts."""
    labels: str | None = None
    """One true or false per reasoning step."""
    id: str | None = None
    """Name of a task."""

    def find(self, part: str, row: Row) -> str | None:
        """Name of the column that holds `part`, or None where the row has no such column."""
        named = getattr(self, part)
        candidates = USUAL[part] if named is None else (named,)
        return next((name for name in candidates if name in row), None)


USUAL: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "problem", "instruction", "query"),
    "input": ("input",),
    "system": ("system", "system_prompt"),
    "completion": ("completion", "response", "output", "answer"),
    "text": ("text",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "margin": ("margin",),
    "answer": ("answer", "target", "solution", "ground_truth", "final_answer"),
    "label": ("label", "good", "is_correct"),
    "answers": ("answers", "responses", "candidates", "completions", "outputs"),
    "scores": ("scores", "rewards", "ratings"),
    "ranks": ("ranks", "rank"),
    "completions": ("completions", "steps"),
    "labels": ("labels",),
    "id": ("id", "task_id", "problem_id", "unique_id"),
}
"""Usual column names of each part, in order of preference."""

NEEDS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",)),
    "text": (("text",),),
    "preference": (("chosen", "rejected"),),
    "prompt": (("messages",), ("prompt",)),
    "judged": (("messages", "label"), ("prompt", "completion", "label"), ("prompt", "completions", "labels")),
    "ranking": (
        ("prompt", "answers", "scores"),
        ("prompt", "answers", "ranks"),
        ("prompt", "answers"),
        ("chosen", "rejected"),
    ),
}
"""Alternatives of what a file must have, per kind."""


def column_problem(kind: Kind, columns: Columns, row: Row) -> str | None:
    """Why rows with these columns cannot be of this kind, with advice; None where they can."""
    found = ", ".join(row) or "none"
    for field in fields(columns):
        named = getattr(columns, field.name)
        if named is not None and named not in row:
            close = difflib.get_close_matches(named, list(row), n=1)
            hint = f' Did you mean "{close[0]}"?' if close else ""
            return f'there is no column "{named}" (columns.{field.name}). Columns found: {found}.{hint}'
    if any(all(columns.find(part, row) for part in parts) for parts in NEEDS[kind]):
        return None
    ways = "; or ".join(" and ".join(parts) for parts in NEEDS[kind])
    wanted = [part for parts in NEEDS[kind] for part in parts if not columns.find(part, row)]
    hints = [
        f' Did you mean columns.{part} = "{close[0]}"?'
        for part in dict.fromkeys(wanted)
        if (close := difflib.get_close_matches(part, list(row), n=1))
    ]
    return f'the columns do not make data of kind "{kind}", which needs {ways}. Columns found: {found}.' + (
        hints[0] if hints else f" Say which column is which, for instance columns.{wanted[0]} = NAME."
    )


# --- kinds ---


def example(row: Row, columns: Columns, where: str) -> Example | Text:
    """A demonstration: a chat, a prompt with its completion, or a plain document."""
    if columns.find("messages", row):
        messages = _chat(row, columns)
        used = ("messages", "system")
    elif columns.find("prompt", row) and columns.find("completion", row):
        messages = (*_prompt(row, columns), *_said(_value(row, columns, "completion"), "completion"))
        used = ("prompt", "input", "system", "completion")
    else:
        return document(row, columns, where)
    spoken = [m for m in messages if m.role == "assistant"]
    if not spoken:
        raise DataError("no assistant message to learn from")
    if any(not m.content.strip() and not m.calls for m in spoken):
        raise DataError("an assistant message is empty")
    return Example(messages, _meta(row, columns, used, where))


def document(row: Row, columns: Columns, where: str) -> Text:
    """A plain document."""
    text = _value(row, columns, "text")
    if not isinstance(text, str) or not text:
        raise DataError(f"text is {kind_of(text)}, not a text with content")
    return Text(text, _meta(row, columns, ("text",), where))


def pair(row: Row, columns: Columns, where: str) -> Pair:
    """Two answers to one prompt. A prompt that is not given is what the two conversations begin with in common."""
    sides = [_value(row, columns, name) for name in ("chosen", "rejected")]
    if columns.find("messages", row):
        prompt = _chat(row, columns)
    elif columns.find("prompt", row):
        prompt = _prompt(row, columns)
    else:
        prompt = ()
    if not prompt and all(isinstance(side, str) for side in sides):
        chosen, rejected = (transcript(side) for side in sides)
    else:
        chosen, rejected = (_said(side, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True))
    whole = [side[0].role != "assistant" for side in (chosen, rejected)]
    if any(whole) or not prompt:
        if not all(whole) and prompt:
            raise DataError("one of chosen and rejected is a whole conversation, the other only an answer")
        shared = _shared(chosen, rejected)
        if prompt and not {m.content for m in prompt if m.role == "user"} <= {m.content for m in shared}:
            raise DataError("the prompt differs from what the chosen and rejected conversations begin with")
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1].role != "assistant":
            raise DataError(f"the {name} conversation ends with a {side[-1].role} message, not with an answer")
    if chosen == rejected:
        raise DataError("chosen and rejected are equal: nothing is preferred")
    used = ("messages", "prompt", "input", "system", "chosen", "rejected", "margin")
    return Pair(prompt, chosen, rejected, _margin(row, columns), _meta(row, columns, used, where))


def task(row: Row, columns: Columns, where: str) -> Task:
    """A prompt to answer, with the gold answer where there is one.

    A chat that ends with the assistant gives that message as the answer, unless another column does. Of a solution in
    GSM8K's manner ("... #### 72") the answer is what follows the mark; the whole stays in `meta["solution"]`.
    """
    if columns.find("messages", row):
        prompt, used = _chat(row, columns), ("messages", "system")
    else:
        prompt, used = _prompt(row, columns), ("prompt", "input", "system")
    name, answer, extra = columns.find("answer", row), None, {}
    if prompt[-1].role == "assistant":
        prompt, answer = prompt[:-1], prompt[-1].content
    if not prompt:
        raise DataError("no message to answer")
    if name is not None:
        answer = _gold(row[name])
    if answer is not None and "####" in answer:
        extra = {"solution": answer}
        answer = answer.rsplit("####", 1)[1].strip()
    ident = columns.find("id", row)
    meta = _meta(row, columns, (*used, "answer", "id"), where) | extra
    return Task(where if ident is None else str(row[ident]), prompt, answer, meta)


def judged(row: Row, columns: Columns, where: str) -> Judged:
    """An answer with a verdict, or a solution with one verdict per step."""
    if columns.find("completions", row) and columns.find("labels", row):
        steps, labels = _value(row, columns, "completions"), _value(row, columns, "labels")
        if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels) or not steps:
            raise DataError("steps and their labels must be two lists of one length")
        verdicts = tuple(_verdict(label) for label in labels)
        return Judged(_prompt(row, columns), (Message("assistant", "\n".join(steps)),), all(verdicts), verdicts)
    good = _verdict(_value(row, columns, "label"))
    if columns.find("messages", row):
        messages = _chat(row, columns)
        if messages[-1].role != "assistant":
            raise DataError(f"the conversation ends with a {messages[-1].role} message: there is no answer to judge")
        return Judged(messages[:-1], messages[-1:], good)
    return Judged(_prompt(row, columns), _said(_value(row, columns, "completion"), "completion"), good)


def ranking(row: Row, columns: Columns, where: str) -> Ranking:
    """Several answers to one prompt, each with what it is worth. A pair is a ranking of two.

    Scores stand in a list beside the answers, or follow from ranks; or each answer is an object that holds its own, as
    in UltraFeedback (`response` and `overall_score`).
    """
    if columns.find("answers", row) is None:
        two = pair(row, columns, where)
        if len(two.chosen) > 1 or len(two.rejected) > 1:
            raise DataError("an answer of several messages: a ranking compares single ones")
        return Ranking(two.prompt, (two.chosen[0], two.rejected[0]), (1.0, 0.0))
    given = _value(row, columns, "answers")
    if not isinstance(given, list) or len(given) < 2:
        raise DataError(f"the answers are {kind_of(given)}, not a list of at least two")
    own = [_scored(x) for x in given]
    if name := columns.find("scores", row) or columns.find("ranks", row):
        values = row[name]
        if not isinstance(values, list) or len(values) != len(given):
            raise DataError(f"{name} is {kind_of(values)}, not a list with one number for each of {len(given)} answers")
        sign = 1 if columns.find("scores", row) else -1
    else:
        values, sign = [score for _, score in own], 1
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"a score is {value!r}, not a number")
    said = [_said(text, "an answer") for text, _ in own]
    if any(len(messages) != 1 or messages[0].role != "assistant" for messages in said):
        raise DataError("an answer is not one assistant message: a ranking compares single ones")
    return Ranking(_prompt(row, columns), tuple(m for (m,) in said), tuple(sign * float(v) for v in values))


def _scored(answer: Any) -> tuple[Any, Any]:
    """An answer, and the score that it carries; None where it carries none."""
    if not isinstance(answer, Mapping) or "role" in answer:
        return answer, None
    text = next((answer[name] for name in ("response", "text", "content", "answer") if name in answer), answer)
    return text, next((answer[name] for name in ("overall_score", "score", "reward") if name in answer), None)


READERS: dict[Kind, Callable[[Row, Columns, str], Any]] = {
    "sft": example,
    "text": document,
    "preference": pair,
    "prompt": task,
    "judged": judged,
    "ranking": ranking,
}
"""The function that makes a record of each kind: (row, columns, where) -> record."""


# --- parts of a row ---


def _messages(value: Any, part: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{part} is {kind_of(value)}, not a list of messages")
    return tuple(message(m) for m in value)


def _said(value: Any, part: str) -> tuple[Message, ...]:
    """An answer: text, one message, or several."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    return (message(value),) if isinstance(value, Mapping) else _messages(value, part)


def _chat(row: Row, columns: Columns) -> tuple[Message, ...]:
    return _with_system(_messages(_value(row, columns, "messages"), "messages"), row, columns)


def _prompt(row: Row, columns: Columns) -> tuple[Message, ...]:
    """The prompt as messages: text becomes a user message, with the Alpaca input under it."""
    value = _value(row, columns, "prompt")
    if not isinstance(value, str):
        return _with_system(_messages(value, "prompt"), row, columns)
    if not value.strip():
        raise DataError("the prompt is empty")
    alpaca = columns.input is not None or columns.find("prompt", row) == "instruction"
    more = row.get(columns.find("input", row) or "") if alpaca else None
    content = f"{value}\n\n{more}" if isinstance(more, str) and more.strip() else value
    return _with_system((Message("user", content),), row, columns)


def _with_system(messages: tuple[Message, ...], row: Row, columns: Columns) -> tuple[Message, ...]:
    system = row.get(columns.find("system", row) or "")
    if isinstance(system, str) and system.strip() and messages[0].role != "system":
        return (Message("system", system), *messages)
    return messages


# --- values ---


def _value(row: Row, columns: Columns, part: str) -> Any:
    name = columns.find(part, row)
    if name is None:
        raise DataError(f"no column for {part}; this row has {', '.join(row) or 'nothing'}")
    return row[name]


def _shared(a: Sequence[Message], b: Sequence[Message]) -> tuple[Message, ...]:
    """What two conversations begin with in common, leaving each at least one message."""
    n = 0
    while n < min(len(a), len(b)) - 1 and a[n] == b[n]:
        n += 1
    return tuple(a[:n])


def _gold(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise DataError(f"the answer is {kind_of(value)}, neither text nor a number. Set columns.answer to another column")


def _verdict(value: Any) -> bool:
    if value in (True, False):  # 1 and 0 too
        return bool(value)
    raise DataError(f"a label is {value!r}, neither true nor false")


def _margin(row: Row, columns: Columns) -> float | None:
    name = columns.find("margin", row)
    if name is not None:
        value = row[name]
    elif row.get("score_chosen") is not None and row.get("score_rejected") is not None:  # UltraFeedback
        value = float(row["score_chosen"]) - float(row["score_rejected"])
    else:
        return None
    if value is not None and not isinstance(value, int | float):
        raise DataError(f"the margin is {kind_of(value)}, not a number")
    return None if value is None else float(value)


def _meta(row: Row, columns: Columns, used: Sequence[str], where: str) -> dict[str, Any]:
    """The columns that no part of the record came from, and `where`: the place it was read from."""
    taken = {columns.find(part, row) for part in used}
    return {"where": where} | {name: value for name, value in row.items() if name not in taken}
