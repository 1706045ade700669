"""Tiny models and tasks whose answers are words of one token, so that a run of any algorithm takes a second."""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import save_folder
from posttrain.models.tokenizers import Tokenizer
from posttrain.train.folder import Result
from posttrain.train.run import Run, RunConfig

MARKS = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
WORDS = tuple("abcdefghijklmnop")
QUIET = {"threads": 1, "save_every": 1000}


def tokenizer() -> Tokenizer:
    """A token per mark and per word."""
    vocab = {word: i for i, word in enumerate((*MARKS, "?", *WORDS))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return Tokenizer(backend, {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "unk_token": "?"})


def model(folder: Path, seed: int = 0, context: int = 32) -> str:
    """A random model as a folder."""
    cfg = ModelConfig(
        vocab_size=len(MARKS) + 1 + len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=context,
        initializer_range=0.1,
    )  # fmt: skip
    save_folder(Decoder(cfg).initialise(seed), folder, tokenizer=tokenizer())
    return str(folder)


def rows(path: Path, items: Sequence[dict]) -> str:
    """A data file."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def run(module, cfg, folder: Path) -> tuple[Result, list[dict]]:
    """Train; the result and the lines of metrics.jsonl."""
    with Run.open(folder, cfg) as run:
        result = module.train(cfg, run)
    return result, lines(folder / "metrics.jsonl")


def lines(path: Path) -> list[dict]:
    """A jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def quiet(seed: int = 0, **more) -> RunConfig:
    """One thread, and a checkpoint at the end alone."""
    return RunConfig(seed=seed, **{**QUIET, **more})


def record(**learn: Callable[[int, Path], float]) -> None:
    """Print what thresholds are made of: ten seeds of each quantity, their mean, deviation, and mean - 3 deviations."""
    for name, one in learn.items():
        values = []
        for seed in range(10):
            with tempfile.TemporaryDirectory() as folder:
                values.append(one(seed, Path(folder)))
        mean, std = statistics.mean(values), statistics.stdev(values)
        print(f"{name}: mean {mean:.4f}, std {std:.4f}, mean - 3 std = {mean - 3 * std:.4f}, least {min(values):.4f}")
