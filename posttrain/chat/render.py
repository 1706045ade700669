"""Conversations, documents and pairs as segments: token ids with a mask over what is learned.

The mask is true on the assistant's words and on the stop token that ends them, and nowhere else, unless the caller asks
for all text. A turn whose stop token is missing, a row without a learned token and a doubled BOS are errors here, not
curves that look fine. Entry 0 is never learned, since nothing predicts it. Section 05 of the book paints these masks;
`encode.py` does the encoding.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from posttrain.chat import encode
from posttrain.chat.encode import Said, stop_ids
from posttrain.chat.templates import JinjaTemplate, Template
from posttrain.errors import DataError, ModelError
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message, Pair, Segment

TrainOn = Literal["assistant", "last", "all"]

__all__ = ["answer_text", "follow_up", "prompt", "render", "render_answer", "render_pair", "render_text", "stop_ids"]


def prompt(
    messages: Sequence[Message],
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    *,
    keep_thinking: bool | None = None,
) -> list[int]:
    """Ids that ask the assistant to speak next: the conversation and the generation prompt.

    Raises DataError where the last message is the assistant's own: there is nothing to answer.
    """
    if messages and messages[-1].role == "assistant":
        raise DataError(
            "a prompt ends with an assistant message, but generation starts a new assistant turn: there is nothing to "
            "answer. Drop the last message"
        )
    if isinstance(template, JinjaTemplate):
        shown = encode.forget_thoughts(messages) if keep_thinking is False else list(messages)
        row = encode.Rendering(template, tokenizer, messages)
        text = row.text(shown, generate=True)
        if keep_thinking:
            encode.check_thoughts(shown, text, template)
        ids = row.encode(text)
    else:
        shown = encode.forget_thoughts(messages) if keep_thinking is False else messages
        ids = encode.table_stream(shown, template, tokenizer)[0]
        ids += encode.header_ids(template, tokenizer, ids)
    _check_bos(ids, template, tokenizer)
    return ids


def render(
    messages: Sequence[Message],
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    *,
    keep_thinking: bool | None = None,
    max_len: int | None = None,
    train_on: TrainOn = "assistant",
    where: str = "this row",
) -> list[Segment]:
    """A conversation as segments: one, unless the context of a later turn rewrites an earlier one.

    keep_thinking: True: reasoning in earlier turns stays (an error where a Jinja template drops it). False: it is
        dropped before the last user message, as at serving time, so each turn becomes a segment of its own, under the
        context it will meet. None: the template's own way; built-in templates keep it.
    max_len: cut from the right to this many tokens; `Segment.truncated` counts them.
    train_on: "assistant": every assistant turn. "last": only the last one. "all": every token, headers too.
    where: names the row in errors ("chats.jsonl, line 12").

    Raises DataError where no token would be learned, or a Jinja template does not continue its own generation prompt;
    ModelError where the template's turns do not end in a stop token. What follows the last learned turn is left out.
    """
    spoken = [i for i, m in enumerate(messages) if m.role == "assistant"]
    match train_on:
        case "all":
            segments = [_all(messages, template, tokenizer, keep_thinking)]
        case "assistant" | "last":
            trained = spoken if train_on == "assistant" else spoken[-1:]
            segments = _join(encode.turns(messages, trained, template, tokenizer, keep_thinking))
        case _:
            raise ValueError(f'train_on = "{train_on}" is not one of "assistant", "last", "all"')
    for segment in segments:
        _check_bos(segment.tokens, template, tokenizer)
    return _fit(segments, max_len, where)


def render_answer(
    prompt: Sequence[Message],
    answer: Sequence[Message],
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    *,
    keep_thinking: bool | None = None,
    max_len: int | None = None,
    where: str = "this row",
) -> Segment:
    """A prompt and its answer as one segment; only the answer's assistant turns are masked in.

    Raises DataError where the answer takes more than one segment (a template that rewrites it halfway).
    """
    messages = (*prompt, *answer)
    trained = [i for i, m in enumerate(messages) if m.role == "assistant" and i >= len(prompt)]
    segments = _join(encode.turns(messages, trained, template, tokenizer, keep_thinking))
    if len(segments) > 1:
        raise DataError(
            f'{where}: the chat template "{template.name}" rewrites an answer of several turns, so it is not one '
            "stream of tokens. Set keep_thinking = true, or use a built-in template"
        )
    for segment in segments:
        _check_bos(segment.tokens, template, tokenizer)
    return _fit(segments, max_len, where)[0]


def render_pair(
    pair: Pair,
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    *,
    keep_thinking: bool | None = None,
    max_len: int | None = None,
    where: str = "this pair",
) -> tuple[Segment, Segment]:
    """The chosen and the rejected answer, each with the same prompt ids before it: (chosen, rejected)."""
    chosen, rejected = (
        render_answer(pair.prompt, side, template, tokenizer, keep_thinking=keep_thinking, max_len=max_len, where=where)
        for side in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


def render_text(
    text: str, tokenizer: Tokenizer, *, max_len: int | None = None, where: str = "this document"
) -> Segment:
    """A plain document: every token is learned but the first, which nothing predicts; it ends in the EOS."""
    ids = [tokenizer.bos_id] if tokenizer.adds_bos else []
    ids += tokenizer.encode(text)
    ids += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    mask = (False, *(True for _ in ids[1:]))
    return _fit([Segment(tokens=tuple(ids), mask=mask[: len(ids)])], max_len, where)[0]


def follow_up(
    messages: Sequence[Message],
    added: Sequence[Message],
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    *,
    keep_thinking: bool | None = None,
) -> list[int] | None:
    """Ids to put after the assistant's stop token so that it can speak again: the `added` messages and a new header.

    messages: the conversation so far, the assistant's message last. Its sampled ids stay as they are; text that was
        decoded is never encoded again, which is how ids and log-probabilities drift apart in multi-turn rollouts.

    Returns None where the longer conversation does not extend the shorter one (earlier reasoning is dropped): begin a
    new segment with `prompt`.
    """
    if keep_thinking is False and encode.forget_thoughts((*messages, *added))[: len(messages)] != list(messages):
        return None
    if isinstance(template, Template):
        stop = encode.stop_ids(template, tokenizer)[:1]
        ids = [*stop, *encode.message_ids(messages[-1], template, tokenizer, ())[2]]
        ids += encode.table_stream(added, template, tokenizer, ids)[0]
        return (ids + encode.header_ids(template, tokenizer, ids))[1:]
    row = encode.Rendering(template, tokenizer, (*messages, *added))
    told = row.text(messages, generate=False)
    asked = row.text((*messages, *added), generate=True)
    if not asked.startswith(told):
        return None
    stops = [tokenizer.token(i) or "" for i in stop_ids(template, tokenizer)]
    end = max(told.rfind(stop) + len(stop) for stop in stops if stop in told)
    return row.encode(asked[end:])


def answer_text(ids: Iterable[int], template: Template | JinjaTemplate, tokenizer: Tokenizer) -> str:
    """What a generation says: its ids without the stop token, as text, without the template's lead."""
    ids, stops = list(ids), stop_ids(template, tokenizer)
    text = tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids)
    return text.removeprefix(template.lead) if isinstance(template, Template) else text


def _join(turns: Iterable[Said]) -> list[Segment]:
    """Turns as segments: a turn whose context extends the segment so far goes on in it, another begins a new one."""
    streams: list[tuple[list[int], list[bool], list[int]]] = []
    for said in turns:
        if not streams or said.prompt[: len(streams[-1][0])] != streams[-1][0]:
            streams.append(([], [], []))
        tokens, mask, turn = streams[-1]
        new, whose = said.prompt[len(tokens) :], said.owner[len(tokens) :]
        tokens += new + said.ids
        mask += [False] * len(new) + [True] * len(said.ids)
        turn += whose + [said.index] * len(said.ids)
    return [Segment(tokens=tuple(tokens), mask=tuple(mask), turn=tuple(turn)) for tokens, mask, turn in streams]


def _all(
    messages: Sequence[Message], template: Template | JinjaTemplate, tokenizer: Tokenizer, keep: bool | None
) -> Segment:
    """The whole conversation with every token but the first learned."""
    shown = encode.forget_thoughts(messages) if keep is False else list(messages)
    turn: list[int] = []
    if isinstance(template, Template):
        ids, turn = encode.table_stream(shown, template, tokenizer)
    else:
        row = encode.Rendering(template, tokenizer, messages)
        text = row.text(shown, generate=False)
        if keep:
            encode.check_thoughts(shown, text, template)
        ids = row.encode(text)
    return Segment(tokens=tuple(ids), mask=tuple(i > 0 for i in range(len(ids))), turn=tuple(turn))


def _fit(segments: Sequence[Segment], max_len: int | None, where: str) -> list[Segment]:
    """Cut to max_len; a segment that loses all its learned tokens is dropped, and one must remain."""
    kept: list[Segment] = []
    for s in segments:
        n = len(s.tokens) if max_len is None else min(max_len, len(s.tokens))
        cut = Segment(tokens=s.tokens[:n], mask=s.mask[:n], turn=s.turn[:n], truncated=len(s.tokens) - n)
        if any(cut.mask):
            kept.append(cut)
    if kept:
        return kept
    if not any(any(s.mask) for s in segments):
        raise DataError(
            f"{where} has no token to learn: no assistant turn, or an empty text. Correct the row or drop it"
        )
    first = segments[0].mask.index(True)
    raise DataError(
        f"{where}: the first {first} tokens are context, and max_len = {max_len} leaves none of the answer: no token "
        "to learn. Raise max_len, or drop such rows"
    )


def _check_bos(ids: Sequence[int], template: Template | JinjaTemplate, tokenizer: Tokenizer) -> None:
    if tokenizer.bos_id is not None and list(ids[:2]) == [tokenizer.bos_id] * 2:
        raise ModelError(
            f'the chat template "{template.name}" begins with two BOS tokens ({tokenizer.token(tokenizer.bos_id)}); '
            "the model has never seen that. Remove one from the template"
        )
