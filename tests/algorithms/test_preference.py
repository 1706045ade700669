"""Preference losses raise the margin of pairs that they were not trained on, and start exactly at the reference."""

import math
from dataclasses import replace

import pytest

from algorithms import toy
from algorithms.killed import ends_in_the_same_bits
from algorithms.test_reward_model import comparisons
from posttrain.algorithms import preference, reference
from posttrain.algorithms.reference import Reference
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError
from posttrain.models.lora import Lora
from posttrain.objectives.preference import MENU, PreferenceLoss
from posttrain.records import Segment
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig

LOSSES = {"dpo": PreferenceLoss(name="dpo", beta=0.5), "ipo": PreferenceLoss(name="ipo", beta=0.1)}

SETTINGS = {
    "cdpo": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.1},
    "discopop": {"tau": 0.4},  # with the usual 0.05 a pair at the reference is pushed the wrong way
    "wpo": {"beta": 0.5},
    "rpo": {"beta": 0.5, "nll": 0.1},
    "mpo": {"beta": 0.5, "nll": 0.1},
}
"""Where the usual numbers are not made for answers of one word."""


def from_menu(name: str) -> PreferenceLoss:
    return PreferenceLoss(name=name, **SETTINGS.get(name, {}))


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


# Ten seeds of each loss: from wpo (0.8025 - 3 x 0.0661 = 0.6042) and apo_down (0.7775 - 3 x 0.0546 = 0.6138) to ipo.
LOWEST = 0.6


QUICK = ("robust", "odpo", "wpo", "aot", "f_dpo_alpha", "dpo_norm", "ld_dpo", "rpo", "orpo", "simpo", "cpo")
"""One loss of every kind that the loop treats in its own way."""


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MENU])
def test_every_loss_of_the_menu_learns(tmp_path, monkeypatch, name):
    """And the reference is asked only where it is needed."""
    asked = []
    real = reference.reference_logps
    monkeypatch.setattr(reference, "reference_logps", lambda *a: asked.append(1) or real(*a))
    cfg = config(tmp_path, loss=from_menu(name))
    assert toy.run(preference, cfg, tmp_path / "run")[1][-1]["eval_accuracy"] > LOWEST
    assert bool(asked) == from_menu(name).needs_reference


def test_cross_entropy_is_a_second_term(tmp_path):
    """At the reference the loss is log 2 + w · nll, in training and in evaluation."""
    loss = PreferenceLoss(name="rpo", nll=0.3)
    _, metrics = toy.run(preference, config(tmp_path, loss=loss, steps=1, eval_every=1), tmp_path / "run")
    assert metrics[0]["loss"] == pytest.approx(math.log(2) + 0.3 * metrics[0]["nll"], abs=1e-5)
    assert 0.5 < metrics[0]["eval_loss"] - 0.3 * metrics[0]["eval_nll"] < math.log(2)


@pytest.mark.parametrize(
    "average, expected", [(None, [1 / 2, 1 / 6]), ("sequence", [1 / 2, 1 / 6]), ("token", [1 / 4] * 2)]
)
def test_cross_entropy_has_an_average_of_its_own(average, expected):
    """Chosen answers of one and three tokens; rejected ones weigh nothing."""

    def answer(n: int) -> Segment:
        return Segment(tokens=(1,) * (1 + n), mask=(False,) + (True,) * n, logp=(), turn=(0,) * (1 + n))

    rows = [preference.PairRow(i, (answer(n), answer(2))) for i, n in enumerate((1, 3))]
    weights = preference.make_batch(rows, None, PreferenceLoss(name="rpo", nll_average=average)).weights["nll"]
    assert weights[[0, 2]].amax(1).tolist() == pytest.approx(expected)
    assert weights[[1, 3]].sum() == 0 and (weights[2] > 0).sum() == 3
    assert "nll" not in preference.make_batch(rows, None, PreferenceLoss()).weights


def test_a_loss_of_score_gaps_refuses_pairs_without(tmp_path):
    rows = [row | {"margin": None} for row in comparisons(0)]
    data = Data(path=toy.rows(tmp_path / "bare.jsonl", rows), eval_rows=40)
    with pytest.raises(DataError, match="120 of 120 pairs .* column margin"):
        toy.run(preference, config(tmp_path, loss=from_menu("odpo"), data=data), tmp_path / "run")


def test_the_first_step_stands_at_the_reference(tmp_path):
    _, metrics = toy.run(preference, config(tmp_path, steps=1), tmp_path / "run")
    assert metrics[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


# --- references -------------------------------------------------------------------------------------------------------


def test_a_live_reference_says_what_the_stored_one_said(tmp_path):
    results = [
        toy.run(preference, config(tmp_path, steps=6, reference=Reference(when=when)), tmp_path / when)
        for when in ("before", "live")
    ]
    for a, b in zip(*(metrics for _, metrics in results), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_a_reference_that_follows_holds_less(tmp_path):
    """TR-DPO: the policy may go further, since the leash moves with it; right after a hard update it is slack."""
    far = {}
    for every, share in ((0, 0.6), (5, 0.6), (5, 1.0)):
        reference = Reference(when="live", every=every, share=share)
        _, metrics = toy.run(preference, config(tmp_path, steps=21, reference=reference), tmp_path / f"{every}-{share}")
        far[every, share] = metrics[-1]["eval_logp_chosen"] - metrics[-1]["eval_logp_rejected"]
        if share == 1.0:
            assert all(abs(metrics[i]["margin"]) < 1e-5 for i in (5, 10, 15, 20))
    assert far[5, 1.0] > far[0, 0.6] and far[5, 0.6] > far[0, 0.6]


def test_another_model_as_reference(tmp_path):
    """Then the first step does not stand at log 2."""
    other = toy.model(tmp_path / "other", 9)
    for when in ("before", "live"):
        cfg = config(tmp_path, steps=1, reference=Reference(model=other, when=when))
        metrics = toy.run(preference, cfg, tmp_path / when)[1]
        assert abs(metrics[0]["margin"]) > 1e-3


@pytest.mark.parametrize(("place", "at"), [("step", 4), ("_append", 7)])
def test_a_killed_run_with_a_moving_reference_ends_in_the_same_bits(tmp_path, monkeypatch, place, at):
    run = RunConfig(threads=1, save_every=2, samples=1)
    cfg = config(tmp_path, steps=7, eval_every=3, run=run, reference=Reference(when="live", every=3, share=0.5))
    ends_in_the_same_bits(preference, cfg, tmp_path, monkeypatch, place, at)


def test_references_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match='Set reference.when = "live"'):
        Reference(every=5)
    with pytest.raises(ConfigError, match='loss "simpo" has no reference'):
        config(tmp_path, loss=PreferenceLoss(name="simpo"), reference=Reference(when="live"))
    cfg = config(tmp_path, lora=Lora(rank=2), reference=Reference(when="live", every=2, share=0.5))
    with pytest.raises(ConfigError, match="share of their two factors"):
        toy.run(preference, cfg, tmp_path / "run")


if __name__ == "__main__":
    for name, metrics in THRESHOLDS.items():
        toy.record(**{f"{name} {m}": lambda s, f, n=name, m=m: learn(n, m, s, f) for m in metrics})
    for name in MENU:
        LOSSES[name] = from_menu(name)
        toy.record(**{name: lambda s, f, n=name: learn(n, "eval_accuracy", s, f)})
