"""A run killed with SIGKILL at any moment and called again equals an unbroken one, bit for bit, in every loop.

Children come from a fork server that has torch loaded and has computed nothing. Each counts its *moments* (optimizer
steps, appended lines, files that are synced, renamed, written) and kills itself right before the n-th, so a draw of n
falls into the middle of checkpoints and of openings as easily as between steps. The command line is killed from
outside, at a time that nobody chose.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from algorithms import test_group, test_ppo, test_preference, test_reward_model, test_sft, toy
from posttrain import config as configs
from posttrain.algorithms import group, ppo, preference, reward_model, sft
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.presets import PRESETS
from posttrain.train.learner import Learner, Optim
from posttrain.train.run import Run, RunConfig, read_result
from posttrain.train.schedule import Schedule

MODULES = {"sft": sft, "reward_model": reward_model, "preference": preference, "group": group, "ppo": ppo}
STEPS = 8
WRITING = ("save", "rename")
OPTIM = Optim(lr=5e-3, weight_decay=0.1, schedule=Schedule(kind="cosine", warmup=2))


def config(name: str, folder: Path):
    """Small runs in which everything moves that a checkpoint must hold: schedules, baselines, leashes, evaluations."""
    make = {"sft": test_sft, "reward_model": test_reward_model, "preference": test_preference,
            "group": test_group, "ppo": test_ppo}[name].config  # fmt: skip
    run = RunConfig(seed=3, threads=1, save_every=3, samples=3)
    cfg = make(folder, steps=STEPS, eval_every=2, optim=OPTIM, run=run)
    cfg = replace(cfg, data=replace(cfg.data, eval_rows=2))
    if name == "sft":
        return replace(cfg, batch_size=4)
    if name == "preference":
        return replace(cfg, loss=PreferenceLoss(name="robust", label_smoothing=0.1))
    if name == "group":
        base = PRESETS["reinforce"]
        return replace(cfg, objective=replace(base, kl=replace(base.kl, target=0.5, horizon=50)), reference_every=2)
    if name == "ppo":
        kl = replace(cfg.objective.kl, target=0.5, horizon=50)
        return replace(cfg, prompts=8, warmup_steps=1, objective=replace(cfg.objective, kl=kl))
    return cfg


def work(name: str, cfg, folder: Path, kill_at: int | None) -> None:
    """In a child: train, and die at the given moment; else leave the names of all moments beside the folder."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    moments: list[str] = []

    def watched(what: str, function, *args, **kwargs):
        moments.append(what)
        if len(moments) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    for place, attribute, what in (
        (os, "fsync", "sync"), (os, "rename", "rename"), (os, "replace", "replace"), (torch, "save", "save"),
    ):  # fmt: skip
        setattr(place, attribute, partial(watched, what, getattr(place, attribute)))
    for kind, attribute in ((Learner, "step"), (Run, "_append")):
        real = getattr(kind, attribute)
        setattr(kind, attribute, lambda self, *args, r=real, a=attribute: watched(a, r, self, *args))
    toy.run(MODULES[name], cfg, folder)
    folder.with_suffix(".moments").write_text(json.dumps(moments))


@pytest.fixture(scope="module")
def child():
    """Run `work` in a child and return its exit code."""
    context = multiprocessing.get_context("forkserver")
    modules = (module.__name__ for module in MODULES.values())
    context.set_forkserver_preload(["pytest", "tokenizers", "torch._dynamo", *modules])  # AdamW imports the last

    def run(*args) -> int:
        process = context.Process(target=work, args=args)
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope="module", params=["sft", "preference", "group", "ppo"])
def whole(request, child, tmp_path_factory):
    """(method, config, unbroken run, names of its moments)."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = config(request.param, folder)
    assert child(request.param, cfg, folder / "whole", None) == 0
    return request.param, cfg, folder / "whole", json.loads((folder / "whole.moments").read_text())


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, optimizers and states of the last checkpoints, and every promised file."""
    for name in ("metrics.jsonl", "samples.jsonl", "invariants.jsonl", "config.toml"):
        assert (one / name).exists() == (other / name).exists(), name
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    a, b = (read_result(folder) for folder in (one, other))
    assert a.metrics == b.metrics and a.steps == b.steps == STEPS
    files = [{p.relative_to(r.checkpoint) for p in r.checkpoint.rglob("*") if p.is_file()} for r in (a, b)]
    assert files[0] == files[1]
    for name in files[0]:
        x, y = a.checkpoint / name, b.checkpoint / name
        if name.suffix == ".safetensors":
            assert_equal(load_file(x), load_file(y))
        elif name.suffix == ".pt":
            assert_equal(torch.load(x), torch.load(y))
        elif name.name == "state.json":
            assert json.loads(x.read_text())["state"] == json.loads(y.read_text())["state"]
        else:
            assert x.read_bytes() == y.read_bytes(), name


def assert_equal(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("draw", [0, 1])
def test_killed_twice_is_as_never_killed(child, whole, draw):
    """First in the middle of writing a checkpoint, then, in the run that resumed, at any moment at all."""
    name, cfg, unbroken, moments = whole
    luck = random.Random(f"{name} {draw}")
    broken = unbroken.with_name(f"killed-{draw}")
    first = luck.choice([i for i, what in enumerate(moments, 1) if what in WRITING])
    assert child(name, cfg, broken, first) == -signal.SIGKILL
    assert list((broken / "checkpoints").glob("*.tmp"))  # half a checkpoint lies there
    assert child(name, cfg, broken, luck.randint(1, len(moments) // 3)) in (-signal.SIGKILL, 0)
    assert child(name, cfg, broken, None) == 0
    assert_equal_runs(unbroken, broken)


def test_two_unbroken_runs_are_equal(child, whole):
    name, cfg, unbroken, _ = whole
    assert child(name, cfg, unbroken.with_name("again"), None) == 0
    assert_equal_runs(unbroken, unbroken.with_name("again"))


def test_a_finished_run_called_again_loses_nothing(child, whole):
    """Its last checks stand behind the last checkpoint."""
    name, cfg, unbroken, _ = whole
    before = {p.name: p.read_bytes() for p in unbroken.iterdir() if p.is_file()}
    assert child(name, cfg, unbroken, None) == 0
    after = {p.name: p.read_bytes() for p in unbroken.iterdir() if p.is_file()}
    for file in ("metrics.jsonl", "samples.jsonl", "invariants.jsonl", "timing.jsonl", "result.json"):
        assert (file in before) == (file in after) and before.get(file) == after.get(file), file


@pytest.mark.slow
def test_every_moment_may_be_the_last(child, whole):
    name, cfg, unbroken, moments = whole
    for moment in range(1, len(moments) + 1):
        broken = unbroken.with_name(f"at-{moment}")
        assert child(name, cfg, broken, moment) == -signal.SIGKILL
        assert child(name, cfg, broken, None) == 0, moments[moment - 1]
        assert_equal_runs(unbroken, broken)


# --- the command line ---------------------------------------------------------------------------------------------


def command(name: str, cfg, folder: Path) -> list[str]:
    file = folder.with_suffix(".toml")
    file.write_text(configs.to_toml(cfg))
    return [sys.executable, "-m", "posttrain", "train", name, "--config", str(file), "--out", str(folder)]


def kill_after(words: list[str], folder: Path, lines: int, pause: float) -> int:
    """Start, wait until that many steps were logged and a little longer, kill. Returns the exit code."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said.decode()
    return process.returncode


def by_command(name: str, tmp_path: Path, kills: int) -> None:
    cfg, luck = config(name, tmp_path), random.Random(name)
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    words = command(name, cfg, broken)
    for i in range(kills):
        code = kill_after(words, broken, luck.randint(1, 3) + i * 2, luck.random() * 0.03)
        assert code == -signal.SIGKILL or i > 0
    for line in (words, command(name, cfg, unbroken)):
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert_equal_runs(broken, unbroken)


def test_the_command_killed_from_outside_continues(tmp_path):
    by_command("group", tmp_path, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_each_command_killed_from_outside_continues(tmp_path, name):
    by_command(name, tmp_path, kills=3)
