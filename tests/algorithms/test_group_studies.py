"""Studies of the group family at a tiny size: every arm's settings make a config, and what is measured can be read."""

import math

import pytest

from posttrain.lab.golden import group, presets
from posttrain.lab.studies import (
    clip_higher,
    dynamic_sampling,
    group_size,
    length_bias,
    longer_answers,
    pass_at_k_training,
    stale_samples,
)

MODULES = (
    group,
    presets,
    dynamic_sampling,
    stale_samples,
    clip_higher,
    group_size,
    length_bias,
    longer_answers,
    pass_at_k_training,
)
FAST = (presets, stale_samples)


def measured_and_read(module, arm: str, folder) -> None:
    """One arm at two steps; the same figures, a little apart, stand for all arms and seeds."""
    study = module.STUDY
    settings = {**study.arms[arm], "steps": 2}
    settings |= {"problems": 4} if "problems" in settings else {}
    figures = study.measure(settings, 7, folder)
    assert all(math.isfinite(x) for v in figures.values() for x in (v if isinstance(v, list) else [v]))

    def apart(x: float, i: int, seed: int) -> float:
        return x + 0.1 * i + 0.01 * seed**2

    cells = {
        name: {s: {k: apart(v, i, s) for k, v in figures.items() if not isinstance(v, list)} for s in study.seeds}
        for i, name in enumerate(study.arms)
    }
    found = study.read(cells)
    assert len({f.what for f in found}) == len(found) >= 1
    for f in found:
        assert f.low <= f.high and isinstance(f.seen, bool) and f.text


@pytest.mark.parametrize("module", FAST, ids=lambda m: m.STUDY.name)
def test_a_study_measures_and_reads(module, tmp_path):
    measured_and_read(module, list(module.STUDY.arms)[-1], tmp_path / "cell")


@pytest.mark.slow
@pytest.mark.parametrize(("module", "arm"), [(m, arm) for m in MODULES for arm in m.STUDY.arms])
def test_every_arm_measures_and_reads(module, arm, tmp_path):
    measured_and_read(module, arm, tmp_path / "cell")
