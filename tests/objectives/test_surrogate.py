"""Importance ratios, clipping rules and mismatch weights: the papers' cases with a pencil, and peers."""

import math

import oracle
import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.objectives.surrogate import (
    RATIOS,
    Clip,
    Mismatch,
    clipped_gain,
    clipped_tokens,
    importance,
    mismatch_weight,
)

LOGP = torch.tensor([[-1.0, -2, -0.5, -3]], dtype=torch.float64)
OLD = torch.tensor([[-1.2, -1.5, -0.5, -4]], dtype=torch.float64)
SAMPLER = torch.tensor([[-1.3, -1.5, -0.6, -4.2]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)
EVERY = [
    Clip(),
    Clip(low=0.2, high=0.28, cap=3.0),
    Clip(kind="weight", low=None, high=1.0),
    Clip(kind="soft"),
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
    ],
)
def test_the_published_test_vector(clip, positive, negative):
    for sign, expected in ((1.0, positive), (-1.0, negative)):
        log_ratio = importance(LOGP, OLD, ALL, "token")
        loss = -clipped_gain(log_ratio, LOGP, torch.full((1, 4), sign), clip).mean()
        assert round(loss.item(), 6) == expected


def test_the_published_test_vector_of_gspo():
    log_ratio = importance(LOGP, OLD, ALL, "sequence")
    assert round(log_ratio.exp()[0, 0].item(), 6) == 1.191246
    for sign, expected in ((1.0, -1.0004), (-1.0, 1.191246)):
        gain = clipped_gain(log_ratio, LOGP, torch.full((1, 4), sign), Clip(low=3e-4, high=4e-4))
        assert round(-gain.mean().item(), 6) == expected


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


def test_gains_against_loops():
    logp, old, advantage, mask = data()
    log_ratio = importance(logp, old, mask, "token")
    for clip in EVERY:
        gain = clipped_gain(log_ratio, logp, advantage, clip)
        low, high = clip.edges
        for n, t in mask.nonzero().tolist():
            rho, a, lp = math.exp(log_ratio[n, t]), float(advantage[n, t]), float(logp[n, t])
            held = min(max(rho, low), high)
            if clip.kind == "min":
                expected = min(rho * a, held * a)
                if clip.cap and a < 0:
                    expected = max(expected, clip.cap * a)
            elif clip.kind == "weight":
                expected = held * a * lp
            elif clip.kind == "soft":
                tau = clip.tau if a > 0 else clip.tau_negative
                expected = 4 / tau / (1 + math.exp(-tau * (rho - 1))) * a
            else:
                expected = rho * a
            assert math.isclose(gain[n, t], expected, rel_tol=1e-10), clip


# Clipping without a ratio is refused, and CISPO's gradient goes through each token's own log π.
MEANINGFUL = [(r, c) for r in RATIOS for c in EVERY if r != "none" or c.kind == "none"]
MEANINGFUL = [(r, c) for r, c in MEANINGFUL if c.kind != "weight" or r == "token"]


@pytest.mark.parametrize("ratio, clip", MEANINGFUL, ids=str)
def test_on_policy_gradient_is_reinforce(ratio, clip):
    """At ratio one every rule is A ∇log π; the sequence ratios spread it evenly over the answer."""
    logp, _, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    leaf = logp.clone().requires_grad_()
    gain = clipped_gain(importance(leaf, logp, mask, ratio), leaf, advantage, clip)
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
        (clipped_gain(importance(leaf, old, mask, "token"), leaf, advantage, clip) * mask).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_sapo_gradient_weights():
    """4σ(1-σ) is 1 at ratio 1, .94 at .5, .786 at 2 and .071 at 5 (τ = 1); the ratio's own slope comes on top."""
    for rho, weight in ((1, 1.0), (0.5, 0.940), (2, 0.786), (5, 0.071)):
        log_ratio = torch.tensor([[math.log(rho)]], requires_grad=True)
        clipped_gain(log_ratio, torch.zeros(1, 1), torch.ones(1, 1), Clip(kind="soft")).sum().backward()
        assert abs(log_ratio.grad.item() / rho - weight) < 5e-4


def test_clipped_tokens_are_those_without_a_gradient():
    logp, old, advantage, mask = data()
    for clip in (Clip(), Clip(low=1.0, high=0.28), Clip(cap=1.5)):
        leaf = logp.clone().requires_grad_()
        log_ratio = importance(leaf, old, mask, "token")
        clipped_gain(log_ratio, leaf, advantage, clip).sum().backward()
        low, high = clipped_tokens(log_ratio, advantage, clip)
        assert torch.equal((low | high)[mask], (leaf.grad == 0)[mask])
    assert not any(x.any() for x in clipped_tokens(log_ratio, advantage, Clip(kind="soft")))
    low, high = clipped_tokens(log_ratio, advantage, Clip(kind="weight", low=None, high=0.3))
    assert not low.any() and torch.equal(high, log_ratio.exp() > 1.3)


@pytest.mark.parametrize("clip", [c for c in EVERY if c.kind != "weight"], ids=lambda c: c.kind)
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_sum"])
def test_gradcheck(clip, ratio):
    """Where no gradient is stopped on purpose, which finite differences would not see."""
    logp, old, advantage, mask = data(n=2, t=4)

    def f(x):
        return clipped_gain(importance(x, old, mask, ratio), x, advantage, clip)

    assert torch.autograd.gradcheck(f, (logp.requires_grad_(),))


@pytest.mark.parametrize("clip", EVERY, ids=lambda c: c.kind)
@pytest.mark.parametrize("ratio", RATIOS)
def test_huge_ratios_keep_gradients_finite(clip, ratio):
    leaf = torch.tensor([[0.0, -1e-3, -500.0]], dtype=torch.float32, requires_grad=True)
    old = torch.tensor([[-1e3, -1e-3, 0.0]], dtype=torch.float32)
    mask = torch.ones(1, 3, dtype=torch.bool)
    gain = clipped_gain(importance(leaf, old, mask, ratio), leaf, torch.ones(1, 3), clip)
    gain.sum().backward()
    assert torch.isfinite(gain).all() and torch.isfinite(leaf.grad).all()


TRL = ("trl_token_truncate", "trl_token_mask", "trl_sequence_truncate", "trl_sequence_mask")


@pytest.mark.parametrize("case", oracle.cases("rollout_correction", *TRL))
def test_mismatch_weights_equal_trl(case):
    level, kind = case.hyper["mode"].split("_")
    mismatch = Mismatch(kind=kind, level=level, low=case.hyper["clip_min"], high=case.hyper["clip_max"])
    mask = case["mask"] > 0
    weight, _ = mismatch_weight(case["old_logps"], case["sampling_logps"], mask, mismatch)
    case.check("ratio", weight[:, :1] if level == "sequence" else weight)


def test_mismatch_weights_with_a_pencil():
    free = {"low": None, "high": 100.0, "kind": "truncate"}
    for level, expected in (
        ("token", [1.1052, 1, 1.1052, 1.2214]),
        ("sequence", [1.4918] * 4),
        ("geometric", [1.1052] * 4),
    ):
        weight, cut = mismatch_weight(OLD, SAMPLER, ALL, Mismatch(level=level, **free))
        assert [round(x, 4) for x in weight[0].tolist()] == expected and not cut.any()
    weight, cut = mismatch_weight(OLD, SAMPLER, ALL, Mismatch(kind="mask", low=0.5, high=1.2))
    assert weight[0, 3] == 0 and cut.tolist() == [[False, False, False, True]]
    weight, cut = mismatch_weight(OLD, SAMPLER, ALL, Mismatch())
    assert weight.tolist() == [[1.0] * 4] and not cut.any()


def test_mismatch_reads_only_the_mask_and_survives_overflow():
    mask = torch.tensor([[False, True, True]])
    old = torch.tensor([[math.nan, -1.0, 0.0]], dtype=torch.float32, requires_grad=True)
    sampled = torch.tensor([[math.inf, -1.0, -900.0]], dtype=torch.float32)
    for kind, last in (("truncate", 2.0), ("mask", 0.0)):
        weight, cut = mismatch_weight(old, sampled, mask, Mismatch(kind=kind))
        assert weight.tolist() == [[1.0, 1.0, last]] and cut.tolist() == [[False, False, True]]
        assert not weight.requires_grad


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Clip(kind="minimum"), "is not one of min, weight"),
        (lambda: Clip(high=0.0), "must be positive"),
        (lambda: Clip(low=-0.1), "must not be negative"),
        (lambda: Clip(cap=0.9), "3 is usual"),
        (lambda: Clip(kind="soft", tau=0.0), "must be positive"),
        (lambda: Clip(kind="soft", high=0.3), "changes nothing"),
        (lambda: Clip(kind="weight", cap=3.0), "changes nothing"),
        (lambda: Clip(tau=2.0), "changes nothing"),
        (lambda: Mismatch(kind="cut"), "is not one of off"),
        (lambda: Mismatch(kind="mask", level="answer"), "is not one of token"),
        (lambda: Mismatch(kind="mask", low=1.5), "must contain 1"),
        (lambda: Mismatch(high=3.0), "change nothing"),
        (lambda: importance(LOGP, OLD, ALL, "seq"), "is not one of none"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_edges():
    assert Clip(low=None).edges == (0.0, 1.2) and Clip(low=10.0, high=10.0).edges == (0.0, 11.0)
