"""`posttrain chat MODEL`: a conversation with memory, on a terminal or line by line from a pipe.

Answers appear as they are written: the sampler is asked for a few tokens at a time with what is there as the prompt.
Draws depend on seed and position alone, so the pieces are exactly the answer that one call would give.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from posttrain import rng
from posttrain.cli.options import parse
from posttrain.errors import ConfigError, DataError
from posttrain.records import Message, Stop

if TYPE_CHECKING:
    from posttrain.models.load import Loaded
    from posttrain.sample.base import Sampler, SamplingParams

PIECE = 8  # tokens between two looks at the screen
COMMANDS = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C cuts an answer short"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Talk to a model. Where the input is no terminal, every line is one message."""

    model: str
    """A model: "base", a run, a demo folder, a Hugging Face folder."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" (Q: and A:, for base models) or "chatml"."""
    system: str | None = None
    """A system message that opens the conversation."""
    temperature: float = 0.7
    """0: greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this share of the mass."""
    max_tokens: int = 256
    """Longest answer."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens = {self.max_tokens}: an answer needs room for one token at least")


def main(words: Sequence[str]) -> None:
    """Talk until the input ends."""
    options = parse(Options, words, "posttrain chat MODEL [options]", ("model",))
    from posttrain.cli.sample import writer
    from posttrain.sample.base import SamplingParams

    loaded, sampler = writer(options.model, options.template)
    params = SamplingParams(
        temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens, stop_ids=loaded.stop_ids
    )
    opening = [Message("system", options.system)] if options.system else []
    if sys.stdin.isatty():
        print(f"{loaded.folder}, template {loaded.template.name}. {COMMANDS}.")
    talk(loaded, sampler, params, opening, options.seed)


def talk(loaded: "Loaded", sampler: "Sampler", params: "SamplingParams", opening: Sequence[Message], seed: int) -> None:
    """Answer messages from the input, each under the whole conversation so far."""
    messages, turn = list(opening), 0
    for line in _lines():
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
            print(_note("forgotten"))
        elif line.startswith("/"):
            print(_note(COMMANDS))
        elif line:
            asked = [*messages, Message("user", line)]
            said = _answer(loaded, sampler, params, asked, len(opening), rng.fold(seed, "chat", turn))
            turn += 1
            if said:
                messages = [*asked, Message("assistant", said)]


def _lines() -> Iterator[str]:
    """Messages of the user, until Ctrl-D, Ctrl-C at the prompt, or the end of the pipe."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and arrow keys
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return


def _answer(
    loaded: "Loaded", sampler: "Sampler", params: "SamplingParams", messages: list[Message], fixed: int, seed: int
) -> str:
    """Print the answer while it is written and return it; empty where there was no room for one.

    messages: the oldest exchanges after the first `fixed` messages are removed where the context is full.
    """
    from posttrain import chat

    ids = chat.prompt(messages, loaded.template, loaded.tokenizer)
    while len(ids) >= sampler.context - PIECE and len(messages) > fixed + 1:
        print(_note(f"the context of {sampler.context} tokens is full: the oldest exchange is forgotten"))
        del messages[fixed : fixed + 2]
        ids = chat.prompt(messages, loaded.template, loaded.tokenizer)
    text, stop, tokens = "", Stop.LENGTH, []
    try:
        for tokens, stop in pieces(sampler, ids, params, seed):
            now = chat.answer_text(tokens, loaded.template, loaded.tokenizer)
            if now.endswith("\N{REPLACEMENT CHARACTER}") and stop is None:
                continue  # half of a character; the next piece completes it
            print(now[len(text) :], end="", flush=True)
            text = now
    except DataError as error:
        print(_note(str(error)))
        return ""
    except KeyboardInterrupt:
        print(f"\n{_note(f'cut by Ctrl-C after {len(tokens)} tokens')}")
        return text
    print()
    if stop is Stop.LENGTH:
        full = len(ids) + len(tokens) >= sampler.context
        reason = "the context is full, /reset empties it" if full else "--max-tokens allows more"
        print(_note(f"cut at {len(tokens)} tokens: {reason}"))
    return text


def pieces(
    sampler: "Sampler", ids: list[int], params: "SamplingParams", seed: int
) -> Iterator[tuple[list[int], Stop | None]]:
    """(tokens so far, stop) of one completion as it grows; the stop is None before the last piece."""
    tokens: list[int] = []
    limit = min(params.max_tokens, sampler.context - len(ids))
    while True:
        step = replace(params, max_tokens=max(1, min(PIECE, limit - len(tokens))))
        (found,) = sampler.generate([ids + tokens], step, [seed])
        tokens += found.tokens
        done = found.stop is Stop.END or len(tokens) >= limit
        yield tokens, found.stop if done else None
        if done:
            return


def _note(text: str) -> str:
    return f"[{text}]"
