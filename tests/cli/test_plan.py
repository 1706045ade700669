"""`posttrain plan`: from a config and a config.json alone, in words and as JSON, with what settings would save."""

import json
from pathlib import Path

import pytest

from posttrain.algorithms import preference, sft
from posttrain.cli.main import main
from posttrain.config import to_toml
from posttrain.data.rows import Data
from posttrain.train.learner import Optim
from posttrain.train.run import Run

BASE = Path(__file__).parents[2] / "posttrain/assets/base-1"
SEVEN = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def seven(tmp_path) -> Path:
    """The folder of a model of seven billion weights, which are not there."""
    (tmp_path / "seven").mkdir()
    (tmp_path / "seven/config.json").write_text(json.dumps(SEVEN))
    return tmp_path / "seven"


def call(capsys, *words) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    return code, *capsys.readouterr()


def planned(capsys, *words) -> dict:
    code, out, _ = call(capsys, "plan", *words, "--json")
    assert code == 0
    return json.loads(out)


def test_seven_billion_weights_from_their_config_alone(capsys, seven):
    found = planned(capsys, "sft", "--model", seven, "--longest", 1024, "--memory", 80)
    (policy,) = found["trained"]
    n = 6_738_415_616  # as published for Llama 2
    assert policy["parameters"] == policy["trained"] == n and policy["bytes"] == 4 * n
    assert policy["largest_micro_batch"] == {
        "rows": 16, "longest": 1024, "real": 16384, "tokens": 16384, "cells": 16384, "learned": 16368,
    }  # fmt: skip
    assert policy["rows_per_update"] == 32 and policy["micro_batches_at_most"] == 2
    peak = next(m for m in found["moments"] if m["name"] == found["peak"]["moment"])
    parts = peak["parts"]
    assert parts["weights"] == parts["gradients"] == 4 * n and parts["optimizer"] == 8 * n and parts["reference"] == 0
    assert (
        found["peak"]["bytes"] == sum(parts.values()) + peak["unused"] + peak["process"]
        and found["fits"] is False
        and found["data_read"] is False
    )
    # attention: queries, keys, values and outputs in all 32 layers, and a log-sum for each head
    assert parts["attention"] == 16384 * (32 * (4 * (4 * 4096) + 4 * 32) + 8)


@pytest.mark.parametrize(
    ("longest_answer", "highest", "saving"), [(524, "rollout", "slots"), (200, "training step", "optim.micro_tokens")]
)
def test_each_remedy_saves_what_it_says(capsys, seven, longest_answer, highest, saving):
    words = ["group", "--model", seven, "--longest", 500, "--sampling.max-tokens", longest_answer, "--memory", 200]
    found = planned(capsys, *words)
    assert found["peak"]["moment"].startswith(highest)
    assert {r["setting"].split(" =")[0] for r in found["remedies"]} >= {saving, "lora.rank"}
    for remedy in found["remedies"]:
        key, value = remedy["setting"].split(" = ")
        then = planned(capsys, *words, f"--{key}", value)
        assert then["peak"]["bytes"] == remedy["peak"] == found["peak"]["bytes"] - remedy["less"]


def test_without_a_tokenizer_rows_are_as_long_as_they_may_be(capsys, seven):
    assert planned(capsys, "sft", "--model", seven)["trained"][0]["largest_micro_batch"]["longest"] == 4096
    cut = planned(capsys, "preference", "--model", seven, "--data.max-len", 600)
    assert cut["trained"][0]["largest_micro_batch"]["longest"] == 600
    answers = planned(capsys, "group", "--model", seven, "--sampling.max-tokens", 96)
    assert answers["trained"][0]["largest_micro_batch"]["longest"] == 4096


@pytest.mark.skipif(not BASE.is_dir(), reason=f"the embedded model is absent: {BASE}")
@pytest.mark.parametrize("method", ["sft", "reward-model", "preference", "group", "reinforce", "ppo", "vapo"])
def test_in_words(capsys, method):
    code, out, _ = call(capsys, "plan", method)
    text = " ".join(out.split())
    assert code == 0 and text.startswith(f"{method.replace('-', '_')}, base: ") and "It fits: " in text
    assert "weights" in text and "together" in text and "(--longest N)" not in text
    assert ("rollout" in text) == (method in ("group", "reinforce", "ppo", "vapo"))
    code, out, _ = call(capsys, "plan", method, "--memory", "0.01")
    assert code == 0 and "It does not fit: 10.2 MiB of 10.2 MiB memory are free." in out
    assert "optim.micro_tokens = " in out and "optim.recompute = true: " in out


@pytest.mark.skipif(not BASE.is_dir(), reason=f"the embedded model is absent: {BASE}")
def test_a_file_or_a_run_tells_its_method(capsys, tmp_path):
    data = Data(path="builtin:preferences", limit=40)
    cfg = preference.Config(data=data, batch_size=4, optim=Optim(micro_tokens=300))
    (tmp_path / "mine.toml").write_text(to_toml(cfg))
    found = planned(capsys, "mine.toml")
    assert found["method"] == "preference" and found["rows"] == "4 pairs" and found["steps"] == 10
    again = planned(capsys, "preference", "--config", "mine.toml")
    assert {**again, "machine": None} == {**found, "machine": None}
    assert planned(capsys, "mine.toml", "--batch-size", "8")["rows"] == "8 pairs"
    with Run.open(tmp_path / "run", sft.Config()):
        pass
    assert planned(capsys, "run", "--longest", "64")["method"] == "sft"


def test_what_makes_no_sense_is_said(capsys, tmp_path, seven):
    (tmp_path / "bare.toml").write_text("batch_size = 4\n")
    (tmp_path / "odd.toml").write_text("bach_size = 4\nepochs = 2\n")
    for words, said in {
        ("bare.toml",): "bare.toml fits several methods (sft, reward_model, preference, unpaired, rrhf, best_of_n). "
        "Write: posttrain plan METHOD",
        ("odd.toml",): "odd.toml fits no method. sft is nearest: bach_size (in odd.toml): there is no such field.",
        ("absent.toml",): "absent.toml is no config file, and its folder no run.",
        ("stf",): 'there is no method "stf". Did you mean "sft"?',
        ("--json", "--model", "x"): '"--model" comes before the method.',
        ("sft", "--longest", "much"): '--longest needs a number, not "much"',
        ("sft", "--longest"): '--longest needs a number, not ""',
        ("sft", "--model", "seven", "--longest", "5000"): "--longest 5000: a row of this model has between 1 and 4096",
        ("sft", "--model", "seven", "--lorra.rank", "4"): "--lorra.rank: there is no such field.",
    }.items():
        code, _, err = call(capsys, "plan", *words)
        assert code == 2 and said in " ".join(err.split()), words


@pytest.mark.skipif(not BASE.is_dir(), reason=f"the embedded model is absent: {BASE}")
def test_data_that_cannot_be_read_need_not_be(capsys):
    code, _, err = call(capsys, "plan", "sft", "--data.path", "absent.jsonl")
    assert code == 2 and "absent.jsonl" in err and "give --longest N" in err
    found = planned(capsys, "sft", "--data.path", "absent.jsonl", "--longest", "100")
    assert found["steps"] is None and found["data_read"] is False


def test_help(capsys):
    code, out, _ = call(capsys, "plan")
    assert code == 0 and out.startswith("posttrain plan METHOD") and "preference" in out
    code, out, _ = call(capsys, "plan", "group", "--help")
    assert code == 0 and "--longest N" in out and "--group-size" in out
