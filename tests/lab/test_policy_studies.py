"""The policy-gradient studies measure what they say, on the smallest of settings, and read it as they should."""

import pytest

from posttrain.lab.golden import ppo as golden
from posttrain.lab.studies import baseline, clip_epochs, kl_controller, ppo_forms, ppo_ptx, ppo_rloo

MENU = (baseline, clip_epochs, kl_controller, ppo_forms, ppo_ptx, ppo_rloo)


def test_gradients_under_three_baselines_of_the_same_answers(tmp_path):
    found = baseline.measure({"prompts": 4, "batches": 4}, 7, tmp_path)
    assert all(found[f"variance, {b}"] > 0 for b in baseline.BASELINES) and found["distance, none"] == 0
    assert found["variance, leave_one_out"] < found["variance, none"]  # nine of ten answers are right


def test_a_baseline_that_moves_the_mean_would_show():
    seeds = {s: {f"{what}, {b}": 1.0 + 0.01 * s for what in ("variance", "distance") for b in baseline.BASELINES}
             | {"square": 1.0} for s in range(3)}  # fmt: skip
    seen = {f.what: f.seen for f in baseline.read({"facts": seeds})}
    assert not seen["mean, running"] and not seen["variance, running"]


def test_the_step_size_is_chosen_on_seeds_that_are_not_reported():
    good, bad = {"mean": 0.9, "last": 0.9}, {"mean": 0.1, "last": 0.1}
    cells = {arm: dict.fromkeys(ppo_rloo.STUDY.seeds, bad) for arm in ppo_rloo.STUDY.arms}
    cells["ppo 0.001"] = {s: (good if s in ppo_rloo.SEARCH else bad) for s in ppo_rloo.STUDY.seeds}
    assert ppo_rloo.best(cells, "ppo") == "ppo 0.001"
    for figure in ppo_rloo.read(cells):
        assert figure.after == pytest.approx(0.1) and not figure.seen


@pytest.mark.slow
@pytest.mark.parametrize("module", [*MENU, golden], ids=lambda m: m.STUDY.name)
def test_a_cell_of_each_can_be_measured_and_read(module, tmp_path):
    study, small = module.STUDY, {"steps": 4, "prompts": 4, "batches": 2}
    cells = {}
    for arm, settings in study.arms.items():
        changed = {k: small.get(k, v) for k, v in settings.items()}
        found = study.measure(changed, 7, tmp_path / arm.replace(" ", "-").replace("/", "-"))
        cells[arm] = dict.fromkeys(study.seeds, found)
    assert all(f.text and f.low <= f.high for f in study.read(cells))
