"""What training says to wrong requests, files and models, and at the wrong moment: the place, the remedy, the code.

Messages about verbs are in test_errors.py; what loops say from Python in tests/algorithms.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from posttrain import chat
from posttrain.cli.main import main
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import save_folder
from posttrain.models.load import load
from posttrain.models.tokenizers import Tokenizer

BASE = Path(__file__).parents[2] / "posttrain/assets/base-1"
pytestmark = pytest.mark.skipif(not (BASE / "config.json").is_file(), reason=f"the embedded model is absent: {BASE}")
NAMES = ("DataError: ", "ConfigError: ", "ModelError: ", "UsageError: ", "RunError: ")
ROWS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(6)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small chat model's folder, to be copied."""
    tokenizer = Tokenizer.load(BASE)
    cfg = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("made") / "model"
    save_folder(Decoder(cfg).initialise(1), folder, tokenizer=tokenizer.with_chat(chat.POSTTRAIN.jinja, (6,)))
    return folder


@pytest.fixture(autouse=True)
def place(made, tmp_path, monkeypatch) -> Path:
    """A working directory with the model in `model` and good rows in good.jsonl."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "model")
    write("good.jsonl", ROWS)
    return tmp_path


def write(name: str, rows: list) -> None:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def train(capsys, *words, method: str = "sft") -> tuple[int, str, str]:
    """Call `posttrain train` with the model, the good rows and few steps; later words win."""
    usual = ["--model=model", "--data.path=good.jsonl", "--data.eval-rows=0", "--run.threads=1", "--steps=2"]
    usual += ["--batch-size=2"] if method != "group" else ["--prompts=2", "--group-size=2", "--sampling.max-tokens=4"]
    code = main(["train", method, "--out=run", *usual, *map(str, words)])
    return code, *capsys.readouterr()


def refused(capsys, *words, method: str = "sft", code: int = 2) -> str:
    """The message of a refusal: short, without a traceback, and with nothing trained."""
    found, _, err = train(capsys, *words, method=method)
    message = err[err.rindex(next(name for name in NAMES if name in err)) :]
    assert found == code, err
    assert "Traceback" not in err and message.count("\n") <= 9 and not Path("run/checkpoints").exists()
    return message


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, word, near",
    [
        ("sft", "--optim.lrr=1", "optim.lr"),
        ("sft", "--data.pth=x", "data.path"),
        ("sft", "--learning-rate=1", None),
        ("preference", "--loss.bta=1", "loss.beta"),
        ("reward_model", "--centring=1", "centering"),
        ("group", "--objective.clip.hihg=1", "objective.clip.high"),
        ("group", "--groupsize=4", "group_size"),
        ("ppo", "--lambda=1", "lam"),
    ],
)
def test_a_misspelled_option_shows_the_nearest(capsys, method, word, near):
    assert main(["train", method, word]) == 2
    err = capsys.readouterr().err
    assert "there is no such field" in err and (near is None or f'Did you mean "{near}"?' in err)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--template=chatlm"], 'there is no chat template "chatlm". Did you mean "chatml"?'),
        (
            ["--template=chatml"],
            'needs the token <|im_start|>, which is not in the vocabulary of 1024 tokens. Use "auto"',
        ),
        (["--data.on-bad-row=ignore"], 'data.on_bad_row = "ignore" is not one of "stop", "skip"'),
        (
            ["--optim.schedule.kind=cosin"],
            'is not one of "constant", "linear", "cosine", "wsd". Did you mean "cosine"?',
        ),
        (["--data.max-len=100"], "data.max_len = 100 exceeds the model's context of 64 tokens"),
        (["--run.best=evil_nll"], 'run.best: "evil_nll" is not in the glossary of metrics'),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_a_value_without_a_meaning(capsys, words, message):
    code, _, err = train(capsys, *words)
    assert code in (1, 2) and message in err and "Traceback" not in err


def test_a_best_metric_that_is_never_measured_is_told(capsys):
    assert train(capsys, "--run.best=eval_nil", "--data.eval-rows=2")[0] == 0
    log = Path("run/log.txt").read_text()
    assert "no checkpoint was written at a step that measured it" in log and "Measured last: eval_nll." in log


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_file_shows_what_is_there(capsys):
    message = refused(capsys, "--data.path=godd.jsonl")
    assert "godd.jsonl does not exist" in message and "good.jsonl" in message


@pytest.mark.parametrize("method", ["sft", "preference", "group"])
def test_an_empty_file(capsys, method):
    write("a.jsonl", [])
    assert "a.jsonl has no rows" in refused(capsys, "--data.path=a.jsonl", method=method)


def test_a_wrong_column_shows_those_found(capsys):
    message = refused(capsys, "--data.columns.completion=reply")
    assert 'there is no column "reply" (columns.completion). Columns found: prompt, completion' in message
    message = refused(capsys, method="preference")
    assert (
        "needs chosen and rejected. Columns found: prompt, completion" in message and "columns.chosen = NAME" in message
    )


def test_bad_rows_have_a_place_and_a_reason_and_may_be_skipped_into_the_same_folder(capsys):
    write("a.jsonl", [*ROWS, {"prompt": "Why?", "completion": ""}, '{"prompt": "cut o', {"prompt": "x"}, [1]])
    message = refused(capsys, "--data.path=a.jsonl")
    assert '4 of 10 rows are not of kind "sft"' in message and 'on_bad_row = "skip"' in message
    for line, reason in ((7, "an assistant message is empty"), (8, "not valid JSON"), (9, "no "), (10, "a list")):
        assert any(f"a.jsonl, line {line}: " in row and reason in row for row in message.splitlines())
    code, _, _ = train(capsys, "--data.path=a.jsonl", "--data.on-bad-row=skip")
    log = Path("run/log.txt").read_text()
    assert (
        code == 0 and "6 rows of a.jsonl" in log and "4 left out: a.jsonl, line 7: an assistant message is empty" in log
    )


def test_a_prompt_longer_than_the_context(capsys):
    long = {"prompt": "word " * 90, "completion": "4", "chosen": "a", "rejected": "b", "answer": "4"}
    good = {"prompt": "What?", "completion": "4", "chosen": "a", "rejected": "b", "answer": "4"}
    write("a.jsonl", [good, long])
    for method, reason in (
        ("sft", "tokens are context, and max_len = 64 leaves none of the answer"),
        ("preference", "tokens are context, and max_len = 64 leaves none of the answer"),
        ("group", "leaves no room for an answer within 64"),
    ):
        message = refused(capsys, "--data.path=a.jsonl", method=method)
        assert "a.jsonl, line 2: the " in message and reason in message
        assert 'Set data.on_bad_row = "skip" to leave such rows out' in message
        shutil.rmtree("run", ignore_errors=True)
    assert train(capsys, "--data.path=a.jsonl", "--data.on-bad-row=skip")[0] == 0
    assert "1 rows of a.jsonl" in (log := Path("run/log.txt").read_text()) and "1 left out: a.jsonl, line 2" in log


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_chat_template_and_the_remedy(capsys):
    """The message names the option; the same command with it goes on, in the same folder."""
    Path("model/chat_template.jinja").unlink()
    message = refused(capsys, code=1)
    assert 'this model has none. Name a template: "plain" asks a base model' in message
    code, _, err = train(capsys, "--template=plain")
    assert code == 0, err
    assert load("run").template.name == "plain"


@pytest.mark.parametrize(
    "damage, message",
    [
        ("model.safetensors", "model lacks the weights model.safetensors"),
        ("tokenizer.json", "model has no tokenizer.json. Copy tokenizer.json and tokenizer_config.json"),
        ("config.json", "model is neither a model folder (no config.json or adapter_config.json) nor a run"),
        ("*", 'there is no model "nix"'),
    ],
)
def test_a_model_folder_that_lacks_something(capsys, damage, message):
    if damage == "*":
        assert message in refused(capsys, "--model=nix", code=1)
        return
    Path("model", damage).unlink()
    assert message in refused(capsys, code=1)


def test_weights_that_can_run_code_are_not_opened(capsys):
    Path("model/model.safetensors").rename("model/pytorch_model.bin")
    assert "convert them to safetensors first" in refused(capsys, code=1)


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reward, message",
    [
        ("exact_numbr", 'there is no reward "exact_numbr". Did you mean "exact_number"?'),
        ("mine.py:god", '"mine.py:god": mine.py has no function "god". Did you mean "good"?'),
        ("mone.py:good", "mone.py"),
        ("mine.py:one", "is defined as one(task)"),
        ("broken.py:good", "broken.py cannot be imported: line 2: ZeroDivisionError"),
    ],
)
def test_a_reward_that_cannot_be_used(capsys, reward, message):
    Path("mine.py").write_text("def good(task, trajectory):\n    return 1.0\n\n\ndef one(task):\n    return 1.0\n")
    Path("broken.py").write_text("def good(task, t): ...\n1 / 0\n")
    assert message in refused(capsys, f"--reward={reward}", method="group")


# --- disks and signals ------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint_and_the_command_goes_on(capsys):
    real, calls = torch.save, []

    def full(*args):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        code, _, err = train(capsys, "--run.save-every=1", "--steps=3")
    assert code == 1 and "RunError: the disk is full" in err and "run the same command again" in err
    assert "Traceback" not in err and load("run").folder.name == "step-000001"
    assert train(capsys, "--run.save-every=1", "--steps=3")[0] == 0
    assert "resumed from step-000001" in Path("run/log.txt").read_text()


def test_a_full_disk_while_exporting_leaves_the_earlier_export(capsys, monkeypatch):
    assert main(["export", "model", "out"]) == 0
    before = Path("out/model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("posttrain.models.hf_format.save_file", full)
    assert main(["export", "model", "out"]) == 1
    assert "RunError: the disk is full: writing out failed" in capsys.readouterr().err
    assert Path("out/model.safetensors").read_bytes() == before


def test_a_place_that_cannot_be_written(capsys):
    """Root may write anywhere, so the obstacle is a file where a folder is needed."""
    code, _, err = train(capsys, "--out=good.jsonl/run")
    assert code == 1 and "good.jsonl/run" in err and "Name another place" in err and "Traceback" not in err


def test_sigterm_to_a_process_of_its_own(place):
    """From outside, as a cluster sends it: exit code 130, one message, a whole checkpoint."""
    words = ["train", "sft", "--model=model", "--data.path=good.jsonl", "--data.eval-rows=0", "--out=run"]
    code = "import sys; from posttrain.cli.main import main; sys.exit(main(sys.argv[1:]))"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    words += ["--batch-size=2", "--run.threads=1", "--steps=100000", "--run.save-every=100000"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        metrics, patience = Path("run/metrics.jsonl"), time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Interrupted: stopped by SIGTERM after step" in err and "the same command" in err and "Traceback" not in err
    (checkpoint,) = Path("run/checkpoints").iterdir()
    assert len(metrics.read_text().splitlines()) == int(checkpoint.name.removeprefix("step-"))
    assert load("run").folder == Path("run/checkpoints") / checkpoint.name
