"""A reward model recovers a hidden order of words from comparisons, on words it never saw compared."""

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
import torch

from algorithms import toy
from algorithms.killed import any_split_learns_the_same, ends_in_the_same_bits
from posttrain.algorithms import reward_model
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.evals.scorer import drawn, reliability, scorer_metrics
from posttrain.models.heads import ScalarModel
from posttrain.models.load import load
from posttrain.rewards.model import Judges
from posttrain.train.learner import Optim
from posttrain.train.metrics import mean


def comparisons(seed: int) -> list[dict]:
    """All 120 pairs of 16 words, in random order, each with the word that stands first in a hidden order preferred."""
    draw = random.Random(seed)
    order = draw.sample(toy.WORDS, len(toy.WORDS))
    pairs = list(itertools.combinations(order, 2))
    draw.shuffle(pairs)
    return [{"prompt": "a", "chosen": c, "rejected": r, "margin": 0.5} for c, r in pairs]


def ranked(seed: int) -> list[dict]:
    """Eighty draws of three or four words, scored by the same hidden order."""
    draw = random.Random(seed)
    order = draw.sample(toy.WORDS, len(toy.WORDS))
    sets = [draw.sample(toy.WORDS, 3 + i % 2) for i in range(80)]
    return [{"prompt": "a", "answers": said, "scores": [-order.index(w) for w in said]} for said in sets]


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


# --- rankings, ensembles, how far scores can be believed --------------------------------------------------------------


@pytest.mark.parametrize("loss", ["all_pairs", "plackett_luce", "top_choice"])
def test_rankings_teach_the_same_order(tmp_path, loss):
    data = Data(path=toy.rows(tmp_path / "ranked.jsonl", ranked(0)), eval_rows=20)
    _, metrics = toy.run(reward_model, config(tmp_path, data=data, loss=loss, batch_size=8), tmp_path / "run")
    assert metrics[-1]["eval_accuracy"] > 0.75
    assert toy.lines(tmp_path / "run" / "samples.jsonl")[0]["scores"]


def test_any_split_learns_the_same(tmp_path):
    data = Data(path=toy.rows(tmp_path / "ranked.jsonl", ranked(0)))
    any_split_learns_the_same(
        reward_model,
        lambda m: config(tmp_path, data=data, loss="plackett_luce", steps=4, eval_every=0,
                         optim=Optim(lr=1e-3, micro_tokens=m)),
        tmp_path,
    )  # fmt: skip


def test_an_ensemble_is_several_runs_that_disagree(tmp_path, monkeypatch):
    cfg = config(tmp_path, members=3, steps=12, eval_every=12, head_std=1.0)
    result, metrics = toy.run(reward_model, cfg, tmp_path / "run")
    assert len(metrics) == 3 and len({m["eval_margin"] for m in metrics}) == 3
    assert result.metrics["ensemble_std"] > 0
    assert len(Judges.read(f"model.min:{tmp_path / 'run'}").names) == 3
    assert isinstance(load(result.folder).model, ScalarModel)
    (tmp_path / "again").mkdir()
    ends_in_the_same_bits(reward_model, replace(cfg, members=2, steps=4), tmp_path / "again", monkeypatch, "step", 6)


def test_label_noise_is_met_by_smoothing(tmp_path):
    """With a third of the labels taken to be wrong, the gap that fits best is log 2."""
    data = Data(path=toy.rows(tmp_path / "one.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 16))
    cfg = config(tmp_path, data=data, label_smoothing=1 / 3, centering=0.0, steps=60, eval_every=0)
    assert toy.run(reward_model, cfg, tmp_path / "run")[1][-1]["margin"] == pytest.approx(math.log(2), abs=0.05)


def test_what_it_says_of_itself_stands_beside_it(tmp_path):
    toy.run(reward_model, config(tmp_path, steps=20, eval_every=20), tmp_path / "run")
    curve = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert sum(curve["pairs"]) == 40 and all(0 <= x <= 1 for x in curve["right"])
    scale = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scale["answers"] == 80 and scale["std"] > 0


def test_lengths_are_controlled_for():
    """A scorer that counts words: right on all pairs whose better answer is longer, and on no other."""
    better, worse = torch.tensor([10, 20, 5, 10, 8]), torch.tensor([5, 10, 10, 10, 16])
    found = mean(scorer_metrics((better - worse).float(), better, worse))
    assert found["eval_accuracy"] == pytest.approx(2 / 5) and found["eval_longer_share"] == 1.0
    assert found["eval_accuracy_shorter"] == 0.0 and found["eval_accuracy_matched"] == 0.0
    shown = drawn(reliability(torch.tensor([3.0, 3.0, -3.0])))
    assert "sure  95%" in shown and "right  67% of 3" in shown


def test_settings_that_mean_nothing():
    for changes, words in (
        ({"members": 0}, "members = 0"), ({"centering": -1}, "centering = -1"),
        ({"label_smoothing": 0.1, "loss": "all_pairs"}, 'read by loss = "pairs" alone'),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            reward_model.Config(**changes)


if __name__ == "__main__":
    toy.record(accuracy=accuracy)
