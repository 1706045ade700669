"""Leash, tie and bonus: which records mean something, the penalty against loops, and the controllers by hand."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.regularizers import (
    Entropy,
    Kl,
    Proximal,
    next_beta,
    next_entropy,
    next_proximal,
    proximal_penalty,
)


def test_the_penalty_with_a_pencil():
    moved, mask = torch.tensor([[0.1, 9.0, 0.3]]), torch.tensor([[True, False, True]])
    for estimator, level, expected in (
        ("k2", "token", [0.005, 0, 0.045]),
        ("k2", "sequence", [0.04, 0, 0.04]),
        ("abs", "token", [0.1, 0, 0.3]),
        ("abs", "sequence", [0.2, 0, 0.2]),
        ("k3", "token", [math.exp(0.1) - 1.1, 0, math.exp(0.3) - 1.3]),
        ("k3", "sequence", [(math.exp(0.4) - 1.4) / 2, 0, (math.exp(0.4) - 1.4) / 2]),
    ):
        assert proximal_penalty(moved, mask, estimator, level)[0].tolist() == pytest.approx(expected), estimator
        assert (proximal_penalty(-moved, mask, estimator, level)[0, 1] == 0).all()
    assert proximal_penalty(-moved, mask, "abs")[0, 2] == 0.3


def test_the_slope_of_each_penalty():
    """At log ρ = x: k2 has slope x, abs its sign, k3 ρ - 1, which is what kl(old ‖ policy) asks for."""
    for estimator, slope in (("k2", 0.3), ("abs", 1.0), ("k3", math.expm1(0.3))):
        x = torch.tensor([[0.3]], requires_grad=True)
        proximal_penalty(x, torch.ones(1, 1).bool(), estimator).sum().backward()
        assert math.isclose(x.grad.item(), slope)


def test_k3_estimates_the_kl_from_the_old_policy():
    p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    penalty = proximal_penalty((q - p)[None], torch.ones(1, 3).bool(), "k3")
    assert math.isclose((p.exp() * penalty).sum(), (p.exp() * (p - q)).sum(), rel_tol=1e-9)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["k2", "k3", "abs"])
def test_the_penalty_under_gradcheck_junk_and_extremes(estimator, level):
    moved = torch.randn(3, 4) + 0.01
    mask = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    assert torch.autograd.gradcheck(lambda x: proximal_penalty(x, mask, estimator, level), (moved.requires_grad_(),))
    clean = proximal_penalty(moved, mask, estimator, level)
    spoiled = torch.where(mask, moved, math.nan)
    torch.testing.assert_close(proximal_penalty(spoiled, mask, estimator, level), clean, atol=0, rtol=0)
    far = torch.tensor([[1e4, -1e4]], dtype=torch.float32, requires_grad=True)
    for sign in (1, -1):
        penalty = proximal_penalty(sign * far[:, :1], torch.ones(1, 1).bool(), estimator, level)
        (slope,) = torch.autograd.grad(penalty.sum(), far)
        assert torch.isfinite(penalty).all() and torch.isfinite(slope).all()


def test_next_beta_moves_only_with_a_target():
    assert next_beta(Kl(where="reward", estimator="k1", beta=0.1), 0.1, 50.0, 512) == 0.1
    assert math.isclose(next_beta(Kl(where="loss", beta=0.15, target=6.0), 0.15, 20.0, 512), 0.151536)
    assert math.isclose(next_beta(Kl(where="loss", beta=0.15, target=6.0, horizon=1000), 0.15, 20.0, 512), 0.16536)


def test_next_proximal_doubles_and_halves():
    tie = Proximal(estimator="k3", weight=1.0, target=0.01)
    assert [next_proximal(tie, 1.0, kl) for kl in (0.005, 0.01, 0.02)] == [0.5, 1.0, 2.0]
    assert next_proximal(Proximal(estimator="k3", weight=1.0), 0.7, 9.0) == 0.7


def test_next_entropy_walks_and_gates():
    bonus = Entropy(target=0.2)
    assert next_entropy(bonus, 0.0, 0.1) == (0.005, 0.005)
    assert next_entropy(bonus, 0.0, 0.2) == (0.005, 0.005)
    assert next_entropy(bonus, 0.0, 0.3) == (0.0, 0.0)
    weight, acts = next_entropy(bonus, 0.02, 0.3)
    assert math.isclose(weight, 0.015) and acts == 0
    assert next_entropy(Entropy(target=0.2, highest=0.01, delta=0.1), 0.0, 0.1) == (0.01, 0.01)
    assert next_entropy(Entropy(weight=0.3), 0.3, 0.0) == (0.3, 0.3)


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Kl(beta=0.1), 'Set kl.where to "reward" or "loss"'),
        (lambda: Kl(where="loss"), "GRPO 0.04"),
        (lambda: Kl(where="loss", beta=-1.0), "GRPO 0.04"),
        (lambda: Kl(where="loss", estimator="k1", beta=0.1), "gradient 0 in expectation"),
        (lambda: Kl(where="reward", estimator="k3+", beta=0.1), "no gradient to correct"),
        (lambda: Kl(where="reward", estimator="k1", beta=0.1, corrected=True), "no gradient to correct"),
        (lambda: Kl(where="loss", beta=0.1, target=0.0), "must be positive"),
        (lambda: Kl(where="loss", beta=0.1, horizon=5), "without kl.target"),
        (lambda: Kl(where="loss", beta=0.1, target=6.0, horizon=0), "positive number"),
        (lambda: Kl(where="inside"), "is not one of none"),
        (lambda: Kl(estimator="k5"), "is not one of k1"),
        (lambda: Proximal(estimator="k1"), "is not one of none, k2"),
        (lambda: Proximal(estimator="k2", level="answer", weight=1.0), "is not one of token, sequence"),
        (lambda: Proximal(weight=0.1), "change nothing"),
        (lambda: Proximal(estimator="k2"), "positive weight"),
        (lambda: Proximal(estimator="abs", weight=1.0, share=1.0), "between 0 and 1"),
        (lambda: Proximal(estimator="abs", weight=1.0, share=0.1, level="sequence"), "one by one"),
        (lambda: Proximal(estimator="k3", weight=1.0, target=0.0), "must be positive"),
        (lambda: Entropy(weight=-0.1), "collapse"),
        (lambda: Entropy(delta=0.1), "without entropy.target"),
        (lambda: Entropy(highest=2.0), "without entropy.target"),
        (lambda: Entropy(target=0.0), "must be positive"),
        (lambda: Entropy(target=0.2, delta=-0.1), "must be positive"),
        (lambda: Entropy(target=0.2, weight=2.0), "no more than highest"),
        (lambda: proximal_penalty(torch.zeros(1, 1), torch.ones(1, 1).bool(), "kl"), "is not one of k2, k3, abs"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_the_ends_of_what_is_allowed():
    assert Kl(where="loss", beta=0.1, target=0.5, horizon=1).horizon == 1
    assert Entropy(target=0.1, weight=1.0, highest=1.0).weight == 1.0
    for make in (
        lambda: Proximal(estimator="abs", weight=1.0, share=0.0),
        lambda: Entropy(target=0.2, delta=0.0),
        lambda: Entropy(target=-0.2),
    ):
        with pytest.raises(ConfigError):
            make()


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        proximal_penalty(torch.zeros(2, 3), torch.ones(2, 2).bool(), "k2")


def test_the_penalty_of_an_answer_of_one_token():
    moved, mask = torch.tensor([[0.0, 0.4, 0.0]]), torch.tensor([[False, True, False]])
    assert proximal_penalty(moved, mask, "k2", "sequence").tolist() == [[0.0, pytest.approx(0.08), 0.0]]
