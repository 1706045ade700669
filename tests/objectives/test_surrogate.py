"""Importance ratios and clipping rules: the papers' cases with a pencil, slow loops, and what theory says."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.surrogate import (
    RATIOS,
    Clip,
    bounded_exp,
    clipped_gain,
    clipped_tokens,
    gamma_weight,
    importance,
)

LOGP = torch.tensor([[-1.0, -2, -0.5, -3]], dtype=torch.float64)
OLD = torch.tensor([[-1.2, -1.5, -0.5, -4]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)
GMPO = Clip(kind="geometric", low=0.4, high=0.4)
EVERY = [
    Clip(),
    Clip(low=0.2, high=0.28, cap=3.0),
    Clip(kind="weight", low=None, high=1.0),
    Clip(kind="soft"),
    GMPO,
    Clip(kind="geometric", low=None, high=0.3),
    Clip(kind="gamma"),
    Clip(kind="gamma", k=1.5, lam=0.5, k_negative=2.5, lam_negative=1.5),
    Clip(kind="log"),
    Clip(kind="none"),
]


def data(n=5, t=6, spread=0.6):
    logp = -3 * torch.rand(n, t)
    mask = torch.rand(n, t) < 0.7
    mask[:, 1] = True
    return logp, logp + spread * torch.randn(n, t), torch.randn(n, t), mask


@pytest.mark.parametrize(
    "clip, positive, negative",
    [
        (Clip(low=0.2, high=0.2), -1.001633, 1.434921),
        (Clip(low=0.2, high=0.28), -1.026983, 1.434921),
        (Clip(kind="weight", low=None, high=1.0), 2.233616, -2.233616),
        (Clip(kind="soft", tau=1.0, tau_negative=1.05), -2.305915, 2.204453),
        (GMPO, -1.025315, 1.221403),
    ],
)
def test_the_published_test_vector(clip, positive, negative):
    for sign, expected in ((1.0, positive), (-1.0, negative)):
        log_ratio = importance(LOGP, OLD, ALL, "token")
        loss = -clipped_gain(log_ratio, LOGP, torch.full((1, 4), sign), ALL, clip).mean()
        assert round(loss.item(), 6) == expected


@pytest.mark.parametrize(
    "ratio, value, clip, positive, negative",
    [
        ("sequence", 1.191246, Clip(low=3e-4, high=4e-4), -1.0004, 1.191246),
        ("sequence_sum", 2.013753, Clip(kind="gamma"), 0.314821, -1.747179),
    ],
)
def test_the_published_test_vector_of_whole_answers(ratio, value, clip, positive, negative):
    log_ratio = importance(LOGP, OLD, ALL, ratio)
    assert round(log_ratio.exp()[0, 0].item(), 6) == value
    for sign, expected in ((1.0, positive), (-1.0, negative)):
        gain = clipped_gain(log_ratio, LOGP, torch.full((1, 4), sign), ALL, clip)
        assert round(-gain.mean().item(), 6) == expected


@pytest.mark.parametrize(
    "a, rho, gain, slope",
    [(1, 1.3, 1.2, 0), (1, 0.7, 0.7, 1), (-1, 1.3, -1.3, -1), (-1, 0.7, -0.8, 0), (-1, 5, -5, -1)],
)
def test_the_four_cases_of_ppo(a, rho, gain, slope):
    for clip, expected in ((Clip(), (gain, slope)), (Clip(cap=3.0), (-3, 0) if rho == 5 else (gain, slope))):
        x = torch.tensor([[math.log(rho)]], requires_grad=True)
        found = clipped_gain(x, torch.zeros(1, 1), torch.full((1, 1), float(a)), torch.ones(1, 1).bool(), clip)
        found.sum().backward()
        assert math.isclose(found.item(), expected[0]) and math.isclose(x.grad.item() / rho, expected[1], abs_tol=1e-12)


def test_ratios_against_loops():
    logp, old, _, mask = data()
    found = {name: importance(logp, old, mask, name) for name in RATIOS}
    for n in range(len(logp)):
        ratios = [float(a - b) for a, b, m in zip(logp[n], old[n], mask[n], strict=True) if m]
        mean, total = sum(ratios) / len(ratios), sum(ratios)
        at = mask[n].nonzero().flatten().tolist()
        for t, token in zip(at, ratios, strict=True):
            expected = {"none": 0, "token": token, "sequence": mean, "sequence_sum": total, "sequence_token": mean}
            for name, value in expected.items():
                assert math.isclose(found[name][n, t], value, rel_tol=1e-10, abs_tol=1e-14), name
        assert all(not found[name][n, ~mask[n]].any() for name in RATIOS)


def slow_gain(clip, ratios, t, a, lp):
    """The definitions for one token. ratios: of all tokens of its answer."""
    rho, (low, high) = ratios[t], clip.edges
    held = min(max(rho, low), high)
    match clip.kind:
        case "min":
            gain = min(rho * a, held * a)
            return max(gain, clip.cap * a) if clip.cap and a < 0 else gain
        case "weight":
            return held * a * lp
        case "soft":
            tau = clip.tau if a > 0 else clip.tau_negative
            return 4 / tau / (1 + math.exp(-tau * (rho - 1))) * a
        case "geometric":
            floor = -math.inf if clip.low is None else -clip.low
            logs = [math.log(r) for r in ratios]
            logs = [min(x, clip.high) for x in logs] if a > 0 else [max(x, floor) for x in logs]
            return math.exp(sum(logs) / len(logs)) * a
        case "gamma":
            k, lam = (clip.k_negative, clip.lam_negative) if a < 0 else (clip.k, clip.lam)
            return rho**k * math.exp(lam * (1 - rho)) * a * lp
        case "log":
            return a * lp
        case "none":
            return rho * a


@pytest.mark.parametrize("clip", EVERY, ids=lambda c: c.kind)
def test_gains_against_loops(clip):
    logp, old, advantage, mask = data()
    advantage = advantage[:, 1:2].expand_as(logp).clone()
    log_ratio = importance(logp, old, mask, "token")
    gain = clipped_gain(log_ratio, logp, advantage, mask, clip)
    for n in range(len(logp)):
        at = mask[n].nonzero().flatten().tolist()
        ratios = [math.exp(log_ratio[n, t]) for t in at]
        for i, t in enumerate(at):
            expected = slow_gain(clip, ratios, i, float(advantage[n, t]), float(logp[n, t]))
            assert math.isclose(gain[n, t], expected, rel_tol=1e-10), clip


def test_the_geometric_mean_clips_each_token_by_its_own_sign():
    log_ratio = torch.tensor([[1.0, -1.0]])
    advantage = torch.tensor([[2.0, -3.0]])
    gain = clipped_gain(log_ratio, log_ratio, advantage, ALL[:, :2], GMPO)
    torch.testing.assert_close(gain, advantage * math.exp((0.4 - 0.4) / 2))
    gain = clipped_gain(log_ratio, log_ratio, -advantage, ALL[:, :2], GMPO)
    torch.testing.assert_close(gain, -advantage * math.exp((1.0 - 1.0) / 2))


# Clipping without a ratio is refused, and where the gradient goes through each token's own log π it stays there.
MEANINGFUL = [(r, c) for r in RATIOS for c in EVERY if r != "none" or c.kind in ("none", "log")]
MEANINGFUL = [(r, c) for r, c in MEANINGFUL if c.kind not in ("weight", "gamma", "log", "geometric") or r == "token"]


@pytest.mark.parametrize("ratio, clip", MEANINGFUL, ids=str)
def test_on_policy_gradient_is_reinforce(ratio, clip):
    """At ratio one every rule is A ∇log π; the sequence ratios spread it evenly over the answer."""
    logp, _, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    leaf = logp.clone().requires_grad_()
    gain = clipped_gain(importance(leaf, logp, mask, ratio), leaf, advantage, mask, clip)
    weight = mask / mask.sum(1, keepdim=True)  # average over the answer, so that the levels agree
    (gain * weight).sum().backward()
    length = mask.sum(1, keepdim=True) if ratio == "sequence_sum" else 1
    torch.testing.assert_close(leaf.grad, advantage * weight * length, atol=1e-12, rtol=1e-12)


def test_sequence_ratio_is_the_token_ratio_for_one_token():
    logp, old, _, mask = data()
    mask = torch.zeros_like(mask)
    mask[:, 2] = True
    token = importance(logp, old, mask, "token")
    for name in ("sequence", "sequence_sum", "sequence_token"):
        torch.testing.assert_close(importance(logp, old, mask, name), token)


def test_cispo_inside_the_band_is_importance_sampling():
    logp, old, advantage, mask = data(spread=0.05)
    grads = []
    for clip in (Clip(kind="weight", low=0.9, high=9.0), Clip(kind="none")):
        leaf = logp.clone().requires_grad_()
        (clipped_gain(importance(leaf, old, mask, "token"), leaf, advantage, mask, clip) * mask).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_clip_higher_of_a_rare_token():
    """DAPO's own example: at ε = 0.28 a token of probability 0.01 can gain up to 0.0128 and no further."""
    for p, slope in ((0.0127, True), (0.0129, False)):
        x = torch.tensor([[math.log(p)]], requires_grad=True)
        log_ratio = importance(x, torch.tensor([[math.log(0.01)]]), ALL[:, :1], "token")
        clipped_gain(log_ratio, x, torch.ones(1, 1), ALL[:, :1], Clip(high=0.28)).sum().backward()
        assert bool(x.grad) == slope


@pytest.mark.parametrize("cap, same", [(1.3, True), (3.0, True), (1.1, False)])
def test_a_cap_above_the_band_is_two_sided_clipping(cap, same):
    """Dual clip bounds the loss from below; INTELLECT-2 caps the unclipped ratio. One thing, unless cap < 1 + high."""
    log_ratio, advantage = torch.linspace(-3, 3, 301)[:, None], torch.tensor([1.0, -1.0]).expand(301, 2)
    log_ratio = log_ratio.expand(301, 2)
    mask = torch.ones(301, 2, dtype=torch.bool)
    dual = clipped_gain(log_ratio, log_ratio, advantage, mask, Clip(low=0.2, high=0.3, cap=cap))
    rho = log_ratio.exp()
    two_sided = torch.minimum(rho.clamp(max=cap) * advantage, rho.clamp(0.8, 1.3) * advantage)
    assert torch.allclose(dual, two_sided, atol=1e-12) == same


def test_sapo_gradient_weights():
    """4σ(1-σ) is 1 at ratio 1, .94 at .5, .786 at 2 and .071 at 5 (τ = 1); the ratio's own slope comes on top."""
    for rho, weight in ((1, 1.0), (0.5, 0.940), (2, 0.786), (5, 0.071)):
        log_ratio = torch.tensor([[math.log(rho)]], requires_grad=True)
        gain = clipped_gain(log_ratio, torch.zeros(1, 1), torch.ones(1, 1), ALL[:, :1], Clip(kind="soft"))
        gain.sum().backward()
        assert abs(log_ratio.grad.item() / rho - weight) < 5e-4


def test_the_gamma_weight_with_a_pencil():
    log_ratio = torch.tensor([[0.0, math.log(2), math.log(2), 0.0, -1e4, 1e4]], requires_grad=True)
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0, -1.0, 1.0]])
    phi = gamma_weight(log_ratio, advantage, Clip(kind="gamma"))
    assert [round(x, 3) for x in phi[0].tolist()] == [1.0, 0.199, 1.083, 1.0, 0.0, 0.0] and not phi.requires_grad
    zero = gamma_weight(log_ratio[:, 1:2], torch.zeros(1, 1), Clip(kind="gamma"))
    assert round(zero.item(), 3) == 0.199  # an advantage of zero counts as positive


@pytest.mark.parametrize("kind", ["soft", "gamma"])
def test_numbers_of_a_rule_come_in_the_ratio_s_precision(kind):
    """1.05 in float32 would be 1.0499999523."""
    clip = Clip(kind="soft") if kind == "soft" else Clip(kind="gamma", lam=1.05)
    torch.set_default_dtype(torch.float32)
    x = torch.full((1, 1), math.log(2), dtype=torch.float64)
    sign = torch.full_like(x, -1.0 if kind == "soft" else 1.0)
    gain = clipped_gain(x, -torch.ones_like(x), sign, ALL[:, :1], clip)
    expected = -4 / 1.05 / (1 + math.exp(-1.05)) if kind == "soft" else -4 * math.exp(-1.05)
    assert gain.dtype == torch.float64 and math.isclose(gain.item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("clip", [Clip(), Clip(low=1.0, high=0.28), Clip(cap=1.5), Clip(low=0.1, high=0.1, cap=1.01)])
def test_clipped_tokens_are_those_without_a_gradient(clip):
    logp, old, advantage, mask = data()
    leaf = logp.clone().requires_grad_()
    log_ratio = importance(leaf, old, mask, "token")
    clipped_gain(log_ratio, leaf, advantage, mask, clip).sum().backward()
    low, high, cap = clipped_tokens(log_ratio, advantage, clip)
    assert torch.equal((low | high | cap)[mask], (leaf.grad == 0)[mask])
    assert (
        not (low & (advantage > 0)).any() and not (high & (advantage < 0)).any() and not (cap & (advantage > 0)).any()
    )


def test_clipped_tokens_of_the_other_rules():
    logp, old, advantage, mask = data()
    log_ratio = importance(logp, old, mask, "token")
    for kind in ("soft", "gamma", "none"):
        assert not any(x.any() for x in clipped_tokens(log_ratio, advantage, Clip(kind=kind)))
    low, high, cap = clipped_tokens(log_ratio, advantage, Clip(kind="weight", low=None, high=0.3))
    assert not low.any() and torch.equal(high, log_ratio.exp() > 1.3) and not cap.any()
    log_ratio, advantage = torch.randn(40, 9), torch.randn(40, 9)
    low, high, cap = clipped_tokens(log_ratio, advantage, GMPO)
    assert torch.equal(low, (log_ratio < -0.4) & (advantage < 0)) and not cap.any()
    assert torch.equal(high, (log_ratio > 0.4) & (advantage > 0))
    assert not clipped_tokens(log_ratio, advantage, Clip(kind="geometric", low=None, high=0.4)).low.any()


def test_the_edge_itself_is_not_clipped_nor_is_an_advantage_of_zero():
    two = torch.tensor([[math.log(2)]])
    assert two.exp() == 2
    band = Clip(low=0.0, high=1.0, cap=2.0)
    for kind, at, far in (
        (band, (two, two * 0), (two * 2, -two)),
        (Clip(kind="weight", low=0.0, high=1.0), (two, two * 0), ()),
        (Clip(kind="geometric", low=math.log(2), high=math.log(2)), (two, -two), (two * 2, -two * 2)),
    ):
        for x in at:
            for sign in (1.0, -1.0):
                assert not any(c.any() for c in clipped_tokens(x, torch.full((1, 1), sign), kind))
        for x in far:
            assert not any(c.any() for c in clipped_tokens(x, torch.zeros(1, 1), kind))


def test_the_geometric_mean_of_tokens_without_an_advantage_and_outside_the_mask():
    log_ratio = torch.tensor([[1.0, -1.0, 7.0]])
    mask = torch.tensor([[True, True, False]])
    for advantage, held in (((0.0, 2.0), (1.0, -1.0)), ((2.0, 0.0), (0.4, -0.4))):  # zero is held from below only
        gain = clipped_gain(log_ratio, log_ratio, torch.tensor([[*advantage, 0.0]]), mask, GMPO)
        assert gain.max() == pytest.approx(2 * math.exp(sum(held) / 2))


@pytest.mark.parametrize("clip", [c for c in EVERY if c.kind not in ("weight", "gamma")], ids=lambda c: c.kind)
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_sum"])
def test_gradcheck(clip, ratio):
    """Where no gradient is stopped on purpose, which finite differences would not see."""
    logp, old, advantage, mask = data(n=2, t=4)

    def f(x):
        return clipped_gain(importance(x, old, mask, ratio), x, advantage, mask, clip)

    assert torch.autograd.gradcheck(f, (logp.requires_grad_(),))


@pytest.mark.parametrize("clip", [c for c in EVERY if c.kind in ("weight", "gamma")], ids=lambda c: c.kind)
def test_detached_weights_have_the_gradient_of_log_pi_alone(clip):
    logp, old, advantage, mask = data()
    leaf = logp.clone().requires_grad_()
    log_ratio = importance(leaf, old, mask, "token")
    gain = clipped_gain(log_ratio, leaf, advantage, mask, clip)
    gain.sum().backward()
    torch.testing.assert_close(leaf.grad, (gain / leaf).detach())


@pytest.mark.parametrize("clip", EVERY, ids=lambda c: c.kind)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_ratios_keep_gradients_finite(clip, ratio, sign):
    leaf = torch.tensor([[0.0, -1e-3, -1e4]], dtype=torch.float32, requires_grad=True)
    old = torch.tensor([[-1e4, -1e-3, 0.0]], dtype=torch.float32)
    mask = torch.ones(1, 3, dtype=torch.bool)
    gain = clipped_gain(importance(leaf, old, mask, ratio), leaf, torch.full((1, 3), sign), mask, clip)
    gain.sum().backward()
    assert torch.isfinite(gain).all() and torch.isfinite(leaf.grad).all()


def test_the_bound_of_a_ratio():
    x = torch.tensor([-1e4, 0.0, 39.0, 40.0, 41.0, 1e4], requires_grad=True)
    bounded_exp(x).sum().backward()
    assert bounded_exp(x).tolist() == pytest.approx([0, 1, math.exp(39), math.exp(40), math.exp(40), math.exp(40)])
    assert x.grad[2] == math.exp(39) and x.grad[4:].tolist() == [0, 0]
    assert torch.isfinite(bounded_exp(x.float()).square()).all(), "a weight times a ratio fits float32"


def test_an_empty_row_is_nothing():
    mask = torch.zeros(1, 4, dtype=torch.bool)
    for ratio in RATIOS:
        log_ratio = importance(LOGP, OLD, mask, ratio)
        assert not log_ratio.any()
    assert torch.isfinite(clipped_gain(log_ratio, LOGP, torch.ones(1, 4), mask, GMPO)).all()


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Clip(kind="minimum"), "is not one of min, weight"),
        (lambda: Clip(high=0.0), "must be positive"),
        (lambda: Clip(low=-0.1), "must not be negative"),
        (lambda: Clip(cap=1.0), "3 is usual"),
        (lambda: Clip(kind="soft", tau=0.0), "clip.tau = 0.0: must be positive"),
        (lambda: Clip(kind="soft", tau_negative=-1.0), "tau_negative"),
        (lambda: Clip(kind="gamma", lam=0.0), "clip.lam = 0.0"),
        (lambda: Clip(kind="soft", high=0.3), "changes nothing"),
        (lambda: Clip(kind="weight", cap=3.0), "changes nothing"),
        (lambda: Clip(kind="geometric", cap=3.0), "changes nothing"),
        (lambda: Clip(kind="log", low=None), "changes nothing"),
        (lambda: Clip(k=3.0), "changes nothing"),
        (lambda: Clip(tau=2.0), "changes nothing"),
        (lambda: importance(LOGP, OLD, ALL, "seq"), "is not one of none"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        clipped_gain(LOGP, LOGP, torch.ones(1, 3), ALL, Clip())
    with pytest.raises(ShapeError):
        gamma_weight(LOGP, torch.ones(4), Clip(kind="gamma"))


def test_edges():
    assert Clip(low=None).edges == (0.0, 1.2) and Clip(low=10.0, high=10.0).edges == (0.0, 11.0)
    assert Clip(low=0.1).edges == (0.9, 1.2) and Clip(low=0.0).edges == (1.0, 1.2)
