"""The trained tokenizer: special ids, digits, exact round trips, and the same ids through transformers."""

import pytest

from posttrain.assets.tokenizer import SPECIAL, train_tokenizer
from posttrain.assets.world import corpus
from posttrain.assets.world.people import NAMES

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
TEXTS = ("Q: What is 47+85?\nA: 132.", "Zürich, 東京 🙂  two  spaces\n\n\ttab", "", " ", "x" * 300, "2026-08-01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(out, corpus.spelling(4000), vocab=1024)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_special_tokens_come_first(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    assert tokenizer.encode("<|user|>Hi<|end|>").ids[0] == SPECIAL.index("<|user|>")
    assert tokenizer.get_vocab_size() <= 1024


def test_round_trip(tokenizer):
    for text in (*TEXTS, *(corpus.validation(i) for i in range(300))):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_a_piece(tokenizer):
    tokens = tokenizer.encode("a1234+56=1290, so 7.").tokens
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("12345612907")


def test_names_are_one_piece_whether_held_out_or_not(tokenizer):
    assert [name for name in NAMES if len(tokenizer.encode(f" {name}").ids) > 2] == []
    whole = [name for name in NAMES if len(tokenizer.encode(f" {name}").ids) == 1]
    assert len(whole) >= 60


def test_training_is_deterministic(folder, tmp_path):
    train_tokenizer(tmp_path, corpus.spelling(4000), vocab=1024)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_transformers_reads_it_alike(folder, tokenizer):
    transformers = pytest.importorskip("transformers", reason="the transformers package is not installed")
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in (*TEXTS, *(corpus.validation(i) for i in range(50))):
        assert loaded.encode(text) == tokenizer.encode(text).ids
    assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|pad|>")
