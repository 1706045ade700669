"""What is measured on: two random Llama-shaped models, and data with log-normal lengths, both from a seed.

Models are ordinary Hugging Face folders with a tokenizer of one token per word, so text means the same ids to every
library. Data are files as users have them for us, and, for the other side, the ids of the very rows that our loops take
in each step, in that order: nobody is timed on another batch. Everything is written into the scratch folder once.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from posttrain import rng
from posttrain.chat.render import prompt
from posttrain.chat.templates import POSTTRAIN, stored
from posttrain.data.rows import Data, demonstrations, pairs, pick, tasks
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import write_folder
from posttrain.models.load import load
from posttrain.models.tokenizers import Tokenizer

SCRATCH = Path(__file__).parent / ".scratch"
LONGEST = 512
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|unk|>")


@dataclass(frozen=True)
class Shape:
    """A Llama with a tied head."""

    vocab: int
    dims: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def config(self) -> ModelConfig:
        """The same as our models are configured."""
        return ModelConfig(
            model_type="llama",
            vocab_size=self.vocab,
            hidden_size=self.dims,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=2 * LONGEST,
            extra={"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "attention_dropout": 0.0},
        )

    @property
    def parameters(self) -> int:
        """Numbers in the model."""
        attention = 2 * self.dims * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.dims * self.inner + 2 * self.dims
        return self.vocab * self.dims + self.layers * layer + self.dims


SIZES = {
    "tiny": Shape(vocab=4096, dims=192, inner=512, layers=5, heads=6, kv_heads=3, head_dim=32),  # 2.8 M
    "small": Shape(vocab=8192, dims=512, inner=1536, layers=8, heads=8, kv_heads=4, head_dim=64),  # 29 M
}


@dataclass(frozen=True)
class Job:
    """What one optimizer step is made of."""

    kind: str
    """Of rows: text, pairs or prompts."""
    rows: int
    """Rows, pairs or prompts per step."""
    samples: int = 1
    """Answers per prompt."""
    answer: int = 0
    """Tokens per answer."""
    epochs: int = 1
    """Passes over a rollout."""


JOBS = {
    "sft": Job("text", 32),
    "rm": Job("pairs", 16),
    "dpo": Job("pairs", 16),
    "grpo": Job("prompts", 8, samples=8, answer=64),
    "rloo": Job("prompts", 8, samples=8, answer=64),
    "ppo": Job("prompts", 64, answer=64, epochs=4),
    "sample-1": Job("prompts", 4, answer=64),
    "sample-8": Job("prompts", 16, answer=64),
    "sample-64": Job("prompts", 64, answer=64),
    "sample-256": Job("prompts", 256, answer=64),
}
"""Of "sample-N": N sequences at a time, until all prompts of the step have their answers."""


def turn(job: str, size: str) -> int:
    """Steps that a side takes in a row. Steps of half a second are slower after a pause, and training makes none."""
    return 4 if size == "tiny" and not JOBS[job].answer else 1


def model_folder(size: str, *, scalar: bool = False, root: Path = SCRATCH) -> Path:
    """A random model of a size, written at the first call; scalar: with a random head of one number."""
    folder = root / "models" / (size + ("-scalar" if scalar else ""))
    if (folder / "config.json").is_file():
        return folder
    shape = SIZES[size]
    model = Decoder(shape.config).initialise(seed=1)
    if scalar:
        model = ScalarModel(model)
        with torch.no_grad():
            model.score.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(2))
    write_folder(model, folder, tokenizer=tokenizer(shape.vocab))
    return folder


def tokenizer(vocab: int) -> Tokenizer:
    """One token per word: w7 is the eighth of the words behind the special tokens."""
    names = [*SPECIAL, *(f"w{i}" for i in range(vocab - len(SPECIAL)))]
    backend = Backend(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|unk|>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL))
    roles = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<|unk|>"}
    plain = Tokenizer(backend, roles)
    return plain.with_chat(stored(POSTTRAIN, plain))


def data_files(size: str, job: str, steps: int, seed: int) -> tuple[Path, Path]:
    """(our rows as users have them, the other side's rows as ids, step by step) for so many steps."""
    what = JOBS[job]
    folder = SCRATCH / "data" / f"{size}-{what.kind}-{what.rows}-{steps}-{seed}"
    ours, theirs = folder / "ours.jsonl", folder / "theirs.json"
    if not theirs.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(rng.fold(seed, what.kind, size))
        vocab = SIZES[size].vocab - len(SPECIAL)
        rows = [_row(what.kind, draw, vocab) for _ in range(what.rows * steps)]
        ours.write_text("".join(json.dumps(row) + "\n" for row in rows))
        theirs.write_text(json.dumps(as_ids(size, what, ours, steps, seed)))
    return ours, theirs


def data(kind: str, path: Path) -> Data:
    """The data setting of our configs."""
    return Data(path=str(path), kind="text" if kind == "text" else "auto", max_len=LONGEST)


def _row(kind: str, draw: random.Random, vocab: int) -> dict[str, str]:
    def words(n: int) -> str:
        return " ".join(f"w{draw.randrange(vocab)}" for _ in range(n))

    if kind == "prompts":
        return {"prompt": words(_length(draw, mean=20, spread=0.5, least=4, most=64))}
    total = _length(draw, mean=60, spread=0.8, least=8, most=LONGEST - 8)
    if kind == "text":
        return {"text": words(total)}
    other = _length(draw, mean=60, spread=0.8, least=8, most=LONGEST - 8)
    asked = max(4, min(total, other) // 3)
    return {"prompt": words(asked), "chosen": words(total - asked), "rejected": words(other - asked)}


def _length(draw: random.Random, *, mean: float, spread: float, least: int, most: int) -> int:
    """A log-normal length; spread: standard deviation of its logarithm."""
    return min(most, max(least, round(draw.lognormvariate(math.log(mean) - spread**2 / 2, spread))))


def as_ids(size: str, what: Job, path: Path, steps: int, seed: int) -> list[dict]:
    """Of each step the number of tokens in its rows, and the rows as ids, rendered and picked by our own functions."""
    loaded = load(model_folder(size))
    texts = [json.loads(line) for line in path.read_text().splitlines()]
    found = []
    match what.kind:
        case "text":
            rows = demonstrations(data(what.kind, path), loaded).train
        case "pairs":
            rows = pairs(data(what.kind, path), loaded).train
        case _:
            rows = tasks(data(what.kind, path), loaded).train
    for step in range(steps):
        picked = pick(rows, step, what.rows, seed)
        match what.kind:
            case "text":
                ids = [list(s.tokens) for s in picked]
                tokens = sum(map(len, ids))
            case "pairs":
                ids = [{"text": texts[row.index], "ids": _split(row.pair)} for row in picked]
                tokens = sum(len(s.tokens) for row in picked for s in row.pair)
            case _:
                ids = [
                    {"text": t.prompt[0].content, "ids": prompt(t.prompt, loaded.template, loaded.tokenizer)}
                    for t in picked
                ]
                tokens = sum(len(row["ids"]) for row in ids)
        found.append({"tokens": tokens, "rows": ids})
    return found


def _split(pair) -> tuple[list[int], list[int], list[int]]:
    """Prompt, chosen and rejected ids."""
    asked = pair[0].mask.index(True)
    return list(pair[0].tokens[:asked]), list(pair[0].tokens[asked:]), list(pair[1].tokens[asked:])
