"""Tokenizer folders: what is read, what is written back, and that text cannot spell a special token."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from posttrain.errors import ModelError
from posttrain.models.tokenizers import Tokenizer

MARKS = ["<|endoftext|>", "<|end|>", "<|pad|>"]


@pytest.fixture(scope="module")
def backend():
    """A byte-level BPE trained on a sentence, with three special tokens and one added token that is not special."""
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(["the cat sat on the mat and the hat"] * 4, trainer)
    tok.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tok


def write(folder, backend, **files):
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_reads_names_ids_and_stops(tmp_path, backend):
    write(
        tmp_path,
        backend,
        tokenizer_config={"eos_token": {"content": "<|endoftext|>"}, "pad_token": "<|pad|>", "bos_token": None},
        config={"eos_token_id": 0, "bos_token_id": 0},
        generation_config={"eos_token_id": [1, 0]},
    )
    tok = Tokenizer.load(tmp_path)
    assert (tok.eos_id, tok.pad_id, tok.bos_id, tok.adds_bos) == (0, 2, None, False)
    assert tok.stop_ids == (1, 0)
    assert tok.marks == {"<|endoftext|>": 0, "<|end|>": 1, "<|pad|>": 2}
    assert tok.vocab_size == 1 + tok.token_id("<think>")


def test_ids_of_config_fill_in_for_missing_names(tmp_path, backend):
    tok = Tokenizer.load(write(tmp_path, backend, config={"eos_token_id": 1}))
    assert (tok.eos_id, tok.pad_id, tok.stop_ids) == (1, 1, (1,))


def test_text_cannot_spell_a_special_token(backend):
    tok = Tokenizer(backend)
    text = "the <|end|> cat"
    assert tok.token_id("<|end|>") not in tok.encode(text)
    assert tok.decode(tok.encode(text)) == text
    assert tok.encode(text, special=True).count(tok.token_id("<|end|>")) == 1
    assert tok.encode("<think>") == tok.encode("<think>", special=True) == [tok.token_id("<think>")]


def test_decode_can_leave_specials_out(backend):
    tok = Tokenizer(backend)
    ids = tok.encode("cat<|end|>", special=True)
    assert (tok.decode(ids), tok.decode(ids, skip_special=True)) == ("cat<|end|>", "cat")


def test_adds_bos_follows_the_post_processor(backend):
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 1)])
    tok = Tokenizer(copy, {"bos_token": "<|end|>"})
    assert tok.adds_bos
    assert tok.encode("cat")[0] != 1, "encode itself never adds it"


def test_save_and_load_agree(tmp_path, backend):
    tok = Tokenizer(backend, {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}, "{{ messages }}", config={"x": 1})
    tok.save(tmp_path / "m")
    again = Tokenizer.load(tmp_path / "m")
    assert again.encode("the hat <think>") == tok.encode("the hat <think>")
    assert (again.chat_template, again.pad_id, again.config["x"]) == ("{{ messages }}", 2, 1)


def test_transformers_reads_what_is_saved(tmp_path, backend):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    Tokenizer(backend, {"eos_token": "<|endoftext|>"}, "{{ messages[0]['content'] }}").save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the cat", add_special_tokens=False)["input_ids"] == Tokenizer(backend).encode("the cat")
    assert theirs.eos_token_id == 0
    assert theirs.apply_chat_template([{"role": "user", "content": "hat"}], tokenize=False) == "hat"


def test_template_sources(tmp_path, backend):
    folder = write(tmp_path, backend, tokenizer_config={"chat_template": [{"name": "default", "template": "A"}]})
    assert Tokenizer.load(folder).chat_template == "A"
    (folder / "chat_template.jinja").write_text("B")
    assert Tokenizer.load(folder).chat_template == "B"


def test_with_chat_keeps_the_rest(backend):
    tok = Tokenizer(backend, {"eos_token": "<|endoftext|>"}).with_chat("C", stop_ids=(1,))
    assert (tok.chat_template, tok.stop_ids) == ("C", (1, 0))


def test_errors_say_what_to_do(tmp_path, backend):
    with pytest.raises(ModelError, match="not a folder"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(ModelError, match="has no tokenizer.json. Copy"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="(?s)tokenizer.model but no.*save_pretrained"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        Tokenizer.load(tmp_path)
    write(tmp_path, backend, tokenizer_config={"eos_token": "</s>"})
    with pytest.raises(ModelError, match="'</s>', which is not in its vocabulary"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="list where a JSON object belongs"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_text_that_goes_on_gets_no_space_before_it(scheme):
    """SentencePiece's dummy prefix, as newer tokenizer.json files spell it: a Metaspace pre-tokeniser."""
    vocab = {piece: i for i, piece in enumerate(("▁", "a", "b", "▁a", "?"))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("▁", "a")], unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tok = Tokenizer(backend)
    assert tok.encode("a b", goes_on=True) == [1, 0, 2]
    assert tok.encode("a b") == ([1, 0, 2] if scheme == "never" else [3, 0, 2])
