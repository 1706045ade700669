"""Reads the two files of llama2.c: a checkpoint (`stories260K.bin`) and its vocabulary (`tok512.bin`).

They hold the smallest public language models that speak English, a few hundred thousand weights trained on
TinyStories, and so make a real base model for tests and lessons. The readers give NumPy arrays under Hugging Face's
Llama names and a `tokenizers` object; `load_llama2c` makes our model and tokenizer of them, and `posttrain export
stories260K.bin OUT --tokenizer tok512.bin` a Hugging Face folder. Format: github.com/karpathy/llama2.c, `export.py`
version 0 and `tokenizer.py`, little-endian throughout.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, processors

from posttrain.errors import ModelError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import hf_name
from posttrain.models.tokenizers import Tokenizer

SPACE = "▁"
"""How sentencepiece spells a space inside a piece; llama2.c's file has the space itself."""


def load_llama2c(checkpoint: str | Path, vocabulary: str | Path) -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer of a pair of files, as `load_folder` and `Tokenizer.load` give them for a folder.

    The family stops at <s> (id 1) as well as at </s>: stories followed each other with <s> between them in training.
    Raises ModelError where a file is missing or not of its format, or the two have vocabularies of different sizes.
    """
    for path in (checkpoint, vocabulary):
        if not Path(path).is_file():
            raise ModelError(f"there is no file {path}. A llama2.c model is two files: model.bin and its tokenizer.bin")
    config, weights = read_llama2c(checkpoint)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(tokenizer_from_llama2c(vocabulary), roles, stop_ids=(1, 2))
    if tokenizer.vocab_size != config["vocab_size"]:
        raise ModelError(
            f"{vocabulary} has {tokenizer.vocab_size} pieces, but the embedding of {checkpoint} has "
            f"{config['vocab_size']} rows: they belong to different models (stories260K.bin goes with tok512.bin)"
        )
    known = ModelConfig.__dataclass_fields__
    extra = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    model = Decoder(ModelConfig(**{k: v for k, v in config.items() if k in known}, extra=extra))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[hf_name(name)]))
    return model, tokenizer


def read_llama2c(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config (keys of a Llama config.json) and float32 weights (names of LlamaForCausalLM) of a checkpoint.

    Raises ModelError where the file is not of this format or has another size than its header says.
    """
    data = Path(path).read_bytes()
    if len(data) < 28:
        raise ModelError(f"{path} has {len(data)} bytes, less than the header of a llama2.c checkpoint")
    dim, hidden, layers, heads, kv_heads, vocab, max_len = struct.unpack("<7i", data[:28])
    if min(dim, hidden, layers, heads, kv_heads, abs(vocab), max_len) < 1 or dim % heads or heads % kv_heads:
        raise ModelError(
            f"{path} begins with {struct.unpack('<7i', data[:28])}, which is no llama2.c header (dim, hidden_dim, "
            "n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len). Only export version 0 in float32 is read"
        )
    tied, vocab = vocab > 0, abs(vocab)  # llama2.c marks a separate output head by a negative vocabulary size
    head_dim = dim // heads
    blocks = _blocks(dim, hidden, layers, kv_heads * head_dim, vocab, max_len * (head_dim // 2), tied)
    expected = 28 + 4 * sum(int(np.prod(shape)) for _, shape in blocks)
    if len(data) != expected:
        raise ModelError(
            f"{path} has {len(data)} bytes, but its header describes {expected}: the file is cut or not v0"
        )
    flat, at, raw = np.frombuffer(data, dtype="<f4", offset=28), 0, {}
    for name, shape in blocks:
        size = int(np.prod(shape))
        raw[name] = flat[at : at + size].reshape(shape).astype(np.float32)
        at += size
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": vocab,
        "max_position_embeddings": max_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config, _llama_names(raw, layers, head_dim, tied)


def half_split(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder a projection [heads * head_dim, in] from RoPE on neighbours (2i, 2i+1) to RoPE on halves (i, i + d/2).

    llama2.c rotates neighbouring channels, Hugging Face's Llama the two halves of a head. Moving row 2i to i and row
    2i+1 to i + d/2 in query and key alike leaves every dot product, hence the model, unchanged.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def _blocks(dim, hidden, layers, kv, vocab, rope, tied) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the file's blocks, in order. All layers of one kind lie together."""
    blocks = [
        ("embed", (vocab, dim)),
        ("attention_norm", (layers, dim)),
        ("q", (layers, dim, dim)),
        ("k", (layers, kv, dim)),
        ("v", (layers, kv, dim)),
        ("o", (layers, dim, dim)),
        ("ff_norm", (layers, dim)),
        ("gate", (layers, hidden, dim)),
        ("down", (layers, dim, hidden)),
        ("up", (layers, hidden, dim)),
        ("norm", (dim,)),
        ("rope_tables", (2, rope)),  # cos and sin, recomputed by every reader
    ]
    return blocks if tied else [*blocks, ("head", (vocab, dim))]


def _llama_names(raw: dict[str, np.ndarray], layers: int, head_dim: int, tied: bool) -> dict[str, np.ndarray]:
    """The blocks under the names of LlamaForCausalLM, one entry per layer."""
    weights = {"model.embed_tokens.weight": raw["embed"], "model.norm.weight": raw["norm"]}
    for i in range(layers):
        at = f"model.layers.{i}"
        weights[f"{at}.input_layernorm.weight"] = raw["attention_norm"][i]
        weights[f"{at}.post_attention_layernorm.weight"] = raw["ff_norm"][i]
        weights[f"{at}.self_attn.q_proj.weight"] = half_split(raw["q"][i], head_dim)
        weights[f"{at}.self_attn.k_proj.weight"] = half_split(raw["k"][i], head_dim)
        weights[f"{at}.self_attn.v_proj.weight"] = raw["v"][i]
        weights[f"{at}.self_attn.o_proj.weight"] = raw["o"][i]
        for name in ("gate", "up", "down"):
            weights[f"{at}.mlp.{name}_proj.weight"] = raw[name][i]
    return weights if tied else {**weights, "lm_head.weight": raw["head"]}


def tokenizer_from_llama2c(path: str | Path) -> tokenizers.Tokenizer:
    """A `tokenizers` BPE with byte fallback that encodes as llama2.c does from this vocabulary file.

    llama2.c repeatedly joins the adjacent pair whose union scores best. A BPE merge list says the same when every way
    to split a piece into two known pieces is listed, ordered by the score of the whole. Raises ModelError where the
    file is cut.
    """
    pieces = _pieces(path)
    vocab = {text: index for index, (text, _) in enumerate(pieces)}
    merges = []
    for index, (text, score) in enumerate(pieces[259:], start=259):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, index, left, right))
    merges.sort()
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, [(left, right) for *_, left, right in merges], unk_token="<unk>", byte_fallback=True)
    )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def _pieces(path: str | Path) -> list[tuple[str, float]]:
    """Text and score of each id. Ids 0 to 258 are <unk>, <s>, </s> and the 256 bytes, whatever the file calls them."""
    data, at, pieces = Path(path).read_bytes(), 4, []
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    while at < len(data):
        if at + 8 > len(data):
            raise ModelError(f"{path} ends inside the header of piece {len(pieces)}: the file is cut")
        score, size = struct.unpack_from("<fi", data, at)
        at += 8
        if size < 0 or at + size > len(data):
            raise ModelError(
                f"{path}: piece {len(pieces)} has {size} bytes, more than are left: no llama2.c vocabulary"
            )
        text = data[at : at + size].decode("utf-8").replace(" ", SPACE) if len(pieces) >= 259 else fixed[len(pieces)]
        pieces.append((text, score))
        at += size
    if len(pieces) < 259:
        raise ModelError(f"{path} holds {len(pieces)} pieces; a llama2.c vocabulary has at least 259 (specials, bytes)")
    return pieces
