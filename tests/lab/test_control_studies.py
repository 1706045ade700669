"""The studies on control tasks measure what they say, on the smallest of settings, and read it as they should."""

import pytest
import torch

pytest.importorskip("gymnasium", reason="control tasks need the extra control")

from posttrain.lab import control_runs  # noqa: E402
from posttrain.lab.golden import control_ppo, control_reinforce, segments, trpo  # noqa: E402
from posttrain.lab.studies import comparisons_asked, control_gradients, trust_regions  # noqa: E402


def test_moments_know_a_moved_mean_from_noise():
    torch.manual_seed(0)
    plain = 2 + torch.randn(400, 5)
    found = control_runs.moments({"plain": plain, "less": 2 + (plain - 2) / 2, "moved": plain + 1}, "plain")
    assert found["variance, plain"] == pytest.approx(5 / 20, rel=0.3)
    assert found["variance, less"] == pytest.approx(found["variance, plain"] / 4, rel=0.01)
    assert abs(found["distance, less"]) < 0.01 and found["distance, plain"] == 0
    assert found["distance, moved"] == pytest.approx(5 / 20, rel=0.3)


@pytest.mark.parametrize("sign", [1, 0, -1])
def test_a_comparison_is_seen_on_its_side_alone(sign):
    up = control_runs.compare("x", [2.0, 3.1, 4.0], [1.0, 2.0, 3.0], "x", sign=sign)
    none = control_runs.compare("x", [2.0, 1.0, 3.0], [1.0, 2.0, 3.0], "x", sign=sign)
    assert up.seen is (sign == 1) and none.seen is (sign == 0) and up.low <= up.after - up.before <= up.high


def test_gradients_on_the_same_batches(tmp_path):
    size = {"steps": 1, "batches": 3, "gamma": 1.0}
    found = control_gradients.baselines(size, 7, tmp_path / "a")
    assert found["variance, total, none"] != found["variance, none"] and found["distance, none"] == 0
    lambdas = control_gradients.lambdas(size, 7, tmp_path / "b")
    assert lambdas["distance, 1.0"] == 0 and lambdas["distance, 0.0"] != 0


def test_the_step_size_is_chosen_on_seeds_that_are_not_reported():
    good, bad = (dict.fromkeys(("mean", "kl", "seconds", "passes"), x) for x in (0.9, 0.1))
    cells = {name: dict.fromkeys(trust_regions.STUDY.seeds, bad) for name in trust_regions.STUDY.arms}
    cells["ppo 0.003"] = {s: good if s in trust_regions.SEARCH else bad for s in trust_regions.STUDY.seeds}
    assert trust_regions.best(cells, "ppo") == "ppo 0.003"
    assert all(f.after == pytest.approx(0.1) for f in trust_regions.read(cells))


@pytest.mark.slow
@pytest.mark.parametrize("module", [control_ppo, control_reinforce, segments, trpo, comparisons_asked, trust_regions])
def test_a_cell_of_each_can_be_measured_and_read(module, tmp_path):
    study, cells = module.STUDY, {}
    for i, (arm, settings) in enumerate(study.arms.items()):
        cells[arm] = dict.fromkeys(study.seeds, study.measure({**settings, "steps": 3}, 7, tmp_path / str(i)))
    assert all(f.text and f.low <= f.high for f in study.read(cells))
