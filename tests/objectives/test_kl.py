"""KL: exact values, what the estimators estimate (value and gradient), and the controller."""

import math

import oracle
import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.kl import (
    ESTIMATORS,
    adaptive_beta,
    forward_kl,
    jensen_shannon,
    kl_estimate,
    reverse_kl,
    sequence_kl,
    tilted,
)

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("case", oracle.cases("kl", "exact"))
def test_exact_kl_equals_the_oracle(case):
    case.check("reverse_kl", reverse_kl(case["logits"], case["ref_logits"]))
    case.check("forward_kl", forward_kl(case["logits"], case["ref_logits"]))


VERL = {"verl_k1": "k1", "verl_k2": "k2", "verl_k3": "k3", "verl_abs": "abs"}
VERL |= {"verl_k1_plus": "k1+", "verl_k3_plus": "k3+"}
OPENRLHF = {"openrlhf_k1": "k1", "openrlhf_k2": "k2", "openrlhf_k3": "k3"}


@pytest.mark.parametrize("case", oracle.cases("kl", *VERL, *OPENRLHF))
def test_estimators_equal_the_oracle(case):
    """Where the peers do not clamp: verl and OpenRLHF hold values to [-10, 10], and stop the gradient there."""
    logp = case.leaf("logps")
    value = kl_estimate(logp - case["ref_logps"], (VERL | OPENRLHF)[case.id.split("__")[1]])
    inside = value.detach().abs() < 10
    case.check("kl", value.clamp(-10, 10))
    (value * case["upstream"])[inside].sum().backward()
    expected = torch.where(inside, case.outputs["grad_logps"], 0.0)
    torch.testing.assert_close(logp.grad, expected, atol=case.atol, rtol=case.rtol)


def test_worked_numbers():
    p, q = P.log(), Q.log()
    assert round(reverse_kl(p, q).item(), 6) == 0.218012
    assert round(forward_kl(p, q).item(), 6) == 0.239278
    assert round(jensen_shannon(p, q).item(), 6) == 0.055582
    expected = {"k1": (0.693147, 0.182322, -0.916291), "k2": (0.240227, 0.016621, 0.419794)}
    expected["k3"] = (0.193147, 0.015655, 0.583709)
    for name, values in expected.items():
        assert [round(x, 6) for x in kl_estimate(p - q, name).tolist()] == list(values)


def test_exact_kl_against_loops():
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    for n in range(4):
        p, q = torch.softmax(a[n], 0).tolist(), torch.softmax(b[n], 0).tolist()
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]

        def kl(x, y):
            return sum(s * math.log(s / t) for s, t in zip(x, y, strict=True))

        assert math.isclose(reverse_kl(a, b)[n], kl(p, q), rel_tol=1e-12)
        assert math.isclose(forward_kl(a, b)[n], kl(q, p), rel_tol=1e-12)
        assert math.isclose(jensen_shannon(a, b)[n], (kl(p, m) + kl(q, m)) / 2, rel_tol=1e-12)


def test_a_forbidden_token_is_not_nan():
    a, b = torch.tensor([0.0, 1.0, -math.inf]), torch.tensor([0.5, 0.0, 0.3])
    assert torch.isfinite(reverse_kl(a, b)) and forward_kl(a, b) == math.inf
    assert jensen_shannon(a, b) <= math.log(2)


@pytest.mark.parametrize("f", [reverse_kl, forward_kl, jensen_shannon])
def test_exact_kl_gradcheck_and_zero_at_equality(f):
    a, b = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    assert torch.autograd.gradcheck(f, (a, b))
    assert f(a, a).abs().max() < 1e-15


def test_expected_values_under_the_policy():
    """E[k1] = E[k3] = kl(policy ‖ reference), and not E[k2]."""
    logits, ref = torch.randn(7), torch.randn(7)
    p, log_ratio = torch.softmax(logits, 0), torch.log_softmax(logits, 0) - torch.log_softmax(ref, 0)
    exact = reverse_kl(logits, ref)
    expected = {name: (p * kl_estimate(log_ratio, name)).sum() for name in ESTIMATORS}
    for name in ("k1", "k3", "k1+", "k3+"):
        assert math.isclose(expected[name], exact, rel_tol=1e-12)
    assert abs(expected["k2"] - exact) > 1e-3


def test_expected_gradients_as_a_loss():
    """On-policy, through the sampled log-probability: k1 gives 0, k2 the reverse KL's, k3 the forward KL's gradient."""
    start, ref = torch.randn(7), torch.randn(7)
    p = torch.softmax(start, 0)

    def gradient(f):
        logits = start.clone().requires_grad_()
        f(logits).backward()
        return logits.grad

    def expected(name, corrected=False):
        def loss(logits):
            logp = torch.log_softmax(logits, 0)
            ratio = (logp - logp.detach()).exp() if corrected else 1.0
            return (p * ratio * kl_estimate(logp - torch.log_softmax(ref, 0), name)).sum()

        return gradient(loss)

    reverse, forward = gradient(lambda z: reverse_kl(z, ref)), gradient(lambda z: forward_kl(z, ref))
    assert expected("k1").abs().max() < 1e-14
    for name in ("k2", "k1+", "k3+"):
        torch.testing.assert_close(expected(name), reverse, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(expected("k3"), forward, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(expected("k3", corrected=True), reverse, atol=1e-12, rtol=1e-12)


def test_reward_form_of_k1_has_the_gradient_of_kl():
    start, ref = torch.randn(7), torch.log_softmax(torch.randn(7), 0)
    logits = start.clone().requires_grad_()
    logp = torch.log_softmax(logits, 0)
    (logp.exp().detach() * (logp - ref).detach() * logp).sum().backward()
    exact = start.clone().requires_grad_()
    reverse_kl(exact, ref).backward()
    torch.testing.assert_close(logits.grad, exact.grad, atol=1e-12, rtol=1e-12)


def test_k3_keeps_its_digits_near_equality():
    """exp(x) - 1 - x loses everything at 1e-9 in float64; the estimator may not."""
    assert math.isclose(kl_estimate(torch.tensor(1e-6), "k3"), 0.5e-12, rel_tol=1e-3)


@pytest.mark.parametrize("case", oracle.cases("ppo", "adaptive_kl"))
def test_controller_equals_the_oracle(case):
    beta, h, path = case.hyper["init"], case.hyper, []
    for kl in case["kl"].tolist():
        beta = adaptive_beta(beta, kl, target=h["target"], samples=h["n_steps"], horizon=h["horizon"])
        path.append(beta)
    case.check("coef", torch.tensor(path))


def test_controller_worked_numbers():
    for kl, beta in ((3, 0.148464), (6, 0.15), (6.6, 0.150768), (20, 0.151536)):
        assert round(adaptive_beta(0.15, kl, target=6, samples=512, horizon=10_000), 6) == beta


def test_tilted_is_the_optimum_of_the_regularised_reward():
    ref, reward, beta = torch.randn(6), torch.randn(6), 0.3
    best = tilted(ref, reward, beta)
    assert torch.isclose(best.exp().sum(), torch.tensor(1.0))

    def objective(logits):
        return (torch.softmax(logits, 0) * reward).sum() - beta * reverse_kl(logits, ref)

    value = objective(best)
    partition = torch.logsumexp(torch.log_softmax(ref, 0) + reward / beta, 0)
    assert math.isclose(value, beta * partition, rel_tol=1e-12)
    for _ in range(20):
        assert objective(best + 0.1 * torch.randn(6)) < value
    torch.testing.assert_close(tilted(ref, torch.full((6,), 3.0), beta), torch.log_softmax(ref, 0))


def test_sequence_kl_reads_only_the_mask():
    kl = torch.tensor([[math.nan, 1.0, 2.0], [math.inf, 3.0, math.nan]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    assert sequence_kl(kl, mask).tolist() == [3.0, 3.0]


def test_refusals():
    with pytest.raises(ConfigError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(1), "k4")
    with pytest.raises(ShapeError, match="same vocabulary"):
        reverse_kl(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ConfigError, match="single best"):
        tilted(torch.zeros(3), torch.zeros(3), 0.0)
