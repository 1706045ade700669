"""Training from the command line on the files and models that people have: layouts, formats, families, real data."""

import gzip
import hashlib
import json
import math
from pathlib import Path

import pytest

from posttrain import chat
from posttrain.cli.main import main
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import save_folder
from posttrain.models.load import load
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message
from posttrain.train.schedule import Schedule, lr

ROOT = Path(__file__).parents[2]
BASE = ROOT / "posttrain/assets/base-1"
DATA = ROOT.parent / "shared/data"
pytestmark = pytest.mark.skipif(not (BASE / "config.json").is_file(), reason=f"the embedded model is absent: {BASE}")
QUIET = ("--run.threads=1", "--steps=3", "--optim.lr=1e-2")
STORED = ("--batch-size=4", "--eval-every=2", "--data.eval-rows=2")
DRAWN = ("--prompts=2", "--group-size=4", "--sampling.max-tokens=6", "--eval-every=0", "--data.eval-rows=0")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A small random model of each family, as folders with the base's tokenizer and its chat template."""
    found, tokenizer = {}, Tokenizer.load(BASE)
    for family in ("qwen3", "llama"):
        cfg = ModelConfig(
            model_type=family, vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=256, tie_word_embeddings=family == "qwen3",
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("models") / family
        save_folder(Decoder(cfg).initialise(1), folder, tokenizer=tokenizer.with_chat(chat.POSTTRAIN.jinja, (6,)))
        found[family] = str(folder)
    return found


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> str:
    """stories260K, a real pre-trained Llama without a chat template, as a folder."""
    needs("tiny-lm/stories260K.bin")
    out = tmp_path_factory.mktemp("stories") / "stories260K"
    files = DATA / "tiny-lm/stories260K.bin", out, "--tokenizer", DATA / "tiny-lm/tok512.bin"
    assert main(["export", *map(str, files)]) == 0
    return str(out)


def needs(name: str) -> str:
    """The path of a shared file; skips where it is absent."""
    if not (DATA / name).exists():
        pytest.skip(f"no {DATA / name}")
    return str(DATA / name)


def train(capsys, method: str, *words) -> tuple[str, list[dict]]:
    """Train into ./run-METHOD; what was printed, and metrics.jsonl."""
    out = Path(f"run-{method}-{len(list(Path().glob('run-*')))}")
    code = main(["train", method, *QUIET, "--out", str(out), *map(str, words)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return (out / "log.txt").read_text() + printed.out, lines(out / "metrics.jsonl")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(name: str, rows: list[dict]) -> str:
    """Rows in the format that the suffix says."""
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), name)
        return name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return name


def said(user: str, assistant: str) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


ASKED = [(f"What is {i} plus {i + 1}?", f"It is {2 * i + 1}.") for i in range(8)]
LAYOUTS = {
    "messages": [{"messages": said(q, a)} for q, a in ASKED],
    "sharegpt": [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in ASKED],
    "prompt": [{"prompt": q, "completion": a} for q, a in ASKED],
    "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in ASKED],
}


# --- demonstrations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_sft_gives_the_same_numbers_for_one_content_in_every_layout_and_format(capsys, models, family):
    found = []
    for (layout, rows), suffix in zip(LAYOUTS.items(), (".jsonl", ".jsonl.gz", ".parquet", ".json"), strict=True):
        path = write(layout + suffix, rows)
        found.append(train(capsys, "sft", "--model", models[family], "--data.path", path, *STORED)[1])
    assert all(metrics == found[0] for metrics in found)
    assert len(found[0]) == 3 and found[0][-1]["nll"] < found[0][0]["nll"] and "eval_nll" in found[0][1]


def test_sft_on_plain_text(capsys, models):
    path = write("text.jsonl", [{"text": f"{q} {a}"} for q, a in ASKED])
    _, metrics = train(capsys, "sft", "--model", models["llama"], "--data.path", path, *STORED)
    assert metrics[-1]["nll"] < metrics[0]["nll"] < 1.1 * math.log(1024)


def test_a_model_without_a_chat_template_trains_on_text_and_under_plain(capsys, stories):
    c4, asked = needs("pretrain-text/c4_demo.jsonl.gz"), needs("sft-demo/tinker_conversations.jsonl")
    shown, metrics = train(capsys, "sft", "--model", stories, "--data.path", c4, "--data.limit=6", *STORED)
    assert "cut to fit" in shown and metrics[0]["nll"] < 4.5, "a pre-trained model: far below log 512 = 6.2"
    words = ("--model", stories, "--template=plain", "--data.path", asked, "--data.limit=6", *STORED, "--batch-size=6")
    _, metrics = train(capsys, "sft", *words, "--optim.lr=1e-3")
    assert metrics[-1]["nll"] < metrics[0]["nll"]
    trained = load("run-sft-1")
    assert trained.template.name == "plain" and trained.stop_ids == (2,), "</s> ends an answer, as it is the EOS"
    (segment,) = chat.render([Message("user", "Hi"), Message("assistant", "Yo")], trained.template, trained.tokenizer)
    assert segment.tokens[0] == 1 and segment.tokens[-1] == 2 and segment.mask[-1]


@pytest.mark.parametrize("name", ["sft-demo/fastchat_dummy_conversation.json", "sft-demo/alpaca_tiny.json"])
def test_sft_on_real_files(capsys, models, name):
    words = ("--model", models["qwen3"], "--data.path", needs(name), "--data.limit=12", *STORED)
    shown, metrics = train(capsys, "sft", *words)
    assert "12 rows of" in shown and "2 held out" in shown and metrics[-1]["nll"] < metrics[0]["nll"]


def test_what_was_cut_is_counted_and_shown(capsys, models):
    path = write("a.jsonl", LAYOUTS["prompt"][:-1] + [{"prompt": "Count.", "completion": "one two three four " * 9}])
    words = ("--model", models["qwen3"], "--data.path", path, "--data.max-len=40", "--batch-size=4")
    assert (
        "8 rows of a.jsonl, the longest of 40 tokens; 1 cut to fit"
        in train(capsys, "sft", *words, "--data.eval-rows=0")[0]
    )


# --- preferences ------------------------------------------------------------------------------------------------------


def pairs() -> dict[str, list[dict]]:
    """The same comparisons as text, as messages, with the prompt implicit, and as one dialogue per side."""
    sides = [(q, a, "No idea.") for q, a in ASKED]
    one = [{"role": "assistant", "content": ""}]
    return {
        "text": [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in sides],
        "messages": [
            {"prompt": said(q, "")[:1], "chosen": [one[0] | {"content": a}], "rejected": [one[0] | {"content": b}]}
            for q, a, b in sides
        ],
        "implicit": [{"chosen": said(q, a), "rejected": said(q, b)} for q, a, b in sides],
        "dialogue": [
            {"chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {q}\n\nAssistant: {b}"}
            for q, a, b in sides
        ],
    }


@pytest.mark.parametrize("method", ["preference", "reward-model"])
def test_pairs_give_the_same_numbers_in_every_form(capsys, models, method):
    found = [
        train(capsys, method, "--model", models["llama"], "--data.path", write(f"{form}.jsonl", rows), *STORED)[1]
        for form, rows in pairs().items()
    ]
    assert all(metrics == found[0] for metrics in found)
    assert abs(found[0][0]["loss"] - math.log(2)) < 0.05, (
        "at the reference DPO's loss is log 2; a new head scores near 0"
    )
    assert found[0][-1]["loss"] < found[0][0]["loss"] and "eval_accuracy" in found[0][1]


@pytest.mark.parametrize("method", ["preference", "reward_model"])
@pytest.mark.parametrize("name", ["hh-rlhf/harmless-base-test.jsonl.gz", "preferences-demo/dpo_en_demo.json.gz"])
def test_real_preferences(capsys, models, method, name):
    words = ("--data.path", needs(name), "--data.limit=16", "--data.on-bad-row=skip", *STORED)
    shown, metrics = train(capsys, method, "--model", models["qwen3"], *words)
    assert "left out: " in shown and "tokens are context" in shown
    assert len(metrics) == 3 and all(math.isfinite(m["loss"]) for m in metrics)


def test_unusual_columns_are_named_by_options(capsys, models):
    path = needs("preferences-demo/stack_exchange_paired_tiny.json")
    words = ("--data.columns.chosen=response_j", "--data.columns.rejected=response_k", "--data.on-bad-row=skip")
    shown, _ = train(capsys, "preference", "--model", models["qwen3"], "--data.path", path, *words, *STORED)
    assert "rows of " in shown


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_grpo_on_gsm8k_grades_by_the_exact_number(capsys, stories):
    path = needs("gsm8k/train.jsonl.gz")
    words = ("--template=plain", "--data.path", path, "--data.limit=12", "--reward=exact_number", *DRAWN)
    _, metrics = train(capsys, "group", "--model", stories, *words)
    assert len(metrics) == 3 and all("reward_mean" in m for m in metrics)
    samples = lines(Path("run-group-0/samples.jsonl"))
    assert samples and all(s["score"]["value"] in (0.0, 1.0) and s["score"]["why"] for s in samples)


def test_a_reward_of_the_user_is_used_and_kept_with_the_run(capsys, models):
    path = needs("gsm8k/train.jsonl.gz")
    source = "def few_tokens(task, trajectory):\n    return 1.0 if trajectory.completion.count('e') else 0.0\n"
    Path("mine.py").write_text(source)
    words = ("--data.path", path, "--data.limit=12", "--data.on-bad-row=skip", "--reward=mine.py:few_tokens", *DRAWN)
    _, metrics = train(capsys, "group", "--model", models["qwen3"], *words)
    assert 0 < sum(m["reward_mean"] for m in metrics) < 3
    (copy,) = Path("run-group-0/code").iterdir()
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert copy.read_text() == source and copy.name == f"{digest[:8]}-mine.py"
    assert json.loads(Path("run-group-0/meta.json").read_text())["code"] == {"mine.py": digest}


# --- what every run can do --------------------------------------------------------------------------------------------


def test_the_best_and_the_last_checkpoints_stay(capsys, models):
    """Held out is the opposite of what is learned, so its loss rises sooner or later."""
    learned = write("a.jsonl", LAYOUTS["prompt"])
    held = write("b.jsonl", [{"prompt": q, "completion": "zzz"} for q, _ in ASKED])
    words = ("--model", models["llama"], "--data.path", learned, "--data.eval-path", held, "--batch-size=4")
    keep = ("--steps=24", "--eval-every=4", "--run.save-every=4", "--run.keep=2", "--run.best=eval_nll")
    _, metrics = train(capsys, "sft", *words, "--data.eval-rows=0", *keep)
    measured = {m["step"] + 1: m["eval_nll"] for m in metrics if "eval_nll" in m}
    assert list(measured) == [4, 8, 12, 16, 20, 24]
    best = min(measured, key=measured.get)
    kept = {int(p.name.removeprefix("step-")) for p in Path("run-sft-0/checkpoints").iterdir()}
    assert best not in (20, 24), "else the test would not see a best one outside of the last"
    assert kept == {best, 20, 24} and load("run-sft-0").folder.name == f"step-{best:06d}"


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_schedules_by_their_usual_names(capsys, models, kind):
    path = write("a.jsonl", LAYOUTS["prompt"])
    words = ("--model", models["qwen3"], "--data.path", path, "--data.eval-rows=0", "--batch-size=2", "--steps=6")
    _, metrics = train(capsys, "sft", *words, f"--optim.schedule.kind={kind}", "--optim.schedule.warmup=2")
    wanted = [lr(i, Schedule(kind=kind, warmup=2), peak=1e-2, steps=6) for i in range(6)]
    assert [m["lr"] for m in metrics] == wanted and wanted[0] == 5e-3 and (wanted[-1] < 1e-2) == (kind != "constant")


def test_dry_run_says_the_arithmetic(capsys, models):
    path = write("a.jsonl", LAYOUTS["prompt"])
    words = ["train", "sft", "--model", models["qwen3"], "--data.path", path, "--data.eval-rows=2", "--batch-size=4"]
    assert main([*words, "--epochs=3", "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("2 held out: 5 steps of 4 rows, 3.33 epochs.") and first.startswith("6 rows of a.jsonl")
    path = write("q.jsonl", [{"question": q, "answer": a} for q, a in ASKED])
    words = ["train", "group", "--model", models["qwen3"], "--data.path", path, *DRAWN, "--steps=8", "--dry-run"]
    assert main(words) == 0
    assert "8 steps of 2 prompts x 4 samples = 8 answers of at most 6 tokens" in capsys.readouterr().out
    assert not list(Path().glob("run*")), "nothing was written"


def test_a_run_exports_as_a_folder_that_transformers_serves_alike(capsys, models):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = write("a.jsonl", LAYOUTS["messages"])
    train(capsys, "sft", "--model", models["llama"], "--data.path", path, *STORED)
    assert main(["export", "run-sft-0", "out"]) == 0
    loaded, card = load("out"), Path("out/README.md").read_text()
    assert "sft: 3 steps on a.jsonl" in card and "| nll |" in card
    assert json.loads(Path("out/generation_config.json").read_text())["eos_token_id"] == list(loaded.stop_ids)
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    asked = [{"role": "user", "content": "What is 1 plus 2?"}]
    ids = chat.prompt([Message("user", "What is 1 plus 2?")], loaded.template, loaded.tokenizer)
    assert tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False) == ids
