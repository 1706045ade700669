"""Supervised fine-tuning learns eight examples by heart, learns to stop, and refuses data that teach nothing."""

import errno
import json
import os
import random
import signal
from dataclasses import replace

import pytest
import torch

from algorithms import toy
from posttrain import config as configs
from posttrain.algorithms import sft
from posttrain.cli.main import main
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError, NonFiniteError, RunError
from posttrain.evals.run import answer
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.records import Message, Stop, Task
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Optim


def eight(seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [{"prompt": toy.WORDS[i], "completion": " ".join(draw.choices(toy.WORDS, k=4))} for i in range(8)]


def config(folder, seed: int = 0, **changes) -> sft.Config:
    data = Data(path=toy.rows(folder / "rows.jsonl", eight(seed)))
    base = sft.Config(
        model=toy.model(folder / "model", seed), template="posttrain", data=data, batch_size=8, steps=30, eval_every=0,
        optim=Optim(lr=1e-2), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def likelihood(seed: int, folder) -> float:
    """-nll per token of the last step."""
    return -toy.run(sft, config(folder, seed), folder / "run")[1][-1]["nll"]


# Ten seeds of `cd tests && python -m algorithms.test_sft`: mean -0.0066, std 0.0008, mean - 3 std = -0.0089.
THRESHOLD = -0.0089


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_examples_are_learned_by_heart(tmp_path, seed):
    result, metrics = toy.run(sft, config(tmp_path, seed), tmp_path / "run")
    assert metrics[0]["nll"] > 2.5
    assert -metrics[-1]["nll"] > THRESHOLD
    loaded = load(result.model)
    tasks = [Task(str(i), (Message("user", row["prompt"]),)) for i, row in enumerate(eight(seed))]
    said = [g.members[0] for g in answer(TorchSampler(loaded.model), tasks, loaded, max_tokens=8)]
    assert [m.completion.strip() for m in said] == [row["completion"] for row in eight(seed)]
    assert all(m.stop is Stop.END for m in said)


@pytest.mark.parametrize("kind", ["token", "sequence", "sum"])
def test_every_average_learns(tmp_path, kind):
    _, metrics = toy.run(sft, config(tmp_path, average=Average(kind)), tmp_path / "run")
    assert metrics[-1]["nll"] < 0.05


# --- data that teach nothing ---------------------------------------------------------------------------------------


def test_no_rows(tmp_path):
    with pytest.raises(DataError, match="empty.jsonl has no rows. Was it written completely"):
        toy.run(sft, config(tmp_path, data=Data(path=toy.rows(tmp_path / "empty.jsonl", []))), tmp_path / "run")


def test_every_row_is_too_long(tmp_path):
    """The prompts alone fill the context: nothing of the answers would be left."""
    rows = [{"prompt": " ".join(toy.WORDS * 4), "completion": "a"}] * 3
    data = Data(path=toy.rows(tmp_path / "long.jsonl", rows))
    with pytest.raises(DataError, match=r'long.jsonl, line 1.*on_bad_row = "skip"'):
        toy.run(sft, config(tmp_path, data=data), tmp_path / "one")
    with pytest.raises(DataError, match=r"no row is left to train on \(3 left out, 0 held out\). The first: .*line 1"):
        toy.run(sft, config(tmp_path, data=replace(data, on_bad_row="skip")), tmp_path / "all")


def test_a_file_too_small_for_what_is_held_out_gives_a_fifth_and_says_so(tmp_path, capsys):
    cfg = config(tmp_path)
    toy.run(sft, replace(cfg, data=replace(cfg.data, eval_rows=8), steps=2), tmp_path / "run")
    assert "7 rows of" in (said := capsys.readouterr().err) and "1 held out (a fifth: 8 are too many to spare)" in said


def test_a_length_beyond_the_context(tmp_path):
    cfg = config(tmp_path)
    with pytest.raises(ConfigError, match="data.max_len = 33 exceeds the model's context of 32 tokens"):
        toy.run(sft, replace(cfg, data=replace(cfg.data, max_len=33)), tmp_path / "run")


# --- numbers that are none, disks that are full, signals -----------------------------------------------------------


@pytest.mark.parametrize("micro", [None, 12])
def test_nan_names_step_row_and_term(tmp_path, monkeypatch, micro):
    """However the step is cut, the row that is shown is the one that broke."""
    real, marked = sft.loss, toy.tokenizer().token_id("p")

    def poisoned(out, b):
        (term,), metrics = real(out, b)
        hit = (b.tokens == marked) & b.mask
        return [term._replace(value=term.value.masked_fill(hit, torch.nan))], metrics

    monkeypatch.setattr(sft, "loss", poisoned)
    rows = [{"prompt": w, "completion": "a b c" + " d" * i} for i, w in enumerate("hijklmn")]
    rows.append({"prompt": "o", "completion": "e p e"})
    cfg = config(tmp_path, data=Data(path=toy.rows(tmp_path / "one.jsonl", rows)), batch_size=2)
    cfg = replace(cfg, optim=Optim(lr=1e-2, micro_tokens=micro))
    with pytest.raises(NonFiniteError) as caught:
        toy.run(sft, cfg, tmp_path / "run")
    said = str(caught.value)
    step = len(toy.lines(tmp_path / "run" / "metrics.jsonl"))
    assert f'optimizer step {step}: the term "nll" is nan at row' in said and "token 5" in said
    assert "<|user|> o <|end|> <|assistant|> e p e <|end|>" in said and "The weights were not changed" in said
    assert json.loads((tmp_path / "run" / "failed.json").read_text())["step"] == step


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch):
    cfg = config(tmp_path, run=toy.quiet(save_every=5), steps=15)
    real, calls = torch.save, []

    def full(*args):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="the disk is full: writing the checkpoint .*step-000015.*run the same command"):
        toy.run(sft, cfg, tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000005", "step-000010"] and load(tmp_path / "run").folder.name == "step-000010"
    monkeypatch.undo()
    toy.run(sft, cfg, tmp_path / "run")
    toy.run(sft, cfg, tmp_path / "whole")
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigterm_ends_the_command_with_a_checkpoint_and_its_exit_code(tmp_path, monkeypatch, capsys):
    """Through the command line, in this process: the signal arrives in the middle of step 6."""
    cfg, real = config(tmp_path, steps=12), sft.collate
    calls = []

    def collate(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(sft, "collate", collate)
    (tmp_path / "run.toml").write_text(configs.to_toml(cfg))
    words = ["train", "sft", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]
    assert main(words) == 130
    assert "stopped by SIGTERM after step 6" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000007"]
    assert main(words) == 0
    toy.run(sft, cfg, tmp_path / "whole")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


if __name__ == "__main__":
    toy.record(likelihood=likelihood)
