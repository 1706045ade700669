"""Trains the byte-level BPE tokenizer of the embedded base and writes it as a Hugging Face folder.

Every digit is a piece of its own, so that arithmetic has one token per digit; special tokens come first, so that their
ids do not depend on the corpus. `transformers.AutoTokenizer` and `tokenizers.Tokenizer` read the result alike.
"""

import json
from collections.abc import Iterable
from pathlib import Path

SPECIAL = (
    "<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>",
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<step>",
)  # fmt: skip
"""Reserved tokens in the order of their ids, from 0."""


def train_tokenizer(out: Path, documents: Iterable[str], vocab: int = 1024) -> None:
    """Learn the merges from `documents` and write tokenizer.json and tokenizer_config.json into the folder `out`.

    vocab: size including the special tokens and the 256 bytes. A corpus with fewer merges to offer gives a smaller one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": [t for t in SPECIAL if t not in ("<|endoftext|>", "<|pad|>")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
