"""Adapter folders: PEFT opens ours with the same logits and gradients, its own open here, and damage is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import MARKS, awake, decoder, newborn, tokens

from posttrain.errors import ModelError
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import copy_weights, hf_name, load_folder, read_weights, save_folder
from posttrain.models.load import load_model, resolve, stored_weights
from posttrain.models.lora import Lora, adapted, add_adapters, trained_rows
from posttrain.models.peft_format import CONFIG, WEIGHTS, copy_adapter, read_adapter, write_adapter

FAMILIES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "attention_bias": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False},
}
LORAS = {
    "llama": Lora(rank=4),
    "qwen2": Lora(rank=3, alpha=5, rslora=True),
    "qwen3": Lora(rank=2, targets=("q_proj", "layers.1.mlp.down_proj")),
}


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    return pytest.importorskip("peft", reason="peft is not installed: nothing to compare adapters with")


def saved(tmp_path, family: str = "llama", lora: Lora | None = None, make=decoder, marks=()):
    """A base folder, an adapted model on it, and its adapter folder."""
    save_folder(make(**FAMILIES[family]), tmp_path / "base")
    model = load_folder(tmp_path / "base")
    model = awake(add_adapters(model, lora or LORAS[family], base=str(tmp_path / "base"), seed=0, marks=marks))
    write_adapter(model, tmp_path / "adapter")
    return tmp_path / "base", model, tmp_path / "adapter"


def logits(model):
    return model.logits(model(tokens()))


def close(a, b, **limits):
    torch.testing.assert_close(a, b, **{"atol": 1e-5, "rtol": 1e-5} | limits)


def from_transformers(folder, kind="AutoModelForCausalLM", **more):
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager", **more)


# --- with PEFT -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [False, True], ids=["", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_ours_with_the_same_logits_and_gradients(family, rows, tmp_path, peft):
    base, model, folder = saved(tmp_path, family, **{"make": newborn, "marks": MARKS} if rows else {})
    theirs = peft.PeftModel.from_pretrained(from_transformers(base), folder, is_trainable=True)
    with torch.no_grad():
        close(theirs(tokens()).logits, logits(model))
        close(theirs.merge_and_unload()(tokens()).logits, logits(load_model(folder)))
    theirs = peft.PeftModel.from_pretrained(from_transformers(base), folder, is_trainable=True).double()
    model.double().round_as_transformers()
    slope = torch.randn(3, 20, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (logits(model) * slope).sum().backward()
    (theirs(tokens()).logits * slope).sum().backward()
    want = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    have = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    tables = len(list(trained_rows(model)))
    assert len(want) == len(have) == 2 * len(list(adapted(model))) + tables
    assert tables == rows * (1 if model.lm_head is None else 2)
    for name, grad in have.items():
        theirs_name = f"base_model.model.{hf_name(name)}.default.weight"
        theirs_name = theirs_name.replace("tokens.default.weight", "token_adapter.trainable_tokens_delta.default")
        assert (grad - want[theirs_name]).norm() < 1e-6 * grad.norm(), name  # norms pass through float32 in both


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}),
        ("qwen2", {"target_modules": ["q_proj", "up_proj"], "r": 3, "use_rslora": True}),
        ("qwen3", {"target_modules": r".*\.self_attn\.(k|v)_proj", "r": 2, "init_lora_weights": "gaussian"}),
        ("qwen3", {"target_modules": ["v_proj"], "r": 2, "layers_to_transform": [1]}),
        ("qwen2", {"target_modules": ["v_proj"], "trainable_token_indices": [7, 2]}),
        ("llama", {"target_modules": ["v_proj"], "trainable_token_indices": {"lm_head": [4], "embed_tokens": [1, 0]}}),
    ],
)
def test_theirs_opens_here_merged(family, settings, tmp_path, peft):
    save_folder(decoder(**FAMILIES[family]), tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(from_transformers(tmp_path / "base"), config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                p.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        assert not torch.allclose(logits(load_folder(tmp_path / "base")), theirs(tokens()).logits)
        close(logits(load_model(tmp_path / "theirs")), theirs(tokens()).logits)
    assert resolve(tmp_path / "theirs") == tmp_path / "theirs"


def test_what_theirs_stores_of_the_base_itself_is_refused(tmp_path, peft):
    """An adapted head takes its own base weight along: it need not be the one that lies in the base's folder."""
    save_folder(decoder(**FAMILIES["llama"]), tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj", "lm_head"])
    peft.get_peft_model(from_transformers(tmp_path / "base"), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelError, match="no update of a linear layer .base_model.model.lm_head.base_layer.weight"):
        load_model(tmp_path / "theirs")


def test_a_run_goes_on_with_adapters_that_peft_saved_again(tmp_path, peft):
    base, model, folder = saved(tmp_path)
    peft.PeftModel.from_pretrained(from_transformers(base), folder).save_pretrained(tmp_path / "again")
    other = add_adapters(load_folder(base), LORAS["llama"], base="", seed=9)
    copy_adapter(other, tmp_path / "again")
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_reward_models_go_both_ways(tmp_path, peft):
    """Their head is no part of the base, so it lies beside the adapters."""
    save_folder(decoder(**FAMILIES["qwen2"]), tmp_path / "base")
    model = ScalarModel(load_folder(tmp_path / "base"))
    model = awake(add_adapters(model, Lora(rank=2), base=str(tmp_path / "base"), seed=0))
    torch.nn.init.normal_(model.score.weight)
    write_adapter(model, tmp_path / "ours")
    rows, lengths = tokens().flatten(), torch.full((3,), 20)
    body = from_transformers(tmp_path / "base", "AutoModelForSequenceClassification", num_labels=1)
    body.config.pad_token_id = 36
    theirs = peft.PeftModel.from_pretrained(body, tmp_path / "ours").eval()
    with torch.no_grad():
        want = theirs(tokens(), attention_mask=torch.ones(3, 20)).logits[:, 0]
        theirs.save_pretrained(tmp_path / "theirs")
        for folder in ("ours", "theirs"):
            again = load_model(tmp_path / folder)
            assert isinstance(again, ScalarModel)
            close(again.values(again.decoder.rows(rows, lengths)).view(3, 20)[:, -1], want)
        close(model.values(model.decoder.rows(rows, lengths)).view(3, 20)[:, -1], want)


# --- alone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [False, True], ids=["", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_as_side_by_side(family, rows, tmp_path):
    _, model, folder = saved(tmp_path, family, **{"make": newborn, "marks": MARKS} if rows else {})
    close(logits(load_model(folder)), logits(model))
    exact = load_model(folder, dtype=torch.float64)
    torch.testing.assert_close(logits(exact), logits(model.double()), atol=1e-12, rtol=1e-12)


def test_stored_adapters_come_back_bit_for_bit_and_nothing_else_is_stored(tmp_path):
    base, model, folder = saved(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    stored = load_file(folder / WEIGHTS)
    assert len(stored) == 28 and sum(x.numel() for x in stored.values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    other = add_adapters(load_folder(base), LORAS["llama"], base="", seed=9)
    copy_adapter(other, folder)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_rows_of_tokens_come_back_bit_for_bit(tmp_path):
    base, model, folder = saved(tmp_path, make=newborn, marks=MARKS)
    other = add_adapters(load_folder(base), LORAS["llama"], base="", seed=9, marks=MARKS)
    copy_adapter(other, folder)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ModelError, match="trains rows of other tokens than this run"):
        copy_adapter(add_adapters(load_folder(base), LORAS["llama"], base="", seed=9), folder)


def test_a_whole_folder_refuses_to_leave_adapters_out(tmp_path):
    base, model, _ = saved(tmp_path)
    with pytest.raises(ModelError, match="the model has adapters"):
        save_folder(model, tmp_path / "whole")
    with pytest.raises(ModelError, match="28 missing"):
        copy_weights(model, base)


def test_adapters_on_an_adapter_folder(tmp_path):
    """A second run on the result of a first: the chain is merged from the bottom."""
    _, first, folder = saved(tmp_path)
    body = load_model(folder, dtype=torch.float64)
    second = awake(add_adapters(body, Lora(rank=2), base=str(folder), seed=3), seed=4)
    write_adapter(second, tmp_path / "second")
    close(logits(load_model(tmp_path / "second", dtype=torch.float64)), logits(second), atol=1e-12, rtol=1e-12)
    assert not torch.allclose(logits(first.double()), logits(second))
    weights = stored_weights(tmp_path / "second")
    assert weights.keys() == read_weights(tmp_path / "base").keys()


def test_targets_are_short_where_all_of_a_name_are_adapted(tmp_path):
    _, _, folder = saved(tmp_path, "qwen3")
    assert json.loads((folder / CONFIG).read_text())["target_modules"] == ["model.layers.1.mlp.down_proj", "q_proj"]
    _, _, folder = saved(tmp_path, "llama")
    assert "down_proj" in json.loads((folder / CONFIG).read_text())["target_modules"]


# --- damage, and what is not supported -----------------------------------------------------------------------------


def edit(folder, **changes):
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


def change(folder, drop: str = "", **more):
    tensors = {k: x for k, x in load_file(folder / WEIGHTS).items() if k != drop}
    save_file(tensors | more, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora = true is not supported"),
        ({"bias": "lora_only"}, 'bias = "lora_only" is not supported'),
        ({"lora_bias": True, "fan_in_fan_out": True}, "lora_bias = true.* is not supported"),
        ({"modules_to_save": ["embed_tokens"]}, r'modules_to_save = \["embed_tokens"\] is not supported'),
        ({"modules_to_save": ["score"]}, "modules_to_save"),
        ({"task_type": "SEQ_CLS", "modules_to_save": ["lm_head", "score"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"some_new_feature": 1}, "some_new_feature = 1 is not supported.*merge_and_unload"),
        ({"peft_type": "LOHA"}, 'peft_type "LOHA" is not supported'),
        ({"base_model_name_or_path": None}, "does not say base_model_name_or_path"),
        ({"r": 5}, r"says rank 5, but model.layers.0.mlp.down_proj has matrices of \[4, 32\] and \[24, 4\]"),
        ({"task_type": "SEQ_CLS"}, "task_type SEQ_CLS needs score.weight"),
        (
            {"base_model_name_or_path": "./gone"},
            r'adapters of "./gone", which cannot be found: there is no model.*moved',
        ),
    ],
)
def test_a_config_that_cannot_be_followed(tmp_path, changes, said):
    _, _, folder = saved(tmp_path)
    edit(folder, **changes)
    with pytest.raises(ModelError, match=said):
        load_model(folder)


A, B = (f"base_model.model.model.layers.1.mlp.up_proj.lora_{half}.weight" for half in "AB")


ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop": A}, "lacks model.layers.1.mlp.up_proj.lora_A.weight"),
        ({"base_model.model.model.embed_tokens.weight": torch.ones(2)}, "1 tensors that are no update of a linear"),
        ({A.replace("lora_A", "lora_magnitude_vector"): torch.ones(2)}, "lora_magnitude_vector"),
        ({A: torch.ones(4, 25)}, r"has an update of \[32, 25\] for model.layers.1.mlp.up_proj, which is \[32, 24\]"),
        ({A.replace("1", "7"): torch.ones(4, 24), B.replace("1", "7"): torch.ones(32, 4)}, "not linear.*layers.7.mlp"),
        ({"base_model.model.score.weight": torch.ones(1, 24)}, "task_type CAUSAL_LM has no score.weight"),
        ({ROWS: torch.ones(2, 24)}, "has 2 rows of model.embed_tokens, adapter_config.json names 0 tokens"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, changes, said):
    _, _, folder = saved(tmp_path)
    change(folder, **changes)
    with pytest.raises(ModelError, match=said):
        load_model(folder)


def test_a_targeted_layer_without_its_update(tmp_path):
    base, _, folder = saved(tmp_path)
    change(folder, drop=A)
    change(folder, drop=B)
    for use in (
        load_model,
        lambda f: copy_adapter(add_adapters(load_folder(base), LORAS["llama"], base="", seed=0), f),
    ):
        with pytest.raises(ModelError, match="1 layers that it targets have no update .model.layers.1.mlp.up_proj"):
            use(folder)
    edit(folder, target_modules=["q_proj"])
    with pytest.raises(ModelError, match="lacks the adapters of model.layers.1.mlp.up_proj, which this run trains"):
        copy_adapter(add_adapters(load_folder(base), LORAS["llama"], base="", seed=0), folder)


def test_rows_that_do_not_fit(tmp_path):
    _, _, folder = saved(tmp_path)
    edit(folder, trainable_token_indices=[3, 99])
    with pytest.raises(ModelError, match="lacks the rows of embed_tokens that adapter_config.json names"):
        load_model(folder)
    change(folder, **{ROWS: torch.ones(2, 24)})
    with pytest.raises(ModelError, match=r"replaces rows of \[2, 24\], up to token 99, and it has one of \[37, 24\]"):
        load_model(folder)
    edit(folder, trainable_token_indices={"wte": [3, 9]})
    change(folder, drop=ROWS, **{ROWS.replace("embed_tokens", "wte"): torch.ones(2, 24)})
    with pytest.raises(ModelError, match="of model.wte it replaces rows .* and it has none"):
        load_model(folder)


def test_another_base(tmp_path):
    _, _, folder = saved(tmp_path)
    save_folder(decoder(hidden_size=32), tmp_path / "wider")
    edit(folder, base_model_name_or_path=str(tmp_path / "wider"))
    said = r"belongs to .*wider, whose weights it does not fit.*\[24, 32\] for .*down_proj, which is \[32, 32\]"
    with pytest.raises(ModelError, match=said):
        load_model(folder)
    save_folder(decoder(num_hidden_layers=1), tmp_path / "shallow")
    edit(folder, base_model_name_or_path=str(tmp_path / "shallow"))
    with pytest.raises(ModelError, match=r"7 layers are not linear layers of it \(model.layers.1"):
        load_model(folder)


def test_a_head_that_is_the_embedding_cannot_be_adapted(tmp_path):
    save_folder(decoder(), tmp_path / "base")
    _, _, folder = saved(tmp_path / "other")
    edit(folder, base_model_name_or_path=str(tmp_path / "base"))
    change(folder, **{A.replace("model.layers.1.mlp.up_proj", "lm_head"): torch.ones(4, 24),
                      B.replace("model.layers.1.mlp.up_proj", "lm_head"): torch.ones(37, 4)})  # fmt: skip
    with pytest.raises(ModelError, match=r"1 layers are not linear layers of it \(lm_head\)"):
        load_model(folder)


def test_folders_that_are_neither_one_nor_the_other(tmp_path):
    base, _, folder = saved(tmp_path)
    (base / CONFIG).write_text((folder / CONFIG).read_text())
    with pytest.raises(ModelError, match="holds adapters .* and a whole model .model.safetensors.: it is not clear"):
        load_model(base)
    edit(folder, base_model_name_or_path=str(folder))
    with pytest.raises(ModelError, match="names its own folder as base"):
        load_model(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(
        ModelError, match="lacks adapter_model.safetensors. It has adapter_model.bin, which can run code"
    ):
        read_adapter(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        load_model(folder)
