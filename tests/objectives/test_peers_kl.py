"""How verl and OpenRLHF hold KL estimates back, by hand; `tests/oracles` compares with their own numbers."""

import math

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.objectives.kl import ESTIMATORS, kl_estimate
from posttrain.objectives.peers.kl import openrlhf_kl, openrlhf_unbiased_kl, verl_kl, verl_masked_mean


def value_and_slope(f, r):
    leaf = torch.tensor(float(r), requires_grad=True)
    value = f(leaf)
    value.backward()
    return value.item(), leaf.grad.item()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_near_equality_nobody_holds_anything(estimator):
    for r in (-1.0, 0.3, 2.0):
        expected = value_and_slope(lambda x: kl_estimate(x, estimator), r)
        assert value_and_slope(lambda x: verl_kl(x, estimator), r) == expected
        assert value_and_slope(lambda x: openrlhf_kl(x, estimator), r) == expected


def test_verl_holds_k3_alone():
    for r in (-3.0, -25.0, -1e4, 15.0, 25.0):
        assert value_and_slope(lambda x: verl_kl(x, "k3"), r) == (10.0, 0.0)
        assert value_and_slope(lambda x: verl_kl(x, "k3+"), r) == (10.0, r)
        assert value_and_slope(lambda x: verl_kl(x, "k1"), r) == (r, 1.0)
        assert value_and_slope(lambda x: verl_kl(x, "k2"), r) == (r * r / 2, r)


def test_openrlhf_holds_all():
    assert value_and_slope(lambda x: openrlhf_kl(x, "k1"), -12.0) == (-10.0, 0.0)
    assert value_and_slope(lambda x: openrlhf_kl(x, "k2"), -5.0) == (10.0, 0.0)
    assert value_and_slope(lambda x: openrlhf_kl(x, "k3"), -1e4) == (10.0, 0.0)
    assert value_and_slope(lambda x: openrlhf_kl(x, "k1"), -9.0) == (-9.0, 1.0)


def test_openrlhf_unbiased_has_the_weighted_slope_of_k2():
    drift = torch.tensor(3.0).log()
    for estimator, value in (("k1", 2.0), ("k2", 2.0), ("k3", math.exp(-2) + 1)):
        found, slope = value_and_slope(lambda x, e=estimator: openrlhf_unbiased_kl(x, drift, e), 2.0)
        assert math.isclose(found, value, rel_tol=1e-12) and math.isclose(slope, 6.0, rel_tol=1e-12)
    far = value_and_slope(lambda x: openrlhf_unbiased_kl(x, torch.tensor(5.0), "k2"), -6.0)
    assert far == (10.0, -60.0)  # the value held at 10, the weight e^5 at 10, the slope of k2 free


def test_verl_mean_is_a_little_small():
    values, mask = torch.tensor([[1.0, math.nan, 1.0]]), torch.tensor([[True, False, True]])
    assert verl_masked_mean(values, mask) == 2 / (2 + 1e-8)
    assert verl_masked_mean(values, mask & False) == 0


def test_unknown_estimator():
    for f in (verl_kl, openrlhf_kl):
        with pytest.raises(ConfigError, match="k1, k2, k3"):
            f(torch.zeros(1), "k4")
