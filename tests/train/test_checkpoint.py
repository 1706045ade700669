"""Checkpoints are whole or absent, hold everything, and say what to do when the disk is full."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.errors import RunError
from posttrain.train import checkpoint


class Weights:
    """A part whose weights are in `state()`."""

    def __init__(self, value=0.0):
        self.tensor = torch.full((3,), value, dtype=torch.float64)

    def state(self):
        return {"tensor": self.tensor, "count": 3}

    def load_state(self, state):
        self.tensor = state["tensor"]


class WithModelFolder(Weights):
    """A part that writes a model folder and keeps exact weights in a file of its own, as an adapter must."""

    def save_model(self, folder):
        (folder / "config.json").write_text("{}")

    def save_weights(self, path):
        save_file({"tensor": self.tensor}, path)

    def load_weights(self, path):
        self.tensor = load_file(path)["tensor"]

    def state(self):
        return {}

    def load_state(self, state):
        assert state == {}


def _write(root, steps, parts=None, state=None, metrics=None):
    return checkpoint.write(root, steps, parts or {"policy": Weights(steps)}, state or {}, {"metrics": metrics or {}})


def test_parts_and_state_come_back_bit_for_bit(tmp_path):
    third = 1 / 3
    state = {
        "cursor": 7,
        "beta": third,
        "ids": (1, 2),
        "table": {3: "three"},
        "moment": torch.tensor([third]),
        "no": None,
    }
    path = _write(tmp_path, 12, {"policy": Weights(third), "critic": Weights(2.0)}, state)
    assert path.name == "step-000012"
    policy, critic = Weights(), Weights()
    back = checkpoint.read(path, {"policy": policy, "critic": critic})
    assert torch.equal(policy.tensor, torch.full((3,), third, dtype=torch.float64))
    assert torch.equal(critic.tensor, torch.full((3,), 2.0, dtype=torch.float64))
    assert torch.equal(back.pop("moment"), state.pop("moment"))
    assert back == state and type(back["ids"]) is tuple and list(back["table"]) == [3]


def test_plain_state_is_readable_json(tmp_path):
    path = _write(tmp_path, 1, state={"cursor": 7})
    assert json.loads((path / "state.json").read_text())["state"] == {"cursor": 7}
    assert not (path / "state.pt").exists()


def test_the_policy_lies_in_the_folder_itself(tmp_path):
    path = _write(tmp_path, 1, {"policy": WithModelFolder(4.0), "critic": Weights()})
    assert {p.name for p in path.iterdir()} == {
        "config.json",
        "weights.safetensors",
        "optimizer.pt",
        "critic",
        "state.json",
    }
    part = WithModelFolder()
    checkpoint.read(path, {"policy": part})
    assert torch.equal(part.tensor, torch.full((3,), 4.0, dtype=torch.float64))


def test_a_missing_part_is_named(tmp_path):
    path = _write(tmp_path, 1)
    with pytest.raises(RunError, match='no part named "critic".*new folder'):
        checkpoint.read(path, {"policy": Weights(), "critic": Weights()})


def test_the_last_n_and_the_best_are_kept(tmp_path):
    for steps, value in [(1, 0.2), (2, 0.9), (3, 0.1), (4, 0.3), (5, 0.3)]:
        _write(tmp_path, steps, metrics={"eval_reward": value})
        checkpoint.prune(tmp_path, 2, "eval_reward")
    assert [checkpoint.steps_of(p) for p in checkpoint.found(tmp_path)] == [2, 4, 5]
    assert checkpoint.steps_of(checkpoint.best(tmp_path, "eval_reward")) == 2


def test_best_goes_down_for_losses_and_needs_the_metric_of_its_own_step(tmp_path):
    for steps, metrics in [(1, {"eval_nll": 2.0}), (2, {"eval_nll": 1.0}), (3, {})]:
        _write(tmp_path, steps, metrics=metrics)
    assert checkpoint.steps_of(checkpoint.best(tmp_path, "eval_nll")) == 2
    assert checkpoint.best(tmp_path, "eval_reward") is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed: file write failed"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "quota", "torch", "safetensors"],
)
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, error):
    _write(tmp_path, 1)

    def full(*args):
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="MiB free in .*run.keep = 1.*continues from the last checkpoint"):
        _write(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    part = Weights()
    checkpoint.read(tmp_path / "step-000001", {"policy": part})
    assert part.tensor[0] == 1.0


def test_a_real_full_device_is_recognised():
    """/dev/full answers every write with ENOSPC."""
    with pytest.raises(OSError) as caught, open("/dev/full", "w") as file:
        file.write("x" * 100_000)
    assert isinstance(checkpoint.full_disk(caught.value, "writing", Path("/dev")), RunError)


def test_other_errors_pass_and_leave_nothing(tmp_path, monkeypatch):
    def broken(*args):
        raise TypeError("cannot pickle")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(TypeError, match="cannot pickle"):
        _write(tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_a_killed_process_are_not_checkpoints(tmp_path):
    whole = _write(tmp_path, 3)
    shutil.copytree(whole, tmp_path / "step-000004.tmp")
    shutil.copytree(whole, tmp_path / "step-000001.old.tmp")
    assert checkpoint.found(tmp_path) == [whole]
    checkpoint.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [whole]


def test_text_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    checkpoint.write_text(path, "old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(RunError, match="disk is full"):
        checkpoint.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
