"""The verbs that look at models and data: chat, sample, eval, data show, export, model-card."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from posttrain import chat
from posttrain.cli.main import main
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import save_folder
from posttrain.models.load import load
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler

BASE = Path(__file__).parents[2] / "posttrain/assets/base-1"
pytestmark = pytest.mark.skipif(not (BASE / "config.json").is_file(), reason=f"the embedded model is absent: {BASE}")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def tiny() -> Decoder:
    """A random model with the base's vocabulary, and logits far enough apart that rounding moves no argmax."""
    cfg = ModelConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=96, initializer_range=0.4,
    )  # fmt: skip
    return Decoder(cfg).initialise(3)


@pytest.fixture
def model(tmp_path) -> Path:
    """A chat model's folder."""
    tokenizer = Tokenizer.load(BASE).with_chat(chat.POSTTRAIN.jinja, (6,))
    save_folder(tiny(), tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


@pytest.fixture
def scorer(tmp_path) -> Path:
    """A reward model's folder."""
    model = ScalarModel(tiny())
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_folder(model, tmp_path / "scorer", tokenizer=Tokenizer.load(BASE).with_chat(chat.POSTTRAIN.jinja, (6,)))
    return tmp_path / "scorer"


def call(capsys, *words) -> tuple[int, str, str]:
    try:
        code = main([str(w) for w in words])
    except SystemExit as left:
        code = left.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("verb", ["chat", "sample", "eval", "data", "export", "model-card"])
def test_help_and_unknown_flags(capsys, verb):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0 and out.startswith(f"posttrain {verb}")
    code, _, err = call(capsys, verb, *(["show"] if verb == "data" else []), "x", "--modell", "y")
    assert code == 2 and "--modell: there is no such field" in err


def test_sampling_repeats_and_counts(capsys, model):
    words = ("sample", model, "--prompt", "Hi", "-n", "3", "--max-tokens", "5", "--json")
    found = json.loads(call(capsys, *words)[1])["answers"]
    assert found == json.loads(call(capsys, *words)[1])["answers"] and len(found) == 3
    assert all(1 <= a["tokens"] <= 5 and a["mean_logp"] <= 0 for a in found)
    assert all(a["stop"] == ("length" if a["tokens"] == 5 else "end") for a in found)
    assert found != json.loads(call(capsys, *words, "--seed", "1")[1])["answers"]
    text = call(capsys, *words[:-1])[1]
    assert text.count("mean log-probability") == 3 and "cut at the length limit" in text


@pytest.mark.parametrize("verb", [("chat",), ("sample", "--prompt", "Hi"), ("eval",)])
def test_a_reward_model_writes_nothing(capsys, scorer, verb):
    code, _, err = call(capsys, verb[0], scorer, *verb[1:])
    assert code == 1 and "is a reward model" in err


def talk(capsys, monkeypatch, text, *words) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code, out, err = call(capsys, "chat", *words)
    assert code == 0, err
    return out


def test_chat_remembers_until_reset(capsys, monkeypatch, model):
    greedy = (model, "--temperature", "0", "--max-tokens", "4")
    once = talk(capsys, monkeypatch, "Hi\n", *greedy)
    both = talk(capsys, monkeypatch, "Hi\nHi\n", *greedy)
    reset = talk(capsys, monkeypatch, "Hi\n/reset\n\nHi\n/exit\nHi\n", *greedy)
    assert both.startswith(once) and both != once * 2  # the second answer is given under the first
    assert reset == once + "[forgotten]\n" + once
    assert "[cut at 4 tokens: --max-tokens allows more]" in once


def test_chat_says_when_the_context_is_full(capsys, monkeypatch, model):
    out = talk(capsys, monkeypatch, "Hi\nHi\n", model, "--temperature", "0", "--max-tokens", "500")
    assert "the context is full" in out and "the oldest exchange is forgotten" in out
    assert "Shorten" in talk(capsys, monkeypatch, "many words " * 100 + "\n", model)


def test_pieces_of_an_answer_are_the_answer(model):
    from posttrain.cli.chat import pieces

    loaded = load(model)
    ids = chat.prompt([Message("user", "Hi")], loaded.template, loaded.tokenizer)
    sampler = TorchSampler(loaded.model.double())  # float32 could round differently in another batch shape
    for limit in (3, 8, 21):
        params = SamplingParams(temperature=1.0, max_tokens=limit)
        (whole,) = sampler.generate([ids], params, [11])
        *_, (tokens, stop) = pieces(sampler, ids, params, 11)
        assert tuple(tokens) == whole.tokens and stop is whole.stop


def test_eval_writes_what_it_counts(capsys, model):
    words = (
        "eval",
        model,
        "--tasks",
        "sums,copy",
        "-n",
        "4",
        "-k",
        "2",
        "--max-tokens",
        "4",
        "--out",
        "a.jsonl",
        "--json",
    )
    found = json.loads(call(capsys, *words)[1])["tasks"]
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert list(found) == ["sums", "copy"] and len(lines) == 2 * 4 * (1 + 2)
    sums = [line for line in lines if line["set"] == "sums" and line["way"] == "greedy"]
    assert found["sums"]["greedy"]["value"] == sum(line["score"]["value"] for line in sums) / 4
    assert "pass@2" in call(capsys, *words[:-1])[1]


def test_eval_of_a_file_with_an_own_reward(capsys, model):
    rows = [{"question": "What is 2+3?", "answer": "5"}, {"question": "What is 1+1?", "answer": "2"}]
    Path("q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    Path("own.py").write_text("def half(task, t):\n    return 0.5\n")
    words = ("eval", model, "--data", "q.jsonl", "-k", "2", "--max-tokens", "3", "--json", "--reward")
    found = json.loads(call(capsys, *words, "own.py:half")[1])["tasks"]["q.jsonl"]
    assert found["reward"] == 0.5 and found["pass_k"]["value"] == 0 and found["tasks"] == 2
    Path("own.py").write_text("def half(task, t):\n    return None\n")
    code, _, err = call(capsys, *words, "own.py:half")
    assert code == 2 and "6 answers without a score" in err


def test_eval_refuses_nonsense(capsys, model):
    assert 'Did you mean "sums"?' in call(capsys, "eval", model, "--tasks", "summs")[2]
    assert "one after the other" in call(capsys, "eval", model, "--tasks", "sums", "--data", "x")[2]
    code, _, err = call(capsys, "eval", model, "--k", "0", "--n", "0")
    assert code == 2 and "k = 0" in err and "n = 0" in err
    assert "no folder" in call(capsys, "eval", model, "--out", "no/a.jsonl")[2]


def show(capsys, rows, *words) -> str:
    Path("d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = call(capsys, "data", "show", "d.jsonl", *words)
    assert code == 0, err
    return out


def test_data_show_marks_what_is_learned(capsys):
    chats = [{"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "[b]5[/b] :x:"}]}]
    out = show(capsys, chats, "--template", "plain")
    assert "Q: 2+3?⏎\nA:⟦ [b]5[/b] :x:<|endoftext|>⟧" in out and 'kind "sft"' in out
    out = show(capsys, [*chats, {"messages": []}], "--max-len", "12")
    assert "1 cut to fit" in out and "1 left out: d.jsonl, line 2" in out
    pairs = [{"prompt": "Hi", "chosen": "Good day.", "rejected": "Go away."}]
    out = show(capsys, pairs, "--template", "posttrain")
    lead = chat.POSTTRAIN.lead
    assert f"⟦{lead}Good day.<|end|>⟧" in out and f"⟦{lead}Go away.<|end|>⟧" in out
    out = show(capsys, [{"messages": [{"role": "user", "content": "Hi"}]}], "--template", "posttrain")
    assert 'kind "prompt"' in out and "<|user|>Hi<|end|><|assistant|>" in out and "⟦" not in out


@pytest.mark.parametrize("name", ["demonstrations", "preferences", "corpus", "sums", "facts:test"])
def test_data_show_knows_the_builtin_names(capsys, name):
    code, out, _ = call(capsys, "data", "show", f"builtin:{name}", "-n", "1", "--limit", "5")
    assert code == 0 and " rows of builtin:" in out


def test_data_show_says_what_it_cannot_read(capsys):
    Path("d.jsonl").write_text('{"a": 1}\n')
    code, _, err = call(capsys, "data", "show", "d.jsonl")
    assert code == 2 and "--kind" in err and "Columns found: a" in err
    assert "does not exist" in call(capsys, "data", "show", "nix.jsonl")[2]
    assert 'Did you mean "show"?' in call(capsys, "data", "shwo", "d.jsonl")[2]


def test_export_replaces_only_exports(capsys, model):
    assert call(capsys, "export", model, "out")[0] == 0
    assert load("out").stop_ids == load(model).stop_ids
    code, out, _ = call(capsys, "export", model, "out", "--dtype", "bfloat16")
    assert code == 0 and "will be replaced" in out
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    code, _, err = call(capsys, "export", model, "mine")
    assert code == 2 and "thesis.txt" in err and Path("mine/thesis.txt").exists()
    assert call(capsys, "export", "out", "out")[0] == 2 and Path("out/config.json").exists()


def test_the_card_tells_the_lineage(capsys, model):
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    for name, base in (("one", model), ("two", "one")):
        save_folder(load(model).model, Path(name) / "checkpoints/step-000007", tokenizer=Tokenizer.load(model))
        Path(name, "config.toml").write_text(f'model = "{base}"\n[data]\npath = "{name}.jsonl"\n')
        Path(name, "meta.json").write_text('{"method": "sft"}')
        state = {"record": {"metrics": {"loss": 0.25}}, "state": {}}
        Path(name, "checkpoints/step-000007/state.json").write_text(json.dumps(state))
    assert call(capsys, "export", "two", "out")[0] == 0
    card = Path("out/README.md").read_text()
    assert card.startswith("---\n") and f'base_model: "{model}"' in card and "license: mit" in card
    assert card.index("sft: 7 steps on one.jsonl") < card.index("sft: 7 steps on two.jsonl")
    assert "| loss | 0.25 |" in card and "generated_by: posttrain export" in card


def test_transformers_generates_what_we_generate(capsys, model):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    assert call(capsys, "export", model, "out")[0] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    loaded = load(model)
    for question in ("Hi", "What is 2+3?", "Tell me about Mira."):
        messages = [Message("user", question)]
        ids = chat.prompt(messages, loaded.template, loaded.tokenizer)
        asked = [{"role": "user", "content": question}]
        assert tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False) == ids
        params = SamplingParams(temperature=0.0, max_tokens=20, stop_ids=loaded.stop_ids)
        (ours,) = TorchSampler(loaded.model).generate([ids], params, [0])
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=20
        )
        assert tuple(out[0, len(ids) :].tolist()) == ours.tokens
    assert theirs.generation_config.eos_token_id == list(loaded.stop_ids)


def test_an_exported_reward_model_scores_the_same(capsys, scorer):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from posttrain.algorithms.reward_model import score_segments

    assert call(capsys, "export", scorer, "out")[0] == 0
    assert "pipeline_tag: text-classification" in Path("out/README.md").read_text()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained("out").eval()
    loaded = load(scorer)
    said = [Message("user", "Hi"), Message("assistant", "Good day.")]
    (segment,) = chat.render(said, loaded.template, loaded.tokenizer)
    ours = score_segments(loaded.model, [segment]).item()
    padded = torch.tensor([[*segment.tokens, 1, 1]])  # their score is taken at the last token that is not padding
    with torch.no_grad():
        found = theirs(input_ids=padded, attention_mask=(padded != 1).long()).logits
    assert found.shape == (1, 1) and abs(found.item() - ours) < 1e-4 * max(1.0, abs(ours)) and ours != 0


def test_model_card_prints_both_ways(capsys, model):
    words = ("model-card", model, "-n", "1", "-k", "1")
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["parameters"] == sum(p.numel() for p in tiny().parameters())
    assert found["recall"]["seen people"]["facts"] == 240 and abs(sum(found["corpus"].values()) - 1) < 1e-9
    assert "first line" in call(capsys, *words)[1]
