"""Mirrors get what metrics.jsonl gets; one that fails, or is not installed, never stops a run and says so once."""

import json
from dataclasses import replace

import pytest
from test_run import Config, contents, train

from posttrain.train import mirrors, sinks
from posttrain.train.run import RunConfig


def mirrored(*names):
    return Config(steps=6, run=replace(RunConfig(save_every=4, threads=1), mirror=names))


def logged(folder, name):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason='pip install "posttrain[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "r"
    train(folder, mirrored("tensorboard"))
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    for name in ("loss", "grad_norm"):
        seen = [(e.step, e.value) for e in found.Scalars(name)]
        assert seen == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged(folder, name)]
    assert "config/text_summary" in found.Tags()["tensors"]
    train(tmp_path / "bare", mirrored())
    assert contents(tmp_path / "bare") == contents(folder), "a mirror changes no number"


def test_tensorboard_forgets_the_steps_that_a_resumed_run_does_again(tmp_path):
    pytest.importorskip("tensorboard", reason='pip install "posttrain[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_then_resumed(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    assert [e.step for e in found.Scalars("loss")] == list(range(6))


def test_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason='pip install "posttrain[trackio]"')
    import trackio.utils
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    folder = tmp_path / "r"
    train(folder, mirrored("trackio"))
    rows = SQLiteStorage.get_logs(mirrors.PROJECT, "r")
    assert [(row["step"], row["loss"]) for row in rows] == logged(folder, "loss")


def test_trackio_is_sent_a_step_once_by_a_run_that_was_killed(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason='pip install "posttrain[trackio]"')
    import trackio.utils
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    killed_then_resumed(tmp_path / "killed", "trackio")
    rows = SQLiteStorage.get_logs(mirrors.PROJECT, "killed")
    assert sorted((row["step"], row["loss"]) for row in rows) == logged(tmp_path / "killed", "loss")


def killed_then_resumed(folder, name):
    """Six steps in two processes: the first ends after step 5 was logged, and the second begins with step 4 again."""

    def stop(step):
        if step == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        train(folder, mirrored(name), after_log=stop)
    train(folder, mirrored(name))


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='pip install "posttrain[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "r", mirrored("wandb"))
    (written,) = (tmp_path / "r" / "wandb").glob("offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
    assert "mirror wandb failed" not in (tmp_path / "r" / "log.txt").read_text()


def test_a_wandb_run_that_was_killed_goes_on_under_its_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason='pip install "posttrain[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    sent, init = [], wandb.init

    def spied(**kwargs):
        run = init(**kwargs)
        monkeypatch.setattr(run, "log", lambda values, step: sent.append((step, run.id)))
        return run

    monkeypatch.setattr(wandb, "init", spied)
    killed_then_resumed(tmp_path / "r", "wandb")
    assert [step for step, _ in sent] == list(range(6))
    assert len({name for _, name in sent}) == 1


class Failing:
    def __init__(self, *args):
        self.calls = 0

    def log(self, step, values):
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("no route to host")

    def close(self):
        raise AssertionError("it was left out before")


def test_a_mirror_that_fails_is_left_out_and_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sinks, "open_mirror", Failing)
    result, _ = train(tmp_path, mirrored("wandb"))
    assert result.steps == 6
    said = (tmp_path / "log.txt").read_text()
    assert said.count("the mirror wandb failed and is left out from here on: ConnectionError: no route to host") == 1


def test_a_mirror_that_is_not_installed_is_said_with_the_way_to_install_it(tmp_path, monkeypatch):
    def missing(self, *args):
        raise ImportError("no module")

    monkeypatch.setattr(mirrors.Trackio, "__init__", missing)
    train(tmp_path, mirrored("trackio"))
    assert 'pip install "posttrain[trackio]"' in (tmp_path / "log.txt").read_text()
