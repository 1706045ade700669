"""A reward model recovers a hidden order of words from comparisons, on words it never saw compared."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

from algorithms import toy
from posttrain.algorithms import reward_model
from posttrain.data.rows import Data
from posttrain.models.heads import ScalarModel
from posttrain.models.load import load
from posttrain.train.learner import Optim


def comparisons(seed: int) -> list[dict]:
    """All 120 pairs of 16 words, in random order, each with the word that stands first in a hidden order preferred."""
    draw = random.Random(seed)
    order = draw.sample(toy.WORDS, len(toy.WORDS))
    pairs = list(itertools.combinations(order, 2))
    draw.shuffle(pairs)
    return [{"prompt": "a", "chosen": c, "rejected": r, "margin": 0.5} for c, r in pairs]


def config(folder, seed: int = 0, **changes) -> reward_model.Config:
    data = Data(path=toy.rows(folder / "pairs.jsonl", comparisons(seed)), eval_rows=40)
    base = reward_model.Config(
        model=toy.model(folder / "model", seed), template="posttrain", data=data, batch_size=16, steps=80,
        eval_every=80, optim=Optim(lr=3e-3), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def accuracy(seed: int, folder) -> float:
    """Share of the 40 held-out pairs that are ranked right."""
    return toy.run(reward_model, config(folder, seed), folder / "run")[1][-1]["eval_accuracy"]


# Ten seeds of `cd tests && python -m algorithms.test_reward_model`: mean 0.9275, std 0.0362, mean - 3 std = 0.8188.
THRESHOLD = 0.8188


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_hidden_order_is_recovered(tmp_path, seed):
    assert accuracy(seed, tmp_path) > THRESHOLD


def test_the_result_continues_and_scores_start_at_zero(tmp_path):
    cfg = config(tmp_path, steps=3)
    result, metrics = toy.run(reward_model, cfg, tmp_path / "run")
    assert metrics[0]["margin"] == 0 and metrics[-1]["margin"] != 0  # the head begins at zero
    again = load(result.model).model
    assert isinstance(again, ScalarModel) and again.score.weight.abs().sum() > 0
    more, _ = toy.run(reward_model, replace(cfg, model=str(tmp_path / "run")), tmp_path / "more")
    assert not torch.equal(load(more.model).model.score.weight, again.score.weight)


def test_pairs_can_be_read_in_samples(tmp_path):
    toy.run(reward_model, config(tmp_path, steps=2), tmp_path / "run")
    sample = toy.lines(tmp_path / "run" / "samples.jsonl")[0]
    assert sample["margin"] == 0.5
    for side in ("chosen", "rejected"):
        assert sample[side]["text"].startswith("<|user|>") and sample[side]["mask"].endswith("xx")


if __name__ == "__main__":
    toy.record(accuracy=accuracy)
