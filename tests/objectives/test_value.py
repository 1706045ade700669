"""The critic's loss: loops, PPO's clipping by hand, and what must not change it."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.value import value_loss


def data(n=4, t=6):
    mask = torch.rand(n, t) < 0.7
    mask[:, 1] = True
    values = torch.randn(n, t)
    return values, values + 0.5 * torch.randn(n, t), values + torch.randn(n, t), mask


@pytest.mark.parametrize("clip", [None, 0.2, 0.6])
def test_value_loss_against_loops(clip):
    values, old, targets, mask = data()
    loss, metrics = value_loss(values, old, targets, mask, clip=clip)
    held = 0
    for n, t in mask.nonzero().tolist():
        v, o, r = float(values[n, t]), float(old[n, t]), float(targets[n, t])
        expected = (v - r) ** 2
        if clip is not None:
            near = (o + min(max(v - o, -clip), clip) - r) ** 2
            held += near > expected
            expected = max(expected, near)
        assert math.isclose(loss[n, t], expected / 2, rel_tol=1e-12)
    assert not loss[~mask].any()
    count = int(mask.sum())
    mean = {name: float(s) / float(n) for name, (s, n) in metrics.items()}
    assert math.isclose(mean["value_loss"], float(loss.sum()) / count)
    assert math.isclose(mean["value_mean"], float(values[mask].mean())) and math.isclose(
        mean["return_mean"], float(targets[mask].mean())
    )
    assert ("value_clip_share" in mean) == (clip is not None)
    if clip is not None:
        assert math.isclose(mean["value_clip_share"], held / count) and held > 0


def test_value_clipping_freezes_a_critic_that_is_almost_right():
    v = torch.tensor([[1.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = value_loss(v, torch.tensor([[0.2]]), torch.tensor([[0.9]]), mask, clip=0.2)
    loss.sum().backward()
    assert math.isclose(loss.item(), 0.125) and v.grad == 0
    plain, _ = value_loss(v, torch.tensor([[0.2]]), torch.tensor([[0.9]]), mask)
    assert math.isclose(plain.item(), 0.005)


def test_at_the_old_values_clipping_does_nothing():
    values, _, targets, mask = data()
    for clip in (None, 0.1):
        leaf = values.clone().requires_grad_()
        loss, _ = value_loss(leaf, values, targets, mask, clip=clip)
        loss.sum().backward()
        torch.testing.assert_close(leaf.grad, (values - targets) * mask)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_gradcheck_junk_and_extremes(clip):
    values, old, targets, mask = data()
    assert torch.autograd.gradcheck(
        lambda x: value_loss(x, old, targets, mask, clip=clip)[0], (values.clone().requires_grad_(),)
    )
    clean, _ = value_loss(values, old, targets, mask, clip=clip)
    spoiled = [torch.where(mask, x, math.nan) for x in (values, old, targets)]
    torch.testing.assert_close(value_loss(*spoiled, mask, clip=clip)[0], clean, atol=0, rtol=0)
    leaves = [x.clone().requires_grad_() for x in (values, old, targets)]
    value_loss(*leaves, mask, clip=clip)[0].sum().backward()
    assert leaves[1].grad is None and leaves[2].grad is None
    for total, count in value_loss(*leaves, mask, clip=clip)[1].values():
        assert not total.requires_grad and count == mask.sum()
    empty, metrics = value_loss(values, old, targets, mask & False, clip=clip)
    assert not empty.any() and metrics["value_loss"][1] == 0


def test_refusals():
    v = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match="units of reward"):
        value_loss(v, v, v, torch.ones(1, 1).bool(), clip=0.0)
    with pytest.raises(ShapeError):
        value_loss(v, v, v[0], torch.ones(1, 1).bool())
