"""What the command line says when something is wrong: one message with advice, no traceback, the right exit code."""

import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from posttrain.cli import train as train_verb
from posttrain.cli.main import VERBS, main
from posttrain.errors import ConfigError, MissingExtra, ModelError, missing_extra
from posttrain.train.run import MAY_CHANGE, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A method that counts."""

    steps: int = field(default=3, metadata=MAY_CHANGE)
    """How far to count."""
    lr: float = 0.1
    """Counts as a field."""
    fail_at: int = field(default=-1, metadata=MAY_CHANGE)
    """Where to fail."""
    run: RunConfig = RunConfig(save_every=1, threads=1)
    """The run."""

    def __post_init__(self):
        if self.lr <= 0:
            raise ConfigError(f"lr = {self.lr}: must be positive")


class Counter:
    """A part that holds nothing."""

    def state(self):
        return {}

    def load_state(self, state):
        pass


def _train(cfg, run):
    if run.finished:
        return run.result
    run.load({"policy": Counter()})
    for step in run.steps(cfg.steps):
        if step == cfg.fail_at:
            raise ModelError("the model folder x is broken. Make it again.")
        run.log(step, {"loss": 1.0 / (step + 1)})
        run.save(step, {"policy": Counter()})
    return run.finish()


@pytest.fixture(autouse=True)
def counting(monkeypatch, tmp_path):
    """A method without a model, called "count", and an empty working directory."""
    module = types.ModuleType("posttrain.algorithms.count")
    module.Config, module.train, module.plan = Config, _train, lambda cfg: f"{cfg.steps} steps."
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(train_verb.METHODS, "count", "counts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def call(capsys, *words):
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


# -- the request is wrong: 2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["trian"], 'UsageError: there is no verb "trian". Did you mean "train"?'),
        (["train", "coutn"], 'UsageError: there is no method "coutn". Did you mean "count"?'),
        (["train", "--steps", "3"], '"--steps" comes before the method. Write: posttrain train METHOD --steps'),
        (["train", "count", "--stesp", "3"], 'ConfigError: --stesp: there is no such field. Did you mean "steps"?'),
        (["train", "count", "--lr=0"], "ConfigError: lr = 0.0: must be positive"),
        (["train", "count", "--lr=fast"], 'lr = "fast" is not a number'),
        (["train", "count", "--out"], "UsageError: --out needs a folder"),
        (["train", "count", "--config", "no.toml"], "cannot read the config file no.toml: No such file or directory"),
        (["config", "cuont"], 'there is no method "cuont". Did you mean "count"?'),
        (["runs", "lsit"], 'Did you mean "list"?'),
        (["runs", "show"], "run is required. The run folder."),
        (["runs", "show", "nowhere"], "nowhere is not a run folder (it has no config.toml)."),
        (["doctor", "nowhere"], "nowhere is not a run folder"),
        (["methods", "compare", "grppo"], 'there is no method "grppo". Did you mean "grpo"?'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request(capsys, words, message):
    code, out, err = call(capsys, *words)
    assert code == 2 and message in err
    assert "Traceback" not in err


def test_all_problems_at_once(capsys):
    code, _, err = call(capsys, "train", "count", "--steps=x", "--lr=y", "--run.sed=1")
    assert code == 2 and "3 problems" in err
    assert "steps" in err and "lr" in err and 'Did you mean "run.seed"?' in err


def test_a_finished_run_with_another_config(capsys):
    assert call(capsys, "train", "count", "--out=r")[0] == 0
    code, _, err = call(capsys, "train", "count", "--out=r", "--lr=0.2")
    assert code == 2 and "lr: 0.1 → 0.2" in err and "--out" in err


# -- the run fails: 1 --------------------------------------------------------------------------------------------------


def test_a_failing_run_says_why_and_continues_when_asked_again(capsys, tmp_path):
    code, _, err = call(capsys, "train", "count", "--out=r", "--fail-at=1")
    assert code == 1 and "ModelError: the model folder x is broken. Make it again." in err and "Traceback" not in err
    assert json.loads((tmp_path / "r/failed.json").read_text())["step"] == 1
    assert "failed" in call(capsys, "runs", "list", ".")[1]
    assert "failed in step 1: ModelError" in call(capsys, "runs", "show", "r")[1]
    code, out, _ = call(capsys, "train", "count", "--out=r")
    assert code == 0 and "3 steps" in out and "posttrain chat r" in out


def test_a_missing_extra_names_the_command(capsys, monkeypatch):
    def needs(words):
        raise missing_extra("reading Parquet files", "data", "convert it to JSON lines")

    monkeypatch.setattr("posttrain.cli.runs.main", needs)
    code, _, err = call(capsys, "runs")
    assert code == MissingExtra.exit_code == 1
    assert 'pip install "posttrain[data]", or convert it to JSON lines' in err


# -- interrupted: 130 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_a_loop(capsys, monkeypatch, number):
    monkeypatch.setattr("posttrain.cli.runs.main", lambda words: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = call(capsys, "runs")
    assert code == 130 and err.startswith("Interrupted: ") and signal.getsignal(signal.SIGTERM) is before


# -- nothing is wrong: 0 -----------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_every_field(capsys):
    _, out, _ = call(capsys, "--help")
    assert all(verb in out for verb in VERBS)
    _, out, _ = call(capsys, "train", "count", "--help")
    assert "--run.save-every  whole number = 1\n" in out  # the default as this method sets it
    assert "How far to count." in out and "--dry-run" in out


def test_help_is_light():
    """No torch, no numpy: the help must come at once. (Times are measured in the benchmarks.)"""
    code = "import sys; from posttrain.cli.main import main; main(['--help']); heavy = {'torch', 'numpy', 'rich'}; "
    code += "sys.exit(bool(heavy & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=root).returncode == 0


def test_config_is_complete_and_trains(capsys, tmp_path):
    _, out, _ = call(capsys, "config", "count", "--steps", "2")
    assert "# How far to count.\nsteps = 2" in out and "[run]" in out
    (tmp_path / "c.toml").write_text(out)
    assert call(capsys, "train", "count", "--config", "c.toml", "--out", "r")[0] == 0
    assert "steps = 2" in (tmp_path / "r/config.toml").read_text()


def test_dry_run_touches_nothing(capsys, tmp_path):
    code, out, _ = call(capsys, "train", "count", "--dry-run", "--steps=7")
    assert code == 0 and out.startswith("7 steps.") and list(tmp_path.iterdir()) == []


def test_the_same_command_finds_the_same_run(capsys, tmp_path):
    assert call(capsys, "train", "count")[0] == 0
    _, out, _ = call(capsys, "train", "count")
    assert "already finished" in out and len(list((tmp_path / "runs").iterdir())) == 1
    assert "finished" in call(capsys, "runs")[1]


def test_doctor_shows_what_a_run_checked(capsys):
    assert call(capsys, "train", "count", "--out=r")[0] == 0
    line = {"step": 0, "check": "weights_changed", "value": "0 of 3", "advice": "Raise lr.", "fatal": True}
    with open("r/invariants.jsonl", "w") as file:
        file.write(json.dumps(line | {"ok": True}) + "\n" + json.dumps(line | {"step": 4, "ok": False}) + "\n")
    code, out, _ = call(capsys, "doctor", "r")
    assert code == 1 and "step 4: 0 of 3 (failed in 1 of 2)" in out and "Raise lr." in out


@pytest.mark.parametrize("finished", [True, False])
def test_a_control_run_cannot_be_talked_to(capsys, tmp_path, finished):
    pytest.importorskip("gymnasium", reason='pip install "posttrain[control]"')
    out = str(tmp_path / "control")
    small = ("--task.envs", "2", "--task.horizon", "8", "--update.minibatches", "1", "--update.epochs", "1")
    assert call(capsys, "train", "control-ppo", *small, "--steps", "1", "--run.threads", "1", "--out", out)[0] == 0
    if not finished:
        (tmp_path / "control" / "result.json").unlink()
    code, _, err = call(capsys, "chat", out)
    assert code == 1 and "is a run on a control task" in err and "posttrain runs show" in err
