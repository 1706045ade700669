"""Distributions against torch's own, and sampling against the distributions."""

import math

import torch
from torch import distributions

from posttrain.control.policies import Categorical, Gaussian

torch.manual_seed(0)
LOGITS, OTHER = torch.randn(5, 3).double(), torch.randn(5, 3).double()
MEAN, LOG_STD = torch.randn(5, 2).double(), 0.3 * torch.randn(5, 2).double()
MEAN2, LOG_STD2 = torch.randn(5, 2).double(), 0.3 * torch.randn(5, 2).double()


def test_choices_are_those_of_torch():
    ours, theirs, other = Categorical(LOGITS), distributions.Categorical(logits=LOGITS), Categorical(OTHER)
    action = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(ours.logp(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    expected = distributions.kl_divergence(theirs, distributions.Categorical(logits=OTHER))
    torch.testing.assert_close(ours.kl(other), expected)  # kl(ours ‖ other), not the reverse


def test_numbers_are_those_of_torch():
    ours, theirs = Gaussian(MEAN, LOG_STD), distributions.Normal(MEAN, LOG_STD.exp())
    action = torch.randn(5, 2).double()
    torch.testing.assert_close(ours.logp(action), theirs.log_prob(action).sum(1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(1))
    expected = distributions.kl_divergence(theirs, distributions.Normal(MEAN2, LOG_STD2.exp())).sum(1)
    torch.testing.assert_close(ours.kl(Gaussian(MEAN2, LOG_STD2)), expected)


def test_inversion_gives_each_choice_its_share():
    u = ((torch.arange(10_000) + 0.5) / 10_000)[:, None]
    action = Categorical(LOGITS[:1].expand(10_000, 3)).sample(u)
    share = torch.bincount(action, minlength=3) / 10_000
    torch.testing.assert_close(share.double(), LOGITS[0].softmax(0), atol=1e-4, rtol=0)
    assert Categorical(LOGITS).sample(torch.full((5, 1), 1 - 2.0**-53).double()).max() <= 2


def test_inversion_gives_the_normal_distribution():
    u = ((torch.arange(10_000) + 0.5) / 10_000)[:, None].double()
    x = Gaussian(torch.full((10_000, 1), 2.0).double(), torch.full((10_000, 1), math.log(0.5)).double()).sample(u)
    assert abs(float(x.mean()) - 2) < 1e-6 and abs(float(x.std()) - 0.5) < 1e-3
    assert bool(Gaussian(MEAN, LOG_STD).sample(torch.zeros(5, 2).double()).isfinite().all())
