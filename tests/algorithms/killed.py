"""A run that dies at a chosen moment, is called again, and is compared with one that never died."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from algorithms import toy
from posttrain.train.learner import Learner
from posttrain.train.run import Run

FILES = ("metrics.jsonl", "samples.jsonl", "rows.jsonl", "invariants.jsonl")


class Killed(BaseException):
    """What no loop catches."""


def ends_in_the_same_bits(module, cfg, folder: Path, monkeypatch, place: str, at: int) -> None:
    """Train whole; train again and die before the n-th optimizer step ("step") or line ("_append"); go on; compare."""
    whole, broken = folder / "whole", folder / "broken"
    wanted, _ = toy.run(module, cfg, whole)
    kind, count = {"_append": Run, "step": Learner}[place], [0]
    real = getattr(kind, place)

    def watched(self, *args):
        count[0] += 1
        if count[0] == at:
            raise Killed
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(kind, place, watched)
        with pytest.raises(Killed):
            toy.run(module, cfg, broken)
    found, _ = toy.run(module, cfg, broken)
    assert found.metrics == wanted.metrics
    for name in (name for name in FILES if (whole / name).exists()):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    a, b = (load_file(r.model / "model.safetensors") for r in (found, wanted))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def any_split_learns_the_same(module, config, folder: Path) -> None:
    """config: micro_tokens -> config of a run of a few steps. The weights agree to rounding."""
    models = []
    for micro in (None, 40, 1):
        result, _ = toy.run(module, config(micro), folder / f"micro-{micro}")
        models.append(load_file(result.model / "model.safetensors"))
    for other in models[1:]:
        for name, weight in models[0].items():
            torch.testing.assert_close(weight, other[name], rtol=2e-3, atol=2e-5)
