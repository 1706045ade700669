"""A byte-level BPE with the special tokens of the built-in templates, trained in a moment on a few sentences."""

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from posttrain.models.tokenizers import Tokenizer

MARKS = [
    "<|endoftext|>",
    "<|pad|>",
    "<s>",
    *(f"<|{name}|>" for name in ("system", "user", "assistant", "tool", "end", "im_start", "im_end")),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
TEXT = ["What is 2 + 2? The answer is 4.\n\nQ: Who are you?\nA: I am the cat that sat on the mat.", "\n\n\n ?\n .\n"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # merges cross words
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    return Tokenizer(backend, {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
