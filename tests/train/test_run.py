"""A run resumes bit for bit after SIGKILL, refuses another config, stops where it may, and writes what it promises."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from posttrain.batch import collate_groups
from posttrain.errors import ConfigError, Interrupted, InvariantError, NonFiniteError, RunError, UsageError
from posttrain.records import Group, Message, Score, Segment, Stop, Task, Trajectory
from posttrain.train.invariants import Check
from posttrain.train.run import Run, RunConfig, read_result

FILES = ("metrics.jsonl", "samples.jsonl")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Config of a loop that trains three numbers."""

    steps: int = field(default=12, metadata={"may_change": True})
    """Steps."""
    lr: float = 0.1
    """Learning rate."""
    reward: str = "builtin"
    """A reward, or file.py:function."""
    run: RunConfig = RunConfig(save_every=4, threads=1)
    """The run."""


class Fake:
    """A learner in miniature: momentum on noisy gradients, so that every bit of the past matters."""

    def __init__(self):
        self.weights, self.speed = torch.zeros(3), torch.zeros(3)

    def step(self, lr):
        self.speed = 0.9 * self.speed + torch.randn(3)
        self.weights = self.weights - lr * self.speed
        return {"loss": (self.weights.square().sum(), 3), "grad_norm": self.speed.norm()}

    def state(self):
        return {"weights": self.weights, "speed": self.speed}

    def load_state(self, state):
        self.weights, self.speed = state["weights"], state["speed"]


def train(folder, cfg, *, before_step=lambda step: None, after_log=lambda step: None):
    policy = Fake()
    with Run.open(folder, cfg, "train fake") as run:
        if run.finished:
            return run.result, policy
        state = run.load({"policy": policy}, {"total": 0.0})
        for step in run.steps(cfg.steps):
            before_step(step)
            metrics = policy.step(cfg.lr)
            state = {"total": state["total"] + float(policy.weights[0])}
            run.log(step, metrics | {"kl_beta": state["total"]})
            after_log(step)
            run.keep_samples(step, [{"text": f"step {step}", "seed": run.seed(step)}] * 6)
            run.save(step, {"policy": policy}, state)
        return run.finish({"eval_reward": (3.0, 4.0)}), policy


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def last_state(folder):
    return torch.load(max((folder / "checkpoints").iterdir()) / "optimizer.pt")


# -- one unbroken run --------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_is_promised(tmp_path):
    result, _ = train(tmp_path / "r", Config())
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert names == {"config.toml", "meta.json", "metrics.jsonl", "samples.jsonl", "timing.jsonl", "log.txt",
                     "checkpoints", "result.json", "report.html", ".lock"}  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert set(lines[0]) == {"step", "loss", "grad_norm", "kl_beta"}  # no times: they cannot repeat
    samples = (tmp_path / "r/samples.jsonl").read_text().splitlines()
    assert len(samples) == 12 * Config().run.samples
    meta = json.loads((tmp_path / "r/meta.json").read_text())
    assert meta["sessions"][0]["command"] == "train fake" and meta["sessions"][0]["versions"]["torch"]
    assert [p.name for p in sorted((tmp_path / "r/checkpoints").iterdir())] == ["step-000008", "step-000012"]
    assert result.checkpoint == tmp_path / "r/checkpoints/step-000012" == result.model
    assert result.metrics["eval_reward"] == 0.75 and result.metrics["loss"] == lines[-1]["loss"]


def test_a_finished_run_is_returned_without_training(tmp_path):
    first, _ = train(tmp_path, Config())
    again, untouched = train(tmp_path, Config())
    assert again == first == read_result(tmp_path)
    assert torch.equal(untouched.weights, torch.zeros(3))


def test_two_runs_of_one_config_are_equal(tmp_path):
    train(tmp_path / "a", Config())
    train(tmp_path / "b", Config())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_seed_matters(tmp_path):
    train(tmp_path / "a", Config())
    train(tmp_path / "b", Config(run=RunConfig(save_every=4, threads=1, seed=1)))
    assert contents(tmp_path / "a") != contents(tmp_path / "b")


# -- resuming ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_run import Config, train
at = int(sys.argv[2])
train(sys.argv[1], Config(), after_log=lambda step: step == at and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("at", [2, 9])
def test_a_killed_run_equals_an_unbroken_one(tmp_path, at):
    """Killed before the first checkpoint, and between two, after a line was written that no checkpoint knows."""
    script = KILLED.format(tests=str(Path(__file__).parent))
    words = [sys.executable, "-c", script, str(tmp_path / "killed"), str(at)]
    killed = subprocess.run(words, capture_output=True, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len((tmp_path / "killed/metrics.jsonl").read_text().splitlines()) == at + 1
    _, resumed = train(tmp_path / "killed", Config())
    _, unbroken = train(tmp_path / "whole", Config())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert torch.equal(resumed.weights, unbroken.weights) and torch.equal(resumed.speed, unbroken.speed)
    for key, value in last_state(tmp_path / "whole").items():
        assert torch.equal(value, last_state(tmp_path / "killed")[key])


KILLED_IN_SAVE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from posttrain.train import checkpoint
from test_run import Config, train
calls = []
def kill(*args):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(checkpoint, sys.argv[2], kill)
train(sys.argv[1], Config())
"""


@pytest.mark.parametrize("place, there", [("_sync_tree", "step-000008.tmp"), ("prune", "step-000008")])
def test_a_kill_while_saving_loses_nothing(tmp_path, place, there):
    """At the second checkpoint: before it has its name, and right after."""
    script = KILLED_IN_SAVE.format(tests=str(Path(__file__).parent))
    words = [sys.executable, "-c", script, str(tmp_path / "killed"), place]
    assert subprocess.run(words, capture_output=True, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    assert (tmp_path / "killed/checkpoints" / there).exists()
    _, resumed = train(tmp_path / "killed", Config())
    _, unbroken = train(tmp_path / "whole", Config())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert torch.equal(resumed.weights, unbroken.weights)
    assert [p.name for p in sorted((tmp_path / "killed/checkpoints").iterdir())] == ["step-000008", "step-000012"]


def test_torn_lines_are_cut_off(tmp_path):
    with pytest.raises(RuntimeError):
        _crash(tmp_path / "torn")
    with open(tmp_path / "torn/metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    train(tmp_path / "torn", Config())
    train(tmp_path / "whole", Config())
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_file_that_lost_lines_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        _crash(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="metrics.jsonl has 0 bytes but had .* edited"):
        train(tmp_path, Config())


def _crash(folder, at=6, cfg=None):
    def stop(step):
        if step == at:
            raise RuntimeError("a bug in step 6")

    return train(folder, cfg or Config(), before_step=stop)


def test_a_failed_run_says_why_and_resumes(tmp_path):
    with pytest.raises(RuntimeError):
        _crash(tmp_path)
    failed = json.loads((tmp_path / "failed.json").read_text())
    assert failed == {"step": 6, "error": "RuntimeError", "message": "a bug in step 6"}
    assert not (tmp_path / "result.json").exists()
    train(tmp_path, Config())
    assert not (tmp_path / "failed.json").exists() and read_result(tmp_path).steps == 12


def test_steps_without_load_is_our_own_mistake(tmp_path):
    with pytest.raises(RuntimeError):
        _crash(tmp_path)
    with Run.open(tmp_path, Config()) as run, pytest.raises(AssertionError, match="run.load"):
        next(run.steps(12))


# -- other configs -----------------------------------------------------------------------------------------------------


def test_another_config_is_refused_with_the_difference(tmp_path):
    train(tmp_path, Config())
    with pytest.raises(ConfigError, match=r"lr: 0\.1 → 0\.2(?s:.*)--out"):
        Run.open(tmp_path, Config(lr=0.2))
    assert read_result(tmp_path) is not None


def test_a_run_that_never_began_takes_another_config(tmp_path):
    """The remedy that an error names (skip bad rows, name a template) is another config, for the same --out."""
    with pytest.raises(ConfigError, match="no template"), Run.open(tmp_path / "r", Config()):
        raise ConfigError("no template")
    train(tmp_path / "r", Config(lr=0.2))
    train(tmp_path / "whole", Config(lr=0.2))
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")
    assert "lr = 0.2" in (tmp_path / "r/config.toml").read_text()


def test_steps_may_change_and_the_change_is_logged(tmp_path):
    train(tmp_path / "longer", Config(steps=8))
    result, _ = train(tmp_path / "longer", Config(steps=12))
    train(tmp_path / "whole", Config(steps=12))
    assert result.steps == 12 and contents(tmp_path / "longer") == contents(tmp_path / "whole")
    assert "steps: 8 → 12" in (tmp_path / "longer/log.txt").read_text()
    assert "steps = 12" in (tmp_path / "longer/config.toml").read_text()


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not a run folder.*thesis.tex.*--out"):
        Run.open(tmp_path, Config())


def test_a_folder_has_one_writer(tmp_path):
    with Run.open(tmp_path, Config()), pytest.raises(RunError, match="another process"):
        Run.open(tmp_path, Config())
    Run.open(tmp_path, Config()).close()


def test_user_code_is_copied_and_must_not_change(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("def reward(task, trajectory): ...\n")
    cfg = Config(reward=f"{code}:reward")
    train(tmp_path / "r", cfg)
    (copy,) = (tmp_path / "r/code").iterdir()
    assert copy.read_text() == code.read_text()
    code.write_text("def reward(task, trajectory): return 1\n")
    with pytest.raises(ConfigError, match="mine.py has changed since"):
        Run.open(tmp_path / "r", cfg)


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_a_checkpoint(tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="step-000006 with the same command"):
        train(tmp_path / "r", Config(), after_log=lambda step: step == 5 and os.kill(os.getpid(), number))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not (tmp_path / "r/failed.json").exists()
    train(tmp_path / "r", Config())
    train(tmp_path / "whole", Config())
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_a_second_signal_stops_at_once(tmp_path):
    def twice(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="in the middle of step 5"):
        train(tmp_path, Config(), after_log=twice)


def test_a_full_disk_while_logging(tmp_path):
    tmp_path.joinpath("r").mkdir()
    with Run.open(tmp_path / "r", Config()) as run:
        (tmp_path / "r/metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(RunError, match="disk is full: writing .*metrics.jsonl"):
            run.log(0, {"loss": 1.0})


# -- logging -----------------------------------------------------------------------------------------------------------


def test_an_unknown_metric_is_refused_with_the_nearest(tmp_path):
    with Run.open(tmp_path, Config()) as run, pytest.raises(KeyError, match="grad_norm"):
        run.log(0, {"gradnorm": 1.0})


def test_a_metric_that_is_no_number_stops_the_run(tmp_path):
    with Run.open(tmp_path, Config()) as run, pytest.raises(NonFiniteError, match="entropy = nan in step 3"):
        run.log(3, {"entropy": float("nan")})


def test_floats_are_written_exactly(tmp_path):
    with Run.open(tmp_path, Config()) as run:
        run.log(0, {"loss": (1.0, 3.0)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1 / 3


def test_trajectories_are_kept_whole(tmp_path):
    task = Task("t1", (Message("user", "2+2?"),), answer="4")
    segment = Segment((5, 6, 7), (False, True, True), (float("nan"), -0.5, -0.25))
    messages = (*task.prompt, Message("assistant", "4"))
    one = Trajectory(task, messages, (segment,), Stop.END, score=Score(1.0, {"right": 1.0}, "4", "equal to the answer"))
    two = replace(one, segments=(segment, Segment((5, 6, 7, 8), (False, True, True, True), (math.nan, -1, -1, -1))))
    batch, _ = collate_groups([Group(task, (two, one))])  # a loop may learn from other trajectories, in another order
    advantage = torch.tensor([[0, 0.5, 0.5, 0], [0, 0.25, 0.25, 0.25], [0, -0.5, -0.5, 0]])
    with Run.open(tmp_path, Config()) as run:
        run.keep_samples(0, [Group(task, (one, two))])
        run.keep_advantages([replace(two, score=Score(0.0)), one], batch.with_(advantage=advantage))
    first, second = (json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines())
    assert first["score"] == {"value": 1.0, "parts": {"right": 1.0}, "answer": "4", "why": "equal to the answer"}
    tokens = {"tokens": [5, 6, 7], "mask": ".xx", "logp": [None, -0.5, -0.25]}
    assert first["segments"] == [tokens | {"advantage": [0, -0.5, -0.5]}]
    assert first["messages"][1] == {"role": "assistant", "content": "4"} and first["stop"] == "end"
    assert [s["advantage"] for s in second["segments"]] == [[0, 0.5, 0.5], [0, 0.25, 0.25, 0.25]]


def test_samples_are_written_when_a_run_stops_in_the_middle_of_a_step(tmp_path):
    with Run.open(tmp_path, Config()) as run, pytest.raises(NonFiniteError):
        run.keep_samples(0, [{"text": "why"}])
        run.log(0, {"loss": float("nan")})
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 0, "text": "why"}


def test_rows_of_a_step_are_marked(tmp_path):
    tasks = [Task("t1", (Message("user", "2+2?"),), answer=answer, meta={"where": answer}) for answer in "445"]
    segment = Segment((5, 6), (False, True))
    with Run.open(tmp_path, Config()) as run:
        assert run.took(3, tasks) is tasks
        run.took(4, [segment, replace(segment, tokens=(5, 7))])
    first, second = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    a, b, c = first["rows"]
    assert first["step"] == 3 and a.startswith("t1 ") and a != c
    assert a == b, "where a row was read makes no other row of it"
    assert len(set(second["rows"])) == 2


def test_a_failed_check_is_recorded_and_a_fatal_one_stops(tmp_path):
    mild = Check("blocks_moved", False, "embed 0%", "Right if you froze it.")
    fatal = Check("weights_changed", False, "0 of 3 blocks", "Is the learning rate 0?", fatal=True)
    with Run.open(tmp_path, Config()) as run:
        run.check(0, mild)
        with pytest.raises(InvariantError, match="weights_changed: 0 of 3 blocks in step 0. Is the learning rate 0"):
            run.check(0, mild, fatal)
    lines = [json.loads(line) for line in (tmp_path / "invariants.jsonl").read_text().splitlines()]
    assert [(line["check"], line["ok"]) for line in lines] == [("blocks_moved", False)] * 2 + [
        ("weights_changed", False)
    ]
    assert "embed 0%" in (tmp_path / "log.txt").read_text()


def test_the_best_checkpoint_is_kept_and_becomes_the_model(tmp_path):
    cfg = Config(steps=4, run=RunConfig(save_every=1, keep=1, threads=1, best="eval_reward"))
    policy = Fake()
    with Run.open(tmp_path, cfg) as run:
        for step in run.steps(4):
            run.log(step, {"eval_reward": [0.1, 0.8, 0.3, 0.2][step]})
            run.save(step, {"policy": policy})
        result = run.finish()
    assert result.best.name == "step-000002" and result.model == result.best and result.checkpoint.name == "step-000004"


def test_run_config_names_its_problem():
    with pytest.raises(ConfigError, match="save_every = 0 must be at least 1"):
        RunConfig(save_every=0)
    with pytest.raises(ConfigError, match='best: "eval" is not in the glossary'):
        RunConfig(best="eval")
