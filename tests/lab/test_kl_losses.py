"""The study of estimators as losses, on a tiny setting; the gradients that theory says."""

import pytest
import torch

from posttrain.lab.studies import kl_losses
from posttrain.objectives.kl import forward_kl, reverse_kl


def test_each_loss_on_few_steps(tmp_path):
    settings = dict(kl_losses.STUDY.arms["tables"]) | {"steps": 20, "every": 20}
    found = [kl_losses.measure(settings, seed, tmp_path) for seed in (10, 11)]
    for run in found:
        assert run["steps"] == [0, 20]
        assert run["reverse, k2"][1] < run["reverse, k2"][0] and run["reverse, k2"] == pytest.approx(
            run["reverse, reward"]
        )
    assert len(kl_losses.read({"tables": dict(enumerate(found))})) == 5


@pytest.mark.parametrize("name, kl", [("k2", reverse_kl), ("k3", forward_kl), ("reward", reverse_kl), ("k1", None)])
def test_the_mean_of_a_loss_s_gradient(name, kl):
    """Very many samples: the gradient that theory says, within five standard errors of the largest."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    policy = torch.randn(1, 4, generator=generator, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad(kl_losses.sampled_loss(policy, reference, name, 400_000, generator), policy)
    wanted = torch.zeros_like(found)
    if kl is not None:
        (wanted,) = torch.autograd.grad(kl(policy, reference).sum(), policy)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
