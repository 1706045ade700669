"""Learning rates: the formulas, the edges, and agreement with Hugging Face's decay where it is installed."""

import math

import pytest

from posttrain.errors import ConfigError
from posttrain.train.schedule import Schedule, lr, warmup_steps


def curve(steps=100, **kind):
    return [lr(t, Schedule(**kind), peak=2.0, steps=steps) for t in range(steps)]


def test_constant_is_constant():
    assert set(curve()) == {2.0}


def test_warmup_rises_by_equal_steps_and_never_starts_at_zero():
    values = curve(warmup=10)
    assert values[:10] == pytest.approx([0.2 * (t + 1) for t in range(10)], rel=1e-15)
    assert set(values[10:]) == {2.0}


@pytest.mark.parametrize(
    "warmup, steps, expected", [(0.03, 100, 3), (0.03, 101, 4), (5, 10, 5), (0, 10, 0), (1, 10, 1)]
)
def test_a_share_is_rounded_up(warmup, steps, expected):
    assert warmup_steps(Schedule(warmup=warmup), steps) == expected


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_goes_from_peak_to_final(kind):
    values = curve(kind=kind, warmup=10, final=0.1)
    assert values[10] == 2.0 and max(values) == 2.0
    assert all(a > b for a, b in zip(values[10:], values[11:], strict=False))
    assert lr(100, Schedule(kind=kind, warmup=10, final=0.1), peak=2.0, steps=100) == pytest.approx(0.2, rel=1e-12)
    assert values[55] == pytest.approx(2.0 * 0.55, rel=1e-12)  # both are half-way down in the middle of the decay


def test_wsd_is_flat_and_then_falls_in_the_last_share():
    values = curve(kind="wsd", warmup=10, decay=0.2)
    assert set(values[9:81]) == {2.0}
    assert values[80:] == pytest.approx([2.0 * (1 - i / 20) for i in range(20)], rel=1e-12)


def test_past_the_end_the_last_value_stays():
    schedule = Schedule(kind="cosine", final=0.1)
    assert lr(150, schedule, peak=1.0, steps=100) == lr(100, schedule, peak=1.0, steps=100)


def test_a_run_shorter_than_its_warmup_has_no_decay():
    assert curve(steps=4, kind="linear", warmup=8) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_decay_is_hugging_faces(kind):
    optimization = pytest.importorskip("transformers.optimization")
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = optimization.get_scheduler(kind, optimizer, num_warmup_steps=10, num_training_steps=100)
    ours = curve(kind=kind, warmup=10)
    for t in range(100):
        if t >= 10:  # their warm-up begins at zero, ours one step later
            assert ours[t] == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        theirs.step()
    assert math.isclose(ours[10], 2.0)


@pytest.mark.parametrize("wrong", [{"warmup": -1}, {"decay": 0}, {"final": 2}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Schedule(**wrong)
