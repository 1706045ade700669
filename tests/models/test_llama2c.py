"""The llama2.c reader: its tokenizer against a plain loop of llama2.c's encoder, its weights against their file."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from posttrain.errors import ModelError
from posttrain.models.llama2c import half_split, read_llama2c, tokenizer_from_llama2c
from posttrain.models.tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "tiny-lm"
needs_files = pytest.mark.skipif(not FOLDER.exists(), reason=f"no {FOLDER}: the stories260K files are absent")


@pytest.fixture(scope="module")
def stories():
    backend = tokenizer_from_llama2c(FOLDER / "tok512.bin")
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def greedy_encode(text, scores):
    """llama2.c's encoder as a loop: a leading space, characters or bytes, then the best-scoring join, from the left."""
    pieces = []
    for char in " " + text:
        pieces += [char.encode()] if char.encode() in scores else [bytes([b]) for b in char.encode()]

    def known(piece):
        return scores.get(piece, -np.inf)

    while True:
        best, at = -1e10, None
        for i in range(len(pieces) - 1):
            if known(pieces[i] + pieces[i + 1]) > best:
                best, at = known(pieces[i] + pieces[i + 1]), i
        if at is None:
            return pieces
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def scores_of(path):
    data, at, index, scores = path.read_bytes(), 4, 0, {}
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        if index >= 259:
            scores[data[at + 8 : at + 8 + size]] = score
        index, at = index + 1, at + 8 + size
    return scores


@needs_files
def test_published_sample_survives_a_round_trip(stories):
    sample = json.loads((FOLDER / "reference_greedy.json").read_text())
    assert stories.encode(sample["text"]) == sample["tokens"]
    assert stories.decode(sample["tokens"]) == sample["text"]


@needs_files
def test_encodes_as_the_plain_loop_does(stories):
    """Random words and letters, some outside the vocabulary."""
    scores = scores_of(FOLDER / "tok512.bin")
    words = json.loads((FOLDER / "reference_greedy.json").read_text())["text"].split() + [
        "zebra",
        "naïve",
        "東京",
        "x9!",
    ]
    draw = random.Random(3)
    for _ in range(60):
        text = " ".join(draw.choices(words, k=8)) + "".join(draw.choices("aehlnost '.,", k=12)) + "."
        spelled = [stories.token(i) for i in stories.encode(text)]
        got = [bytes([int(s[3:5], 16)]) if s.startswith("<0x") else s.replace("▁", " ").encode() for s in spelled]
        assert got == greedy_encode(text, scores)


@needs_files
def test_special_ids(stories):
    assert (stories.bos_id, stories.eos_id, stories.vocab_size, stories.adds_bos) == (1, 2, 512, True)
    assert stories.encode("</s>", special=True) == [2]
    assert 2 not in stories.encode("</s>")


@needs_files
def test_weights_have_llama_names_and_the_published_count():
    config, weights = read_llama2c(FOLDER / "stories260K.bin")
    assert sum(w.size for w in weights.values()) == 260_032
    assert config["num_key_value_heads"] == 4 and config["tie_word_embeddings"] is True
    assert weights["model.layers.4.self_attn.k_proj.weight"].shape == (32, 64)
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (64, 172)
    assert "lm_head.weight" not in weights
    assert all(np.isfinite(w).all() and w.dtype == np.float32 for w in weights.values())


def test_half_split_keeps_rotated_dot_products():
    """Rotating neighbours before the reordering equals rotating halves after it: query-key scores agree."""
    heads, d, width = 3, 8, 5
    draw = np.random.default_rng(0)
    q, k, x, y = (
        draw.normal(size=(heads * d, width)),
        draw.normal(size=(heads * d, width)),
        *draw.normal(size=(2, width)),
    )

    def angle(place):
        return place * 10000.0 ** (-np.arange(d // 2) * 2 / d)

    def neighbours(v, place):
        z = (v[:, 0::2] + 1j * v[:, 1::2]) * np.exp(1j * angle(place))
        return np.stack([z.real, z.imag], -1).reshape(v.shape)

    def halves(v, place):
        z = (v[:, : d // 2] + 1j * v[:, d // 2 :]) * np.exp(1j * angle(place))
        return np.concatenate([z.real, z.imag], -1)

    first = neighbours((q @ x).reshape(heads, d), 7) * neighbours((k @ y).reshape(heads, d), 3)
    q2, k2 = half_split(q, d), half_split(k, d)
    second = halves((q2 @ x).reshape(heads, d), 7) * halves((k2 @ y).reshape(heads, d), 3)
    np.testing.assert_allclose(first.sum(1), second.sum(1), rtol=1e-12)


@pytest.mark.parametrize("content", [b"short", struct.pack("<7i", 64, 172, 5, 7, 4, 512, 512), bytes(40)])
def test_a_foreign_file_is_named(tmp_path, content):
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(ModelError, match="m.bin"):
        read_llama2c(tmp_path / "m.bin")


@needs_files
def test_a_cut_file_is_named(tmp_path):
    for name, read in (("stories260K.bin", read_llama2c), ("tok512.bin", tokenizer_from_llama2c)):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes()[:-3])
        with pytest.raises(ModelError, match=name):
            read(tmp_path / name)
