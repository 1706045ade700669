"""Model folders: ours open elsewhere with the same logits, those of others open here, and damage is named."""

import json
import shutil

import pytest
import torch

from posttrain.errors import ModelError
from posttrain.models.attention import Cache, decode_attention, pack_lengths, prefill_attention
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import (
    config_json,
    copy_tensors,
    hf_name,
    load_folder,
    parse_config,
    read_config,
    read_weights,
    save_folder,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS = {
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "output_bias": True, "mlp_bias": True},
    "llama-many-heads": {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 4, "rms_norm_eps": 1e-5},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-llama3": {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 500.0},
    "llama-yarn-gain": {"model_type": "llama", "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}},
    "qwen2": {"model_type": "qwen2", "attention_bias": True, "head_dim": 6, "rope_theta": 1e6},
    "qwen2-tied-yarn": {
        "model_type": "qwen2",
        "attention_bias": True,
        "head_dim": 6,
        "rope_scaling": YARN,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3"},
    "qwen3-tied-biases": {
        "model_type": "qwen3",
        "attention_bias": True,
        "output_bias": True,
        "tie_word_embeddings": True,
    },
    "qwen3-yarn-untruncated": {"model_type": "qwen3", "rope_scaling": YARN | {"truncate": False}, "head_dim": 16},
}


def random_model(seed: int = 0, **changes) -> Decoder:
    shape = {
        "vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    model = Decoder(ModelConfig(**shape | changes))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (p.dim() == 1))
    return model


def batch(side: str):
    """Three rows of 40, 23 and 9 real tokens: longer than the 16 of the original context of the rope scalings."""
    g = torch.Generator().manual_seed(1)
    tokens, attend = torch.randint(37, (3, 40), generator=g), torch.zeros(3, 40, dtype=torch.bool)
    for row, n in zip(attend, (40, 23, 9), strict=True):
        row[40 - n :] = True if side == "left" else row[40 - n :]
        row[:n] = True if side == "right" else row[:n]
    return tokens, attend


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare folders with")


@pytest.mark.parametrize("name", VARIANTS)
def test_our_folder_opens_in_transformers_with_the_same_logits(name, tmp_path, transformers):
    model = random_model(**VARIANTS[name])
    save_folder(model, tmp_path / "m")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert theirs.config.tie_word_embeddings == model.cfg.tie_word_embeddings
    with torch.no_grad():
        for side in ("left", "right"):
            tokens, attend = batch(side)
            positions = (attend.long().cumsum(1) - 1).clamp(min=0)
            want = theirs(tokens, attention_mask=attend.long(), position_ids=positions).logits[attend]
            torch.testing.assert_close(model.logits(model(tokens, attend))[attend], want, atol=1e-5, rtol=1e-5)
        assert_decodes_like(model, tokens, attend, want)


def assert_decodes_like(model, tokens, attend, want):
    """The last four tokens of right-padded rows, one at a time against the cache, give the logits of the full pass."""
    lengths = attend.sum(1) - 4
    packing = pack_lengths(lengths)
    cache = Cache(model, slots=3, length=40)
    first = torch.cat([row[:n] for row, n in zip(tokens, lengths, strict=True)])
    model.flat(first, packing.positions, prefill_attention(cache, torch.arange(3), packing))
    ends = attend.sum(1).cumsum(0) - 1
    for step in range(4):
        here = lengths + step
        hidden = model.flat(tokens[torch.arange(3), here], here, decode_attention(cache, here))
        torch.testing.assert_close(model.logits(hidden), want[ends - 3 + step], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_their_folder_opens_here_and_goes_round(name, tmp_path, transformers):
    ours = random_model(**VARIANTS[name])
    config = transformers.AutoConfig.for_model(**config_json(ours.cfg))
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (p.dim() == 1))
        theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
        model = load_folder(tmp_path / "theirs")
        assert model.cfg.rope_scaling is None or model.cfg.rope_scaling["rope_type"] != "default"
        tokens, attend = batch("right")
        want = theirs(tokens, attention_mask=attend.long()).logits[attend]
        torch.testing.assert_close(model.logits(model(tokens, attend))[attend], want, atol=1e-5, rtol=1e-5)
        save_folder(model, tmp_path / "again", shard_bytes=20_000)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", attn_implementation="eager")
        assert torch.equal(again(tokens, attention_mask=attend.long()).logits[attend], want)


@pytest.mark.parametrize("shard_bytes", [2**30, 5_000])
def test_a_folder_goes_round_bit_for_bit(tmp_path, shard_bytes):
    model = random_model(**VARIANTS["qwen3-tied-biases"])
    save_folder(model, tmp_path / "m", shard_bytes=shard_bytes)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes == 5_000)
    again = load_folder(tmp_path / "m")
    assert config_json(again.cfg) == config_json(model.cfg)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_stored_precision_is_told_in_the_config(tmp_path):
    save_folder(random_model(), tmp_path / "m", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {x.dtype for x in read_weights(tmp_path / "m").values()} == {torch.bfloat16}
    assert load_folder(tmp_path / "m").embed_tokens.weight.dtype == torch.float32


def test_keys_of_the_config_that_we_do_not_use_are_kept(tmp_path):
    folder = saved(tmp_path)
    edit(folder, eos_token_id=7, max_window_layers=28)
    save_folder(load_folder(folder), tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["eos_token_id"], again["max_window_layers"]) == (7, 28)


def test_saving_again_replaces_the_folder_as_a_whole(tmp_path):
    folder = saved(tmp_path)
    (folder / "stale.txt").write_text("from before")
    save_folder(random_model(1), folder, card="# a model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(load_folder(folder).norm.weight, random_model(1).norm.weight)


# --- damage ------------------------------------------------------------------------------------------------------


def saved(tmp_path, **kwargs):
    save_folder(random_model(), tmp_path / "m", **kwargs)
    return tmp_path / "m"


def edit(folder, drop=(), **changes):
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in drop}))


def test_a_folder_without_a_config_is_no_model_folder(tmp_path):
    with pytest.raises(ModelError, match="holds no config.json: it is not a model folder"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, 'model_type "gpt2" is not one of llama, qwen2, qwen3'),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, 'hidden_act "gelu" is not supported'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "longrope"}}, '"longrope" is not supported'),
        ({"drop": ["hidden_size"]}, "lacks the key 'hidden_size'"),
        ({"hidden_size": 48}, r"has shape \[37, 24\], the config wants \[37, 48\]"),
        ({"num_hidden_layers": 3}, r"11 missing \(model.layers.2"),
        ({"num_hidden_layers": 1}, r"11 unknown \(model.layers.1"),
    ],
)
def test_a_config_that_does_not_fit_is_told(tmp_path, changes, message):
    folder = saved(tmp_path)
    edit(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_folder(folder)


def test_a_config_that_is_no_json_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ModelError, match="not valid JSON"):
        read_config(tmp_path)


def test_an_untied_head_must_be_stored(tmp_path):
    folder = tmp_path / "m"
    save_folder(random_model(tie_word_embeddings=True), folder)
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match="lm_head.weight is missing"):
        load_folder(folder)


def test_missing_weights_are_named(tmp_path):
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks the weights model.safetensors"):
        load_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="can run code when opened"):
        load_folder(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = saved(tmp_path, shard_bytes=5_000)
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"lacks the weights {shards[1].name}"):
        load_folder(folder)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_file_is_named(tmp_path, damage):
    folder = saved(tmp_path)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"\xff" * 100}[damage])
    with pytest.raises(ModelError, match="model.safetensors cannot be read .*: it is damaged or cut off"):
        load_folder(folder)


def test_an_interrupted_save_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    before = (folder / "model.safetensors").read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("posttrain.models.hf_format.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_folder(random_model(1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    shutil.rmtree(folder)


def test_weights_without_a_folder():
    """A config.json's contents and tensors under Hugging Face's names make a model, with no file in between."""
    raw = {"model_type": "qwen2", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
           "num_attention_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    cfg = parse_config(raw)
    assert cfg.attention_bias and not cfg.output_bias and cfg.head_dim == 4 and cfg.num_key_value_heads == 2
    source = Decoder(cfg).initialise(seed=1)
    tensors = {hf_name(name): p.detach().clone() for name, p in source.named_parameters()}
    model = Decoder(cfg).initialise(seed=2)
    copy_tensors(model, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), source.parameters(), strict=True))
    tensors.pop("model.norm.weight")
    with pytest.raises(ModelError, match=r"weights: weights do not fit .* 1 missing \(model.norm.weight\)"):
        copy_tensors(model, tensors)
    with pytest.raises(ModelError, match="config lacks the key 'vocab_size'"):
        parse_config({"model_type": "llama"})
