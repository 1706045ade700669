"""Each assistant turn with the exact ids of the context it was said in: the ground on which masks stand.

For a built-in template every message is encoded by itself, between special tokens. For a Jinja template the turn is the
difference, in ids, between the conversation before it (with generation prompt) and the conversation with it. Where BPE
would merge across that border the two sides are encoded apart, since that is what sampling does: the prompt's ids are
fixed before the first token of the answer is drawn. Content never becomes special tokens, whatever it spells.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.chat.templates import JinjaTemplate, Template, as_dict, call_text
from posttrain.errors import DataError, ModelError
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message

_SPECIAL = re.compile(r"(<\|\w+\|>)")
_THOUGHT = re.compile(r"<think>(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """One assistant turn in its context."""

    prompt: list[int]
    """Ids of everything before, generation prompt included."""
    owner: list[int]
    """Index of the message that each id of `prompt` belongs to."""
    ids: list[int]
    """What the assistant says, its stop token last."""
    index: int
    """Which message it is."""


def stop_ids(template: Template | JinjaTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end a generation under this template. Raises ModelError where there is none."""
    if isinstance(template, Template):
        first = special_id(template.stop[0], template, tokenizer)
        others = (tokenizer.token_id(name) for name in template.stop[1:])
        return (first, *(index for index in others if index is not None))
    if template.stop:
        return tuple(special_id(name, template, tokenizer) for name in template.stop)
    if not tokenizer.stop_ids:
        raise ModelError(
            f'the chat template "{template.name}" declares no stop token and the model folder names no eos_token_id: a '
            "generation could not end. Write eos_token_id into generation_config.json, or set JinjaTemplate(stop=...)"
        )
    return tokenizer.stop_ids


def special_id(name: str, template: Template | JinjaTemplate, tokenizer: Tokenizer) -> int:
    """Id of a token that the template cannot do without."""
    index = tokenizer.token_id(name)
    if index is None:
        other = (
            "Its tokenizer names no eos_token either: write one into tokenizer_config.json"
            if template.name == "plain"
            else 'Use "auto" (the model\'s own template), "plain", or a model that has it'
        )
        raise ModelError(
            f'the chat template "{template.name}" needs the token {name}, which is not in the vocabulary of '
            f"{tokenizer.vocab_size} tokens. {other}"
        )
    return index


def forget_thoughts(messages: Sequence[Message]) -> list[Message]:
    """The messages without <think>...</think> in assistant turns before the last user message.

    Turns after it keep theirs: while tools are at work, the reasoning is still going on.
    """
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
    return [
        replace(m, content=_THOUGHT.sub("", m.content)) if m.role == "assistant" and i < last_user else m
        for i, m in enumerate(messages)
    ]


# --- built-in templates: piece by piece ---


def message_ids(
    message: Message, template: Template, tokenizer: Tokenizer, before: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """A message as (header, words with stop token, what follows); only for an assistant are the last two filled.

    before: the ids that it follows; whether they end in text matters to tokenizers that begin a text with a space.
    """
    turn = template.turns[message.role]
    if message.role != "assistant":
        return _pieces(turn.before, message.content, turn.after, template, tokenizer, before), [], []
    header, said = header_ids(template, tokenizer, before), template.lead + message.content + call_text(message.calls)
    stop = special_id(template.stop[0], template, tokenizer)
    gap = _pieces(turn.after.removeprefix(template.stop[0]), "", "", template, tokenizer, [stop])
    return header, [*tokenizer.encode(said, goes_on=not tokenizer.text_ends(header or before)), stop], gap


def header_ids(template: Template, tokenizer: Tokenizer, before: Sequence[int]) -> list[int]:
    """The generation prompt, after the ids `before`."""
    return _pieces(template.turns["assistant"].before, "", "", template, tokenizer, before)


def _pieces(
    before: str, content: str, after: str, template: Template, tokenizer: Tokenizer, follows: Sequence[int]
) -> list[int]:
    """Ids of before + content + after, which stand after the ids `follows`.

    Only the outer two hold special tokens; text between those is encoded whole.
    """
    ids: list[int] = []
    text = ""
    for part, ours in ((before, True), (content, False), (after, True)):
        for i, piece in enumerate(_SPECIAL.split(part) if ours else [part]):
            if i % 2:
                ids += tokenizer.encode(text, goes_on=not tokenizer.text_ends(ids or follows))
                ids.append(special_id(piece, template, tokenizer))
                text = ""
            else:
                text += piece
    return ids + tokenizer.encode(text, goes_on=not tokenizer.text_ends(ids or follows))


def table_stream(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, follows: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """All messages as (ids, owner); where nothing stands before them, with the tokenizer's customary BOS."""
    ids = [tokenizer.bos_id] if tokenizer.adds_bos and not follows else []
    owner = [0] * len(ids)
    for i, message in enumerate(messages):
        new = sum(message_ids(message, template, tokenizer, ids or follows), [])
        ids += new
        owner += [i] * len(new)
    return ids, owner


def _table_turns(
    messages: Sequence[Message], trained: Iterable[int], template: Template, tokenizer: Tokenizer, forget: bool
) -> Iterator[Said]:
    ids, owner, done = *table_stream((), template, tokenizer), 0
    for k in trained:
        if forget:
            ids, owner = table_stream(forget_thoughts(messages[:k]), template, tokenizer)
        elif ids:  # nothing before is ever rewritten: go on from the last turn
            more, whose = table_stream(messages[done:k], template, tokenizer, ids)
            ids, owner, done = ids + more, owner + [i + done for i in whose], k
        else:
            (ids, owner), done = table_stream(messages[:k], template, tokenizer), k
        header, said, _ = message_ids(messages[k], template, tokenizer, ids)
        yield Said(ids + header, owner + [k] * len(header), said, k)


# --- Jinja templates: the difference of two renderings ---


class Rendering:
    """Renders and encodes one row with a Jinja template, and keeps what its messages spell from becoming special."""

    def __init__(self, template: JinjaTemplate, tokenizer: Tokenizer, messages: Sequence[Message]):
        self.template, self.tokenizer = template, tokenizer
        everything = "\n".join(_strings([as_dict(m) for m in messages]))
        self.marks = [mark for mark in tokenizer.marks if mark in everything]
        # Put into marks that content spells and taken out after rendering: a character that occurs nowhere in the row.
        self.guard = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in everything)

    def text(self, messages: Sequence[Message], *, generate: bool) -> str:
        plain = [_changed(as_dict(m), self._hide) if self.marks else as_dict(m) for m in messages]
        return self.template.text(plain, self.tokenizer, generate=generate)

    def encode(self, text: str) -> list[int]:
        if not self.marks:
            return self.tokenizer.encode(text, special=True)
        ids: list[int] = []
        border = re.compile("(" + "|".join(map(re.escape, sorted(self.tokenizer.marks, key=len, reverse=True))) + ")")
        for i, piece in enumerate(border.split(text)):
            known = self.tokenizer.marks[piece] if i % 2 else None
            ids += [known] if known is not None else self.tokenizer.encode(piece.replace(self.guard, ""))
        return ids

    def extend(self, text: str, ids: list[int], longer: str) -> list[int]:
        """Ids of `longer` that begin with `ids` where `longer` begins with `text`, even against a BPE merge."""
        whole = self.encode(longer)
        if not longer.startswith(text) or whole[: len(ids)] == ids:
            return whole
        return ids + self.encode(longer[len(text) :])

    def _hide(self, text: str) -> str:
        for mark in self.marks:
            text = text.replace(mark, mark[0] + self.guard + mark[1:])
        return text


def _changed(value: Any, change) -> Any:
    """A JSON-like value with `change` applied to every string in it, keys too."""
    match value:
        case str():
            return change(value)
        case dict():
            return {_changed(k, change): _changed(v, change) for k, v in value.items()}
        case list() | tuple():
            return [_changed(v, change) for v in value]
        case _:
            return value


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON-like value."""
    found: list[str] = []
    _changed(value, lambda text: found.append(text) or text)
    yield from found


def check_thoughts(messages: Sequence[Message], text: str, template: JinjaTemplate) -> None:
    """Raise where the template dropped reasoning that keep_thinking = True promises to keep."""
    for thought in (t.strip() for m in messages if m.role == "assistant" for t in _THOUGHT.findall(m.content)):
        if thought not in text:
            raise ModelError(
                f'keep_thinking = True, but the chat template "{template.name}" drops earlier reasoning '
                f"({thought[:40]!r}). Leave keep_thinking unset: each turn then becomes a segment of its own, as served"
            )


def _jinja_turns(
    messages: Sequence[Message],
    trained: Iterable[int],
    template: JinjaTemplate,
    tokenizer: Tokenizer,
    keep_thinking: bool | None,
) -> Iterator[Said]:
    row, stops = Rendering(template, tokenizer, messages), set(stop_ids(template, tokenizer))
    text, ids, owner = "", [], []
    for k in trained:
        before = forget_thoughts(messages[:k]) if keep_thinking is False else list(messages[:k])
        asked = row.text(before, generate=True)
        told = row.text([*before, messages[k]], generate=False)
        if keep_thinking:
            check_thoughts(before, asked, template)
        if not told.startswith(asked):
            raise DataError(
                f'the chat template "{template.name}" does not continue its own generation prompt: it asks with '
                f"{asked[-40:]!r} and writes the finished turn as {told[_common(asked, told) :][:40]!r}. The mask of "
                "this turn would be a guess. Use a built-in template, or correct the template"
            )
        prompt = row.extend(text, ids, asked)
        full = row.extend(asked, prompt, told)
        end = next((i for i in range(len(prompt), len(full)) if full[i] in stops), None)
        if end is None:
            raise ModelError(
                f'the chat template "{template.name}" ends an assistant turn with {told[-24:]!r}, without any of '
                f"the stop tokens {[tokenizer.token(s) for s in sorted(stops)]}: the model would never learn to stop. "
                "Add the turn's last token to eos_token_id in generation_config.json, or set JinjaTemplate(stop=...)"
            )
        same = len(ids) if prompt[: len(ids)] == ids else 0
        owner = owner[:same] + [max(k - 1, 0)] * (len(prompt) - same)
        yield Said(prompt, owner, full[len(prompt) : end + 1], k)
        text, ids, owner = told, full, owner + [k] * (len(full) - len(prompt))


def _common(a: str, b: str) -> int:
    """Length of the common beginning of two strings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def turns(
    messages: Sequence[Message],
    trained: Sequence[int],
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    keep_thinking: bool | None,
) -> Iterator[Said]:
    """Each assistant message named in `trained` (ascending indices), in its context."""
    if isinstance(template, Template):
        return _table_turns(messages, trained, template, tokenizer, keep_thinking is False)
    return _jinja_turns(messages, trained, template, tokenizer, keep_thinking)
