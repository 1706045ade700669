"""RRHF puts several answers in the order of their scores, and imitates the best."""

import random
from dataclasses import replace

import pytest

from algorithms import toy
from algorithms.killed import any_split_learns_the_same, ends_in_the_same_bits
from posttrain.algorithms import rrhf
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig


def ranked(seed: int, n: int = 80) -> list[dict]:
    """Three or four words of sixteen, scored by their place in a hidden order."""
    draw = random.Random(seed)
    order = draw.sample(toy.WORDS, len(toy.WORDS))
    rows = []
    for i in range(n):
        said = draw.sample(toy.WORDS, 3 + i % 2)
        rows.append({"prompt": "a", "responses": said, "scores": [-order.index(w) for w in said]})
    return rows


def config(folder, seed: int = 0, **changes) -> rrhf.Config:
    data = Data(path=toy.rows(folder / "rows.jsonl", ranked(seed)), eval_rows=20)
    base = rrhf.Config(
        model=toy.model(folder / "model", seed), template="posttrain", data=data, batch_size=8, steps=40,
        eval_every=40, optim=Optim(lr=3e-3), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def accuracy(seed: int, folder) -> float:
    return toy.run(rrhf, config(folder, seed), folder / "run")[1][-1]["eval_accuracy"]


LEAST = 0.7
"""Chance is 0.5. `cd tests && python -m algorithms.test_rrhf` shows ten seeds."""


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_held_out_answers_are_put_in_order(tmp_path, seed):
    assert accuracy(seed, tmp_path) > LEAST


def test_the_best_answer_is_imitated(tmp_path):
    _, metrics = toy.run(rrhf, config(tmp_path, eval_every=10), tmp_path / "run")
    assert metrics[-1]["eval_nll"] < metrics[9]["eval_nll"] < metrics[0]["nll"]


def test_any_split_learns_the_same(tmp_path):
    any_split_learns_the_same(rrhf, lambda m: config(tmp_path, steps=4, optim=Optim(lr=1e-3, micro_tokens=m)), tmp_path)


def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    cfg = config(tmp_path, steps=6, eval_every=3, run=RunConfig(threads=1, save_every=2, samples=1))
    ends_in_the_same_bits(rrhf, cfg, tmp_path, monkeypatch, "step", 4)


def test_settings_that_mean_nothing():
    with pytest.raises(ConfigError, match="power = -1"):
        rrhf.Config(power=-1)


if __name__ == "__main__":
    toy.record(accuracy=accuracy)
