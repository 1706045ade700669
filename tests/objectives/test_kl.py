"""KL: exact values, what the estimators estimate (value and gradient), and the controller."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.kl import (
    ESTIMATORS,
    absolute,
    adaptive_beta,
    doubling_beta,
    forward_kl,
    jensen_shannon,
    k1,
    k2,
    k3,
    kl_estimate,
    reverse_kl,
    reweighted_k2,
    reweighted_k3,
    sequence_kl,
    tilted,
    tilted_samples,
    with_gradient_of,
)

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)


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
        m = [0.8 * x + 0.2 * y for x, y in zip(p, q, strict=True)]
        assert math.isclose(jensen_shannon(a, b, 0.2)[n], 0.2 * kl(q, m) + 0.8 * kl(p, m), rel_tol=1e-12)


def test_a_forbidden_token_is_not_nan():
    a, b = torch.tensor([0.0, 1.0, -math.inf]), torch.tensor([0.5, 0.0, 0.3])
    assert torch.isfinite(reverse_kl(a, b)) and forward_kl(a, b) == math.inf
    assert jensen_shannon(a, b) <= math.log(2)


@pytest.mark.parametrize("f", [reverse_kl, forward_kl, jensen_shannon])
def test_a_token_forbidden_to_both_has_no_part(f):
    a, b = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True), torch.tensor([0.5, 0.0, -math.inf])
    value = f(a, b)
    value.backward()
    assert math.isclose(value.item(), f(a[:2], b[:2]).item(), rel_tol=1e-12)
    assert torch.isfinite(a.grad).all() and a.grad[2] == 0


@pytest.mark.parametrize("f", [reverse_kl, forward_kl, jensen_shannon])
def test_exact_kl_at_extreme_logits(f):
    a, b = torch.tensor([1e4, 0.0, -1e4], requires_grad=True), torch.tensor([-1e4, 0.0, 1e4])
    value = f(a, b)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(a.grad).all()


def test_jensen_shannon_between_the_two_directions():
    """Divided by the share that vanishes it tends to the KL of that end."""
    a, b = torch.randn(6), torch.randn(6)
    assert math.isclose(jensen_shannon(a, b, 1e-7) / 1e-7, forward_kl(a, b), rel_tol=1e-5)
    assert math.isclose(jensen_shannon(a, b, 1 - 1e-7) / 1e-7, reverse_kl(a, b), rel_tol=1e-5)
    assert math.isclose(jensen_shannon(a, b, 0.3), jensen_shannon(b, a, 0.7), rel_tol=1e-12)
    for beta in (0, 1, -0.1):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            jensen_shannon(a, b, beta)


@pytest.mark.parametrize("f", [reverse_kl, forward_kl, jensen_shannon])
def test_exact_kl_gradcheck_and_zero_at_equality(f):
    a, b = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    assert torch.autograd.gradcheck(f, (a, b))
    assert f(a, a).abs().max() < 1e-15


def test_estimators_one_by_one():
    """Values and slopes in the log-ratio, from the definitions; k1+ and k3+ have the slope of k2."""
    for r in (-1.3, 0.2, 2.0):
        expected = {
            "k1": (r, 1.0),
            "k2": (r * r / 2, r),
            "k3": (math.exp(-r) - 1 + r, 1 - math.exp(-r)),
            "abs": (abs(r), math.copysign(1, r)),
            "k1+": (r, r),
            "k3+": (math.exp(-r) - 1 + r, r),
        }
        for name, (value, slope) in expected.items():
            leaf = torch.tensor(r, requires_grad=True)
            found = kl_estimate(leaf, name)
            found.backward()
            assert math.isclose(found.item(), value, rel_tol=1e-12), name
            assert math.isclose(leaf.grad, slope, rel_tol=1e-12), name


def gradient(f, start):
    logits = start.clone().requires_grad_()
    f(logits).backward()
    return logits.grad


class Enumerated:
    """Every token of a small vocabulary, sampled from the policy itself or from an older one."""

    def __init__(self, *, on_policy: bool):
        self.start, self.ref = torch.randn(7), torch.log_softmax(torch.randn(7), 0)
        self.old = torch.log_softmax(self.start if on_policy else torch.randn(7), 0)
        self.reverse = gradient(lambda z: reverse_kl(z, self.ref), self.start)
        self.forward = gradient(lambda z: forward_kl(z, self.ref), self.start)

    def value(self, f):
        logp = torch.log_softmax(self.start, 0)
        return (self.old.exp() * f(logp - self.ref, logp - self.old)).sum()

    def slope(self, f):
        """Expected gradient of f(log-ratio, drift) as a term of the loss, through the sampled log-probability."""

        def loss(logits):
            logp = torch.log_softmax(logits, 0)
            return (self.old.exp() * f(logp - self.ref, logp - self.old)).sum()

        return gradient(loss, self.start)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_expected_values_under_the_policy():
    """E[k1] = E[k3] = kl(policy ‖ reference), and not E[k2] or E|r|; off the policy ρ k3 alone is right."""
    on, off = Enumerated(on_policy=True), Enumerated(on_policy=False)
    expected = {name: on.value(lambda r, _, name=name: kl_estimate(r, name)) for name in ESTIMATORS}
    exact = reverse_kl(on.start, on.ref)
    for name in ("k1", "k3", "k1+", "k3+"):
        close(expected[name], exact)
    assert abs(expected["k2"] - exact) > 1e-3 and expected["abs"] > exact
    exact = reverse_kl(off.start, off.ref)
    close(off.value(reweighted_k3), exact)
    assert abs(off.value(lambda r, _: k3(r)) - exact) > 1e-3


def test_expected_gradients_on_policy():
    """As a loss: k1 pulls nowhere, k2 down the reverse KL, k3 down the forward KL, |r| down neither."""
    on = Enumerated(on_policy=True)
    assert on.slope(lambda r, _: k1(r)).abs().max() < 1e-14
    for f in (
        lambda r, _: k2(r),
        lambda r, _: kl_estimate(r, "k1+"),
        lambda r, _: kl_estimate(r, "k3+"),
        reweighted_k2,
        reweighted_k3,
    ):
        close(on.slope(f), on.reverse)
    close(on.slope(lambda r, _: k3(r)), on.forward)
    neither = on.slope(lambda r, _: absolute(r))
    assert (neither - on.reverse).abs().max() > 1e-3 and (neither - on.forward).abs().max() > 1e-3


def test_expected_gradients_off_policy():
    """Both weighted forms have the reverse KL's gradient; the gradient of ρ counts for k3, and must not for k2."""
    off = Enumerated(on_policy=False)
    close(off.slope(reweighted_k2), off.reverse)
    close(off.slope(reweighted_k3), off.reverse)
    close(off.slope(lambda r, d: with_gradient_of(k1(r), reweighted_k2(r, d))), off.reverse)
    assert (off.slope(lambda r, _: k2(r)) - off.reverse).abs().max() > 1e-3
    assert (off.slope(lambda r, d: d.detach().exp() * k3(r)) - off.reverse).abs().max() > 1e-3
    assert (off.slope(lambda r, d: d.exp() * k2(r)) - off.reverse).abs().max() > 1e-3


def test_reweighted_k2_by_hand():
    """π is three times π_old and e² times π_ref: 3 · ½ · 4, slope 3 · 2; a cap of 2 makes it 2 · ½ · 4."""
    r = torch.tensor(2.0, requires_grad=True)
    drift = torch.tensor(3.0).log().requires_grad_()
    for cap, weight in ((None, 3.0), (10.0, 3.0), (2.0, 2.0)):
        value = reweighted_k2(r, drift, cap=cap)
        slopes = torch.autograd.grad(value, (r, drift), allow_unused=True)
        assert math.isclose(value.item(), weight * 2, rel_tol=1e-12)
        assert math.isclose(slopes[0], weight * 2, rel_tol=1e-12)
        assert slopes[1] is None


def test_weights_cancel_where_k3_explodes():
    """ρ e^-r is π_ref / π_old, however improbable the token has become."""
    value = reweighted_k3(torch.tensor(-30.0), torch.tensor(-30.0))
    assert math.isclose(value, 1 + math.exp(-30) * (-31), rel_tol=1e-9)


def test_straight_through_takes_value_and_slope_apart():
    x = torch.tensor([0.5, -2.0], requires_grad=True)
    y = with_gradient_of(x.exp(), x.square() / 2)
    y.sum().backward()
    torch.testing.assert_close(y, x.exp())
    torch.testing.assert_close(x.grad, x.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimators_are_finite_at_absurd_log_ratios(dtype):
    r = torch.tensor([-1e4, -41.0, 41.0, 1e4], dtype=dtype, requires_grad=True)
    terms = [kl_estimate(r, name) for name in ESTIMATORS]
    for drift in (r, -r):
        terms += [reweighted_k2(r, drift), reweighted_k2(r, drift, cap=10.0), reweighted_k3(r, drift)]
    for term in terms:
        slope = torch.autograd.grad(term.sum(), r, retain_graph=True)[0]
        assert torch.isfinite(term).all() and torch.isfinite(slope).all() and term.dtype == dtype


def test_k3_never_pulls_the_wrong_way():
    """Below its limit the reference's favourite has no gradient, rather than one that pushes it further down."""
    r = torch.tensor([-50.0, -39.0, -1e4], requires_grad=True)
    k3(r).sum().backward()
    assert (r.grad <= 0).all() and r.grad[1] < 0


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


def test_controller_worked_numbers():
    for kl, beta in ((3, 0.148464), (6, 0.15), (6.6, 0.150768), (20, 0.151536)):
        assert round(adaptive_beta(0.15, kl, target=6, samples=512, horizon=10_000), 6) == beta
    assert adaptive_beta(0.15, 5.7, target=6, samples=100, horizon=1000) == 0.15 * (1 + (5.7 / 6 - 1) / 10)


def test_doubling_rule():
    for kl, beta in ((0.0066, 1.5), (0.0067, 3.0), (0.01, 3.0), (0.0149, 3.0), (0.0151, 6.0)):
        assert doubling_beta(3.0, kl, target=0.01) == beta


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


def test_tilted_worked_numbers():
    """Section 01's table: an answer that the reference never gives stays at 0 whatever its reward."""
    ref = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    reward = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])
    for beta, expected in (
        (2, (0.2120, 0.2622, 0.2882, 0.2376, 0)),
        (1, (0.0851, 0.1734, 0.3143, 0.4272, 0)),
        (0.5, (0.0074, 0.0411, 0.2027, 0.7488, 0)),
    ):
        assert [round(x, 4) for x in tilted(ref.log(), reward, beta).exp().tolist()] == list(expected)


def test_the_tilt_of_samples_by_a_plain_loop():
    reward, count, beta = [0.5, 2.0, -1.0, 2.0], [3, 1, 2, 5], 0.7
    raw = [n * math.exp(r / beta) for r, n in zip(reward, count, strict=True)]
    weight = [w / sum(raw) for w in raw]
    share = [n / sum(count) for n in count]
    found = tilted_samples(torch.tensor(reward, dtype=torch.float64), beta, torch.tensor(count, dtype=torch.float64))
    assert found.weight.tolist() == pytest.approx(weight)
    assert float(found.reward) == pytest.approx(sum(w * r for w, r in zip(weight, reward, strict=True)))
    assert float(found.kl) == pytest.approx(sum(w * math.log(w / s) for w, s in zip(weight, share, strict=True)))
    assert float(found.effective) == pytest.approx(1 / sum(w * w / n for w, n in zip(weight, count, strict=True)))


def test_the_tilt_of_samples_counts_equal_ones_together_and_never_exceeds_their_number():
    reward = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    found = tilted_samples(reward, 1.0)
    assert [round(float(x), 6) for x in found[1:]] == [0.823959, 0.130812, 1.6]
    once = tilted_samples(torch.tensor([1.0, 4.0, 4.0, 4.0]), 0.5)
    together = tilted_samples(torch.tensor([1.0, 4.0]), 0.5, torch.tensor([1.0, 3.0]))
    for a, b in zip(once[1:], together[1:], strict=True):
        torch.testing.assert_close(a, b)
    hard = tilted_samples(torch.tensor([0.0, 1.0, 5.0]), 1e-3)
    assert float(hard.kl) == pytest.approx(math.log(3)) and float(hard.effective) == pytest.approx(1)


def test_the_tilt_of_many_samples_is_that_of_the_whole_distribution():
    torch.manual_seed(0)
    ref, reward = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    drawn = torch.multinomial(ref.softmax(0), 400_000, replacement=True)
    found, exact = tilted_samples(reward[drawn], 0.5), tilted(ref, reward, 0.5)
    assert float(found.reward) == pytest.approx(float((exact.exp() * reward).sum()), abs=0.02)
    assert float(found.kl) == pytest.approx(float(reverse_kl(exact, ref)), abs=0.02)


def test_sequence_kl_reads_only_the_mask():
    kl = torch.tensor([[math.nan, 1.0, 2.0], [math.inf, 3.0, math.nan]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    assert sequence_kl(kl, mask).tolist() == [3.0, 3.0]


def test_sequence_kl_in_expectation_is_the_kl_of_answers():
    """Two tokens, every answer enumerated: the chain rule, with prefixes drawn from the policy."""
    first, second = torch.randn(2, 3), torch.randn(2, 3, 3)  # policy and reference; the second token given the first
    (p1, q1), (p2, q2) = torch.log_softmax(first, -1), torch.log_softmax(second, -1)
    answers_p, answers_q = p1[:, None] + p2, q1[:, None] + q2
    exact = (answers_p.exp() * (answers_p - answers_q)).sum()
    kl = torch.stack([reverse_kl(first[0], first[1]).expand(3), reverse_kl(second[0], second[1])], 1)
    kl = torch.cat([torch.full((3, 1), math.nan), kl], 1)  # a prompt token in front
    mask = torch.tensor([[False, True, True]]).expand(3, 3)
    close((p1.exp() * sequence_kl(kl, mask)).sum(), exact)


def test_refusals():
    with pytest.raises(ConfigError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(1), "k4")
    with pytest.raises(ShapeError, match="same vocabulary"):
        reverse_kl(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ShapeError, match="entry per answer"):
        tilted(torch.zeros(3), torch.zeros(4), 1.0)
    with pytest.raises(ConfigError, match="single best"):
        tilted(torch.zeros(3), torch.zeros(3), 0.0)
    with pytest.raises(ConfigError, match="single best"):
        tilted_samples(torch.zeros(3), 0.0)
    with pytest.raises(ShapeError, match="entry per sample"):
        tilted_samples(torch.zeros(3), 1.0, torch.ones(4))
