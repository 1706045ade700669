"""Preference losses raise the margin of pairs that they were not trained on, and start exactly at the reference."""

import math
from dataclasses import replace

import pytest

from algorithms import toy
from algorithms.test_reward_model import comparisons
from posttrain.algorithms import preference
from posttrain.data.rows import Data
from posttrain.objectives.preference import PreferenceLoss
from posttrain.train.learner import Optim

LOSSES = {"dpo": PreferenceLoss(name="dpo", beta=0.5), "ipo": PreferenceLoss(name="ipo", beta=0.1)}


def config(folder, seed: int = 0, name: str = "dpo", **changes) -> preference.Config:
    data = Data(path=toy.rows(folder / "pairs.jsonl", comparisons(seed)), eval_rows=40)
    base = preference.Config(
        model=toy.model(folder / "model", seed), template="posttrain", data=data, loss=LOSSES[name], batch_size=16,
        steps=40, eval_every=40, optim=Optim(lr=3e-3), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def learn(name: str, metric: str, seed: int, folder) -> float:
    return toy.run(preference, config(folder, seed, name), folder / "run")[1][-1][metric]


# Ten seeds of `cd tests && python -m algorithms.test_preference`, mean - 3 standard deviations:
#   dpo  accuracy 0.9300 - 3 x 0.0422, margin 2.9339 - 3 x 0.4299
#   ipo  accuracy 0.9100 - 3 x 0.0376, margin 0.3313 - 3 x 0.0741
THRESHOLDS = {
    "dpo": {"eval_accuracy": 0.8035, "eval_margin": 1.6442},
    "ipo": {"eval_accuracy": 0.7971, "eval_margin": 0.1091},
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_held_out_pairs_move_apart(tmp_path, name, seed):
    _, metrics = toy.run(preference, config(tmp_path, seed, name), tmp_path / "run")
    for metric, threshold in THRESHOLDS[name].items():
        assert metrics[-1][metric] > threshold, metric


def test_the_first_step_stands_at_the_reference(tmp_path):
    _, metrics = toy.run(preference, config(tmp_path, steps=1), tmp_path / "run")
    assert metrics[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


if __name__ == "__main__":
    for name, metrics in THRESHOLDS.items():
        toy.record(**{f"{name} {m}": lambda s, f, n=name, m=m: learn(n, m, s, f) for m in metrics})
