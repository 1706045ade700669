"""Trust regions against dense linear algebra on small problems, and the worked natural gradient of a softmax."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.trust_region import (
    conjugate_gradient,
    fisher_product,
    line_search,
    natural_step,
    score_product,
    step_size,
)

STATES, FEATURES, ACTIONS = 7, 3, 4


@pytest.fixture
def policy():
    """A two-layer policy of 3·5 + 5·4 = 35 parameters on seven states: flat parameters -> log-probabilities."""
    x = torch.randn(STATES, FEATURES)

    def logp(theta):
        hidden = torch.tanh(x @ theta[:15].view(FEATURES, 5))
        return torch.log_softmax(hidden @ theta[15:].view(5, ACTIONS), -1)

    return logp, torch.randn(35)


def mean_kl(logp, theta):
    old = logp(theta).detach()
    return lambda new: (old.exp() * (old - logp(new))).sum(-1).mean()


def fisher(logp, theta):
    """Σ_s mean Σ_a p g gᵀ, from the Jacobian of every log-probability."""
    jacobian = torch.autograd.functional.jacobian(logp, theta).view(STATES * ACTIONS, -1)
    p = logp(theta).exp().reshape(-1) / STATES
    return jacobian.T @ (p[:, None] * jacobian)


def test_fisher_product_is_the_hessian_of_the_kl_and_the_outer_product_of_scores(policy):
    logp, theta = policy
    kl, dense = mean_kl(logp, theta), fisher(logp, theta)
    torch.testing.assert_close(torch.autograd.functional.hessian(kl, theta), dense)
    for v in torch.randn(3, 35):
        torch.testing.assert_close(fisher_product(kl, theta, v), dense @ v)
        torch.testing.assert_close(fisher_product(kl, theta, v, damping=0.3), dense @ v + 0.3 * v)


def test_score_product_is_the_weighted_outer_product(policy):
    logp, theta = policy
    action = torch.randint(0, ACTIONS, (STATES, 1))
    weights = torch.rand(STATES)

    def sampled(at):
        return logp(at).gather(1, action)[:, 0]

    jacobian = torch.autograd.functional.jacobian(sampled, theta)
    dense = jacobian.T @ (weights[:, None] * jacobian)
    for v in torch.randn(3, 35):
        torch.testing.assert_close(score_product(sampled, theta, v, weights), dense @ v)
        torch.testing.assert_close(score_product(sampled, theta, v, weights, damping=0.3), dense @ v + 0.3 * v)
    one = torch.zeros(STATES)
    one[2] = 1
    torch.testing.assert_close(score_product(sampled, theta, v, one), jacobian[2] * (jacobian[2] @ v))


def test_both_products_agree_in_expectation(policy):
    """Every action of every state, weighted by its probability, is the expectation over samples."""
    logp, theta = policy
    v, weights = torch.randn(35), logp(theta).exp().detach().reshape(-1) / STATES
    by_scores = score_product(lambda at: logp(at).reshape(-1), theta, v, weights)
    torch.testing.assert_close(by_scores, fisher_product(mean_kl(logp, theta), theta, v))


def test_a_softmax_and_no_grad():
    z, v = torch.randn(5), torch.randn(5)
    p = torch.softmax(z, 0)

    def kl(new):
        return (p * (p.log() - torch.log_softmax(new, 0))).sum()

    with torch.no_grad():
        found = fisher_product(kl, z, v)
        sampled = score_product(lambda at: torch.log_softmax(at, 0), z, v, p)
    torch.testing.assert_close(found, p * v - p * (p @ v))
    torch.testing.assert_close(sampled, found)
    for make in (
        lambda z, v, w: fisher_product(kl, z, v, damping=0.1),
        lambda z, v, w: score_product(lambda at: torch.log_softmax(at, 0), z, v, w, damping=0.1),
    ):
        assert not make(*(x.clone().requires_grad_() for x in (z, v, p))).requires_grad
        assert not make(z, v, p).requires_grad and not (z.requires_grad or v.requires_grad or p.requires_grad)


def positive(size):
    a = torch.randn(size, size)
    return a @ a.T + 0.5 * torch.eye(size)


def test_conjugate_gradient_solves():
    f, b = positive(8), torch.randn(8)
    found = conjugate_gradient(lambda v: f @ v, b, iterations=20, tolerance=1e-24)
    torch.testing.assert_close(found, torch.linalg.solve(f, b), rtol=1e-7, atol=1e-9)
    two = torch.diag(torch.tensor([2.0, 2, 5, 5, 5]))  # two eigenvalues: two iterations
    b = torch.randn(5)
    torch.testing.assert_close(conjugate_gradient(lambda v: two @ v, b, iterations=2), b / two.diagonal())


def test_conjugate_gradient_step_by_step():
    """The first two iterates are the minimisers of ½xᵀFx - bᵀx over the Krylov spaces, from dense algebra."""
    f, b = positive(6), torch.randn(6)
    for k in (1, 2, 3):
        basis = torch.stack([torch.linalg.matrix_power(f, i) @ b for i in range(k)], 1)
        expected = basis @ torch.linalg.solve(basis.T @ f @ basis, basis.T @ b)
        torch.testing.assert_close(conjugate_gradient(lambda v: f @ v, b, iterations=k, tolerance=0.0), expected)


def test_conjugate_gradient_counts_its_products_and_stops():
    f, calls = positive(8), []

    def product(v):
        calls.append(v)
        return f @ v

    b = torch.randn(8)
    conjugate_gradient(product, b, iterations=3)
    assert len(calls) == 3
    calls.clear()
    loose = conjugate_gradient(product, b, iterations=50, tolerance=1e-4)
    assert len(calls) < 9 and (f @ loose - b).square().sum() <= 1e-4 * b.square().sum()
    tiny = conjugate_gradient(product, 1e-9 * b, iterations=50)  # a small gradient is solved like a large one
    torch.testing.assert_close(tiny, 1e-9 * conjugate_gradient(product, b, iterations=50), rtol=1e-6, atol=0)
    assert not conjugate_gradient(product, torch.zeros(8)).any()
    calls.clear()
    assert not conjugate_gradient(lambda v: calls.append(v) or -v, b).any() and len(calls) == 1


def test_step_size():
    assert step_size(torch.tensor([2.0]), torch.tensor([2.0]), delta=0.02).item() == pytest.approx(0.1)
    f, x = positive(5), torch.randn(5)
    step = step_size(x, f @ x, delta=0.03) * x
    assert (step @ f @ step / 2).item() == pytest.approx(0.03)
    for flat in (torch.zeros(2), -torch.ones(2)):
        assert step_size(torch.ones(2), flat, delta=0.01).item() == 0


def test_natural_gradient_of_a_softmax_worked():
    z, advantage = torch.zeros(3), torch.tensor([1.0, 0, -1])
    p = torch.full((3,), 1 / 3)
    gradient = p * (advantage - p @ advantage)
    assert gradient.tolist() == pytest.approx([1 / 3, 0, -1 / 3])

    def kl(new):
        return (p * (p.log() - torch.log_softmax(new, 0))).sum()

    step = natural_step(gradient, lambda v: fisher_product(kl, z, v), delta=0.01)
    assert [round(x, 6) for x in step.tolist()] == [0.173205, 0, -0.173205]
    assert [round(x, 6) for x in torch.softmax(step, 0).tolist()] == [0.392436, 0.330025, 0.277539]
    assert round(kl(step).item(), 6) == 0.009975


def test_natural_step_on_a_network(policy):
    """Predicted KL is δ, the actual one within a fifth, and no other direction of that KL gains more."""
    logp, theta = policy
    kl, advantage = mean_kl(logp, theta), torch.randn(STATES, ACTIONS)
    at = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((logp(at).exp() * advantage).sum(-1).mean(), at)
    dense = fisher(logp, theta) + 0.1 * torch.eye(35)
    step = natural_step(
        gradient, lambda v: fisher_product(kl, theta, v, damping=0.1), delta=0.01, iterations=40, tolerance=1e-20
    )
    x = torch.linalg.solve(dense, gradient)
    torch.testing.assert_close(step, math.sqrt(0.02 / (x @ dense @ x)) * x, rtol=1e-6, atol=1e-9)
    assert (step @ dense @ step / 2).item() == pytest.approx(0.01)
    assert 0 < kl(theta + step).item() < 0.012
    for _ in range(5):
        other = torch.randn(35)
        other = step_size(other, dense @ other, delta=0.01) * other
        assert gradient @ other < gradient @ step
    assert not natural_step(torch.zeros(35), lambda v: dense @ v, delta=0.01).any()


def test_line_search_takes_the_first_that_passes():
    theta, step, seen = torch.ones(2), torch.tensor([4.0, 0]), []

    def evaluate(at):
        seen.append(at)
        moved = (at - theta).norm().item()
        return 1 - abs(moved - 2), moved**2 / 100  # gains from 1 to 3, KL 0.04 at 2

    found = line_search(evaluate, theta, step, delta=0.04, shrink=0.5)
    assert found.trial == 1 and found.theta.tolist() == [3, 1] and (found.gain, found.kl) == (1, 0.04)
    assert len(seen) == 2 and theta.tolist() == [1, 1]
    assert line_search(evaluate, theta, step, delta=0.16, shrink=0.5).trial == 1  # the full step gains nothing
    assert line_search(evaluate, theta, step, delta=0.027, shrink=0.5).trial == 2
    assert line_search(evaluate, theta, step, delta=0.027, shrink=0.5, slack=1.5).trial == 1
    refused = line_search(evaluate, theta, step, delta=0.001, shrink=0.5, tries=3)
    assert refused == (theta, None, 0.0, 0.0)
    assert line_search(evaluate, theta, step, delta=0.04, shrink=0.5, tries=1).trial is None
    assert line_search(lambda at: (0.0, 0.0), theta, step, delta=0.04).trial == 0


def test_line_search_refuses_nan():
    for answer in ((math.nan, 0.0), (1.0, math.nan)):
        assert line_search(lambda at, a=answer: a, torch.zeros(1), torch.ones(1), delta=0.1).trial is None


def test_a_quadratic_kl_is_accepted_at_half():
    found = line_search(lambda at: (1.0, float(at @ at) / 2), torch.zeros(1), torch.tensor([2.0]), delta=0.5)
    assert 0.8**found.trial <= 0.5 < 0.8 ** (found.trial - 1)


def test_refusals():
    with pytest.raises(ConfigError, match="needs one at least"):
        conjugate_gradient(lambda v: v, torch.ones(1), iterations=0)
    with pytest.raises(ConfigError, match="positive radius"):
        step_size(torch.ones(1), torch.ones(1), delta=0.0)
    for options in ({"shrink": 1.0}, {"shrink": 0.0}, {"tries": 0}):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            line_search(lambda at: (1.0, 0.0), torch.zeros(1), torch.ones(1), delta=0.1, **options)
    with pytest.raises(ShapeError):
        fisher_product(lambda t: t.sum(), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError):
        score_product(lambda t: t, torch.zeros(2), torch.zeros(2), torch.zeros(3))
