"""`run.device`: only models move, and nothing that stays on the CPU meets them there.

There need be no GPU: `elsewhere.py` plays one. Whole runs go through it and end in the bits of a run on the CPU, since
its arithmetic is the CPU's; what is held here is that no tensor is left behind.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import posttrain.device
from algorithms import toy
from algorithms.elsewhere import CUDA, Elsewhere, Meeting, all_there
from posttrain import products
from posttrain.algorithms import (
    best_of_n,
    group,
    online_preference,
    ppo,
    preference,
    reinforce,
    reward_model,
    rrhf,
    sft,
    unpaired,
    vapo,
)
from posttrain.algorithms.online_preference import WAYS
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.models.lora import Lora
from posttrain.sample.base import SamplingParams
from posttrain.train.run import Run, RunConfig


@pytest.fixture
def there(monkeypatch):
    """A GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU that is not there")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**40, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    return Elsewhere()


def test_the_two_devices_do_not_meet(there):
    with there:
        a, b = torch.ones(2).to("cuda"), torch.ones(2)
        assert a.device == CUDA and b.device.type == "cpu" and (a * 2).device == CUDA
        assert (a * torch.tensor(2.0)).device == CUDA, "a number may come along"
        assert a[torch.tensor([0])].device == CUDA and a.cpu().device.type == "cpu" and a.to("cpu").device.type == "cpu"
        with pytest.raises(Meeting):
            a + b
        with pytest.raises(Meeting):
            torch.cat([a, b])
        model = torch.nn.Linear(2, 2).to("cuda")
        assert all_there(model) and model(a).device == CUDA
        with pytest.raises(Meeting):
            model(b)
        model(a).sum().backward()
        assert model.weight.grad.device == CUDA


PROMPTS = [{"prompt": p, "answer": a} for p, a in (("a b", "c"), ("b c", "d"), ("c d", "e"), ("d e", "f"))]
PAIRS = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": "g h"} for r in PROMPTS] * 2


def config(name: str, folder: Path, device: str):
    """Two steps of a method on the toy model."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {"data": Data(path=toy.rows(folder / "prompts.jsonl", PROMPTS)), "prompts": 2, "group_size": 4,
               "sampling": SamplingParams(max_tokens=4), "slots": 5, "reward": f"{__file__}:count"}  # fmt: skip
    pairs = {"data": Data(path=toy.rows(folder / "pairs.jsonl", PAIRS), eval_rows=2), "batch_size": 4}
    same = {"model": toy.model(folder / "model"), "steps": 2, "template": "posttrain",
            "run": RunConfig(**toy.QUIET, device=device)}  # fmt: skip
    rows = toy.rows(folder / "sft.jsonl", [{"prompt": r["prompt"], "completion": r["answer"]} for r in PROMPTS] * 2)
    judged = toy.rows(folder / "judged.jsonl", [{"prompt": r["prompt"], "completion": r["answer"], "label": i % 2 == 0}
                                                for i, r in enumerate(PROMPTS * 2)])  # fmt: skip
    ranked = toy.rows(folder / "ranked.jsonl", [{"prompt": r["prompt"], "responses": ["a", "b c", "d"],
                                                 "scores": [1.0, 0.5, 0.0]} for r in PROMPTS])  # fmt: skip
    match name:
        case "sft":
            return sft, sft.Config(**same, data=Data(path=rows, eval_rows=2), batch_size=4, eval_every=1)
        case "sft with adapters":
            return sft, sft.Config(**same, data=Data(path=rows), batch_size=4, lora=Lora(rank=2))
        case "reward_model":
            return reward_model, reward_model.Config(**same, **pairs)
        case "preference":
            return preference, preference.Config(**same, **pairs)
        case "preference, live":
            way = preference.Reference(when="live", every=1)
            return preference, preference.Config(**same, **pairs, reference=way)
        case "unpaired":
            return unpaired, unpaired.Config(**same, data=Data(path=judged), batch_size=4)
        case "rrhf":
            return rrhf, rrhf.Config(**same, data=Data(path=ranked), batch_size=2)
        case "group":
            return group, group.Config(**same, **prompts, minibatches=2)
        case "group, behind":
            return group, group.Config(**same, **prompts, lag=1)
        case "reinforce":
            return reinforce, reinforce.Config(**same, **prompts)
        case "ppo":
            return ppo, ppo.Config(**same, **prompts)
        case "vapo":
            return vapo, vapo.Config(**same, **prompts, pretrain_steps=1, minibatches=2)
        case "online_preference":
            return online_preference, online_preference.Config(**same, **prompts)
        case "nash_md":
            return online_preference, online_preference.Config(**same, **prompts, way=WAYS["nash_md"])
        case "best_of_n":
            return best_of_n, best_of_n.Config(
                **same, **(prompts | {"sampling": SamplingParams(max_tokens=20)}), epochs=1
            )


def count(task, trajectory):
    """A reward that differs from answer to answer."""
    return trajectory.completion.count("a") + 0.1 * len(trajectory.completion)


NAMES = ("sft", "sft with adapters", "reward_model", "preference, live", "unpaired", "group", "group, behind", "ppo",
         "nash_md", "best_of_n")  # fmt: skip
MORE = ("preference", "rrhf", "reinforce", "vapo", "online_preference")


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_run_on_another_device_leaves_nothing_behind(tmp_path, there, name, monkeypatch):
    monkeypatch.setattr(products, "_usual", lambda: None)  # a device that is not there computes as torch does on a CPU
    module, cfg = config(name, tmp_path / "in", "cpu")
    wanted, _ = toy.run(module, cfg, tmp_path / "cpu")
    with there:
        found, _ = toy.run(module, replace(cfg, run=replace(cfg.run, device="cuda")), tmp_path / "cuda")
    assert there.moved > 10 and posttrain.device.current() == "cpu"
    a, b = (load_file(r.model / w) for r in (found, wanted) for w in ("model.safetensors", "adapter_model.safetensors")
            if (r.model / w).exists())  # fmt: skip
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "cpu" / file).read_bytes() == (tmp_path / "cuda" / file).read_bytes()
    meta = json.loads((tmp_path / "cuda" / "meta.json").read_text())
    assert meta["sessions"][0]["device"] == "a GPU that is not there"


def test_a_run_goes_on_on_another_device(tmp_path, there, monkeypatch):
    monkeypatch.setattr(products, "_usual", lambda: None)  # as above
    module, cfg = config("group", tmp_path / "in", "cuda")
    cfg = replace(cfg, steps=4, run=replace(cfg.run, save_every=2))
    with there, Run.open(tmp_path / "r", replace(cfg, steps=2)) as run:
        module.train(replace(cfg, steps=2), run)
    loads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **more: loads.append(more["map_location"]) or real(*args, **more))
    moved, _ = toy.run(module, replace(cfg, run=replace(cfg.run, device="cpu")), tmp_path / "r")
    whole, _ = toy.run(module, replace(cfg, run=replace(cfg.run, device="cpu")), tmp_path / "whole")
    assert moved.metrics == whole.metrics and loads == ["cpu"], "there may be no such device any more"


def test_a_reward_model_judges_on_the_device(tmp_path, there):
    module, cfg = config("reward_model", tmp_path / "in", "cpu")
    judge, _ = toy.run(module, cfg, tmp_path / "judge")
    module, cfg = config("group", tmp_path / "in2", "cuda")
    with there:
        toy.run(module, replace(cfg, reward=f"model:{judge.folder}"), tmp_path / "cuda")


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    _, cfg = config("sft", tmp_path / "in", "cuda")
    with pytest.raises(ConfigError, match="finds no CUDA device here. Leave run.device out"):
        Run.open(tmp_path / "r", cfg)
    assert not (tmp_path / "r").exists()
    assert posttrain.device.of(replace(cfg, run=replace(cfg.run, device="auto"))) == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_a_run_on_a_gpu(tmp_path, name):
    module, cfg = config(name, tmp_path / "in", "cuda")
    result, _ = toy.run(module, cfg, tmp_path / "r")
    assert result.steps > 0
