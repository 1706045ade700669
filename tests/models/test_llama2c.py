"""The llama2.c reader: its tokenizer against a plain loop of llama2.c's encoder, its weights against their file, and
the folder that export makes of them against a NumPy forward pass, the published sample and transformers."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain import chat
from posttrain.cli.main import main
from posttrain.errors import ModelError
from posttrain.models.hf_format import load_folder
from posttrain.models.llama2c import half_split, load_llama2c, read_llama2c, tokenizer_from_llama2c
from posttrain.models.load import load
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.tokens import token_logprobs
from posttrain.records import Message
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler

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


# --- the whole way: two files, a Hugging Face folder, the published story --------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """stories260K as a folder, made by the command line."""
    out = tmp_path_factory.mktemp("stories") / "stories260K"
    words = ["export", FOLDER / "stories260K.bin", out, "--tokenizer", FOLDER / "tok512.bin"]
    assert main([str(w) for w in words]) == 0
    return out


@pytest.fixture(scope="module")
def published():
    return json.loads((FOLDER / "reference_greedy.json").read_text())


def plain_forward(tokens):
    """Logits [T, V] of stories260K in float64, straight from the file as its description lays it out.

    RoPE turns neighbouring channels, so nothing of the reader's reordering is shared.
    """
    path = FOLDER / "stories260K.bin"
    dim, hidden, layers, heads, kv_heads, vocab, _ = np.fromfile(path, "<i4", count=7).tolist()
    flat, at = np.fromfile(path, "<f4", offset=28).astype(np.float64), 0

    def take(*shape):
        nonlocal at
        at += (size := int(np.prod(shape)))
        return flat[at - size : at].reshape(shape)

    d, kv = dim // heads, dim // heads * kv_heads
    embed, norm_1 = take(vocab, dim), take(layers, dim)
    q_, k_, v_, o_ = take(layers, dim, dim), take(layers, kv, dim), take(layers, kv, dim), take(layers, dim, dim)
    norm_2, gate_ = take(layers, dim), take(layers, hidden, dim)
    down_, up_, norm_3 = take(layers, dim, hidden), take(layers, hidden, dim), take(dim)

    def normed(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    place = np.arange(len(tokens))[:, None, None]
    turn = np.exp(1j * place * 10000.0 ** (-np.arange(0, d, 2) / d))

    def rotated(x):
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x, n = embed[list(tokens)], len(tokens)
    future = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(layers):
        h = normed(x, norm_1[i])
        q = rotated((h @ q_[i].T).reshape(n, heads, d))
        k = rotated((h @ k_[i].T).reshape(n, kv_heads, d)).repeat(heads // kv_heads, 1)
        v = (h @ v_[i].T).reshape(n, kv_heads, d).repeat(heads // kv_heads, 1)
        scores = np.exp(np.einsum("thd,shd->hts", q, k) / np.sqrt(d) + future)
        x = x + np.einsum("hts,shd->thd", scores / scores.sum(-1, keepdims=True), v).reshape(n, dim) @ o_[i].T
        h = normed(x, norm_2[i])
        g = h @ gate_[i].T
        x = x + (g / (1 + np.exp(-g)) * (h @ up_[i].T)) @ down_[i].T
    return normed(x, norm_3) @ embed.T


@needs_files
def test_log_probabilities_are_those_of_a_plain_forward_pass(folder, published):
    tokens = [published["start_token"], *published["tokens"]]
    logits = plain_forward(tokens)
    assert (logits[:-1].argmax(-1) == published["tokens"]).all(), "the oracle itself gives the published story"
    peak = logits.max(-1, keepdims=True)
    expected = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    expected = expected[np.arange(len(tokens) - 1), tokens[1:]]
    ids = torch.tensor([tokens])
    with torch.no_grad():
        model = load_folder(folder)
        found = token_logprobs(model.logits(model(ids)), ids)[0]
    assert found[0] == 0
    np.testing.assert_allclose(found[1:].numpy(), expected, atol=1e-5)  # float32 logits of size 20: 2e-6 each


@needs_files
def test_the_folder_tells_the_published_story(folder, published, capsys):
    loaded = load(folder)
    assert (loaded.chosen, loaded.stop_ids, loaded.context) == (None, (1, 2), 512)
    params = SamplingParams(temperature=0.0, max_tokens=200, stop_ids=loaded.stop_ids)
    (told,) = TorchSampler(loaded.model).generate([[published["start_token"]]], params, [0])
    assert list(told.tokens) == published["tokens"]
    asked = ["--prompt", "Once upon a time, there was", "--raw", "--temperature=0", "-n=1", "--max-tokens=30", "--json"]
    assert main(["sample", str(folder), *asked]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert published["text"].startswith("Once upon a time, there was " + answer["text"].strip())


@needs_files
def test_transformers_agrees(folder, published):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokens = [published["start_token"], *published["tokens"]]
    with torch.no_grad():
        ours = load_folder(folder, dtype=torch.float64)
        hidden = ours(torch.tensor([tokens]))
        gap = (ours.logits(hidden) - theirs(torch.tensor([tokens])).logits).abs().max()
    assert gap < 1e-5, "they take norms and rotations in float32"
    start = torch.tensor([tokens[:1]])
    out = theirs.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=200)
    assert out[0].tolist() == tokens
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(published["text"])["input_ids"] == tokens
    assert tokenizer.decode(tokens, skip_special_tokens=True) == published["text"]


@needs_files
def test_files_of_different_models_do_not_mix(tmp_path):
    longer = (FOLDER / "tok512.bin").read_bytes() + struct.pack("<fi", -1.0, 2) + b"zq"
    (tmp_path / "tok513.bin").write_bytes(longer)
    with pytest.raises(ModelError, match="tok513.bin has 513 pieces.*512 rows.*different models"):
        load_llama2c(FOLDER / "stories260K.bin", tmp_path / "tok513.bin")


@pytest.mark.parametrize(
    "words, message",
    [
        (["model.bin"], "Add --tokenizer FILE, such as tok512.bin"),
        (["model.bin", "--tokenizer=tok.bin"], "there is no file model.bin"),
        (["folder", "--tokenizer=tok.bin"], "is for llama2.c files"),
    ],
    ids=["no tokenizer", "no file", "no llama2.c"],
)
def test_what_export_needs(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", words[0], "out", *words[1:]]) in (1, 2)
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@needs_files
def test_a_conversation_reads_as_one_text(folder):
    """llama2.c's encoder, like SentencePiece, puts a space before a text. Inside of one it must not: the ids of a
    conversation are then those that transformers finds for the stored template's text, in training and in sampling."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    loaded = load(folder, template="plain")
    messages = [Message("system", "Be kind."), Message("user", "Where is  Lily?"), Message("assistant", "In the park.")]
    messages += [Message("user", "With whom?"), Message("assistant", "With her mom.")]
    (segment,) = chat.render(messages, loaded.template, loaded.tokenizer)
    loaded.chat_tokenizer.save(folder.with_name("plain"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder.with_name("plain"))
    plain = [{"role": m.role, "content": m.content} for m in messages]
    assert theirs.apply_chat_template(plain, return_dict=False) == list(segment.tokens)
    for k in (2, 4):
        asked = theirs.apply_chat_template(plain[:k], add_generation_prompt=True, return_dict=False)
        assert (
            asked == chat.prompt(messages[:k], loaded.template, loaded.tokenizer) == list(segment.tokens[: len(asked)])
        )
    said = segment.tokens[len(asked) :]
    assert chat.answer_text(said, loaded.template, loaded.tokenizer) == "With her mom."
    more = chat.follow_up(messages[:3], messages[3:4], loaded.template, loaded.tokenizer)
    assert list(segment.tokens[len(asked) - len(more) : len(asked)]) == more
