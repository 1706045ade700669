"""`posttrain sample MODEL --prompt "..."`: several answers to one prompt, with what the model believed of them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from posttrain import rng
from posttrain.cli.options import parse
from posttrain.errors import ConfigError, ModelError
from posttrain.records import Message, Stop

if TYPE_CHECKING:
    from posttrain.models.load import Loaded
    from posttrain.sample.torch import TorchSampler


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sample answers to a prompt. Each shows its tokens, why it ended and the mean log-probability of its tokens."""

    model: str
    """A model: "base", a run, a demo folder, a Hugging Face folder."""
    prompt: str
    """What the user says."""
    raw: bool = False
    """Continue the prompt as it stands, without a chat template: what a base model does."""
    system: str | None = None
    """A system message before it."""
    n: int = 8
    """How many answers."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" (Q: and A:, for base models) or "chatml"."""
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this share of the mass."""
    top_k: int = 0
    """Keep this many tokens. 0: all."""
    max_tokens: int = 128
    """Longest answer."""
    seed: int = 0
    """Of the draws: the same seed gives the same answers."""
    json: bool = False
    """One JSON object instead of text."""

    def __post_init__(self):
        if self.n < 1:
            raise ConfigError(f"n = {self.n}: sample at least one answer")
        if self.raw and (self.system is not None or self.template != "auto"):
            raise ConfigError("raw continues plain text: it goes with neither system nor template. Leave one out")


def main(words: Sequence[str]) -> None:
    """Sample and print."""
    options = parse(Options, words, 'posttrain sample MODEL --prompt "..." [options]', ("model",))
    found = answers(options)
    if options.json:
        print(json.dumps({"model": options.model, "prompt": options.prompt, "answers": found}, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for i, a in enumerate(found, 1):
        ended = "stopped" if a["stop"] == Stop.END else "cut at the length limit"
        head = f"{i}  {a['tokens']} tokens, {ended}, mean log-probability {a['mean_logp']:.3f}"
        console.print(Text(head, style="bold"))
        console.print(Text(a["text"]))


def answers(options: Options) -> list[dict]:
    """The answers as JSON-ready dicts."""
    from posttrain import chat
    from posttrain.sample.base import SamplingParams

    loaded, sampler = writer(options.model, options.template, quiet=options.raw)
    tokenizer = loaded.tokenizer
    params = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_tokens=options.max_tokens,
        stop_ids=tokenizer.stop_ids if options.raw else loaded.stop_ids,
    )
    if options.raw:
        ids = ([tokenizer.bos_id] if tokenizer.adds_bos else []) + tokenizer.encode(options.prompt)
    else:
        messages = [Message("system", options.system)] if options.system else []
        ids = chat.prompt([*messages, Message("user", options.prompt)], loaded.template, tokenizer)
    seeds = [rng.fold(options.seed, "sample", i) for i in range(options.n)]
    return [
        {
            "text": tokenizer.decode(c.tokens, skip_special=True)
            if options.raw
            else chat.answer_text(c.tokens, loaded.template, tokenizer),
            "tokens": len(c.tokens),
            "stop": str(c.stop),
            "mean_logp": fmean(c.logp),
        }
        for c in sampler.generate([ids] * options.n, params, seeds)
    ]


def writer(model: str | Path, template: str = "auto", *, quiet: bool = False) -> "tuple[Loaded, TorchSampler]":
    """A model by name with a sampler for it. ModelError for a reward model, which scores answers and writes none.

    quiet: say nothing of the base and its template.
    """
    from posttrain.models.decoder import Decoder
    from posttrain.models.load import EMBEDDED, load
    from posttrain.sample.torch import TorchSampler

    loaded = load(model, template=template)
    if not isinstance(loaded.model, Decoder):
        raise ModelError(
            f'"{model}" is a reward model: it scores answers and cannot write any. Name the model that writes, such as '
            "the one it was trained on (`posttrain runs show RUN` says which)."
        )
    if str(model) in EMBEDDED and template == "auto" and not quiet:
        note = "the base has never seen its chat template; --template plain asks it as its corpus does"
        print(f"note: {note}", file=sys.stderr)
    return loaded, TorchSampler(loaded.model)
