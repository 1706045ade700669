"""Weights for a sampler that is not the learner: worked numbers, loops, bands of every kind, and what never leaks."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.divergence import binary_kl, binary_tv
from posttrain.objectives.mismatch import Mismatch, mismatch_weight

OLD = torch.tensor([[-1.2, -1.5, -0.5, -4]], dtype=torch.float64)
SAMPLER = torch.tensor([[-1.3, -1.5, -0.6, -4.2]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    "level, expected",
    [("token", [1.1052, 1, 1.1052, 1.2214]), ("sequence", [1.4918] * 4), ("geometric", [1.1052] * 4)],
)
def test_the_published_weights(level, expected):
    for kind in ("truncate", "mask"):
        weight, cut = mismatch_weight(OLD, SAMPLER, ALL, Mismatch(kind=kind, level=level, high=100.0))
        assert [round(x, 4) for x in weight[0].tolist()] == expected and not cut.any()


def slow(old, sampled, m):
    """One answer, with loops: weights and cuts of its tokens."""

    def over(xs, unit):
        total = {"token": None, "sequence": sum(xs), "geometric": sum(xs) / len(xs)}[unit]
        return xs if unit == "token" else [total] * len(xs)

    def kl(a, b):
        p, q = math.exp(a), math.exp(b)
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    logs = [a - b for a, b in zip(old, sampled, strict=True)]
    weight = [1.0] * len(logs) if m.level == "none" else [math.exp(x) for x in over(logs, m.level)]
    unit = m.level if m.unit == "same" else m.unit
    if m.statistic == "ratio":
        statistic = [math.exp(x) for x in over(logs, unit)]
    elif m.statistic == "tv":
        statistic = over([abs(math.exp(a) - math.exp(b)) for a, b in zip(old, sampled, strict=True)], unit)
    else:
        statistic = over([kl(b, a) for a, b in zip(old, sampled, strict=True)], unit)
    low = -math.inf if m.low is None else m.low
    high = math.inf if m.high is None else m.high
    cut = [not low <= s <= high for s in statistic]
    if m.kind == "truncate":
        return [min(max(w, low), high) for w in weight], cut
    return [0.0 if c else w for w, c in zip(weight, cut, strict=True)], cut


EVERY = [
    Mismatch(kind=kind, level=level, low=low, high=high)
    for kind in ("truncate", "mask")
    for level in ("token", "sequence", "geometric")
    for low, high in ((0.8, 1.2), (None, 1.1), (0.9, None))
] + [
    Mismatch(kind="mask", level="token", unit="geometric", low=0.9, high=1.1),
    Mismatch(kind="mask", level="none", unit="geometric", low=0.9, high=1.1),
    Mismatch(kind="mask", level="sequence", unit="token", low=0.7, high=1.3),
    Mismatch(kind="mask", statistic="tv", high=0.03),
    Mismatch(kind="mask", statistic="tv", unit="sequence", low=-1.0, high=0.15),
    Mismatch(kind="mask", statistic="binary_kl", unit="geometric", high=0.01),
    Mismatch(kind="mask", statistic="binary_kl", level="none", unit="token", high=0.01),
]


@pytest.mark.parametrize("mismatch", EVERY, ids=str)
def test_weights_against_loops(mismatch):
    old = -0.2 - 3 * torch.rand(16, 7)
    sampled = (old + 0.4 * torch.randn(16, 7)).clamp(max=-0.05)
    mask = torch.rand(16, 7) < 0.7
    mask[:, 2], mask[0] = True, True
    weight, cut = mismatch_weight(old, sampled, mask, mismatch)
    some = 0
    for n in range(16):
        at = mask[n]
        expected, outside = slow(old[n, at].tolist(), sampled[n, at].tolist(), mismatch)
        assert weight[n, at].tolist() == pytest.approx(expected, rel=1e-10) and cut[n, at].tolist() == outside
        assert (weight[n, ~at] == 1).all() and not cut[n, ~at].any()
        some += sum(outside)
    assert 0 < some < int(mask.sum()), "the band must cut some tokens and not all for this test to mean something"


def test_off_is_one():
    weight, cut = mismatch_weight(OLD, SAMPLER, ALL, Mismatch())
    assert weight.tolist() == [[1.0] * 4] and not cut.any()


def test_the_ends_of_the_band_are_inside_and_may_lie_at_one():
    for kind in ("truncate", "mask"):
        weight, cut = mismatch_weight(OLD, OLD, ALL, Mismatch(kind=kind, low=1.0, high=1.0))
        assert weight.tolist() == [[1.0] * 4] and not cut.any()
    assert Mismatch(kind="mask", low=0.0).low == Mismatch(kind="mask", statistic="tv", low=0.0, high=0.1).low == 0
    with pytest.raises(ConfigError, match="must contain 0"):
        Mismatch(kind="mask", statistic="tv", high=0.0)


def test_a_sampler_that_agrees_has_weight_one():
    for mismatch in EVERY:
        weight, cut = mismatch_weight(OLD, OLD, ALL, mismatch)
        assert weight.tolist() == [[1.0] * 4] and not cut.any()


def test_token_weights_multiply_to_the_sequence_weight():
    token, _ = mismatch_weight(OLD, SAMPLER, ALL, Mismatch(kind="truncate", high=None))
    whole, _ = mismatch_weight(OLD, SAMPLER, ALL, Mismatch(kind="truncate", level="sequence", high=None))
    mean, _ = mismatch_weight(OLD, SAMPLER, ALL, Mismatch(kind="truncate", level="geometric", high=None))
    assert math.isclose(token.prod(), whole[0, 0]) and math.isclose(whole[0, 0], mean[0, 0] ** 4)


def test_it_reads_only_the_mask_has_no_gradient_and_survives_overflow():
    mask = torch.tensor([[False, True, True]])
    old = torch.tensor([[math.nan, -1.0, 0.0]], dtype=torch.float32, requires_grad=True)
    sampled = torch.tensor([[math.inf, -1.0, -1e4]], dtype=torch.float32)
    for kind, last in (("truncate", 2.0), ("mask", 0.0)):
        weight, cut = mismatch_weight(old, sampled, mask, Mismatch(kind=kind))
        assert weight.tolist() == [[1.0, 1.0, last]] and cut.tolist() == [[False, False, True]]
        assert not weight.requires_grad
    weight, _ = mismatch_weight(old, sampled, mask, Mismatch(kind="truncate", high=None))
    assert torch.isfinite(weight).all() and math.isclose(weight[0, 2], math.exp(40), rel_tol=1e-6)
    for leaves in ((old, sampled), (sampled, old)):
        assert not mismatch_weight(*leaves, mask, Mismatch(kind="truncate", high=None))[0].requires_grad
    weight, cut = mismatch_weight(old, sampled, mask & False, Mismatch(kind="mask", level="sequence"))
    assert weight.tolist() == [[1.0] * 3] and not cut.any()


def test_binary_distances_with_a_pencil():
    half, quarter = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert math.isclose(binary_kl(half, quarter), 0.143841, abs_tol=1e-6)
    assert math.isclose(binary_kl(quarter, half), 0.130812, abs_tol=1e-6)
    assert math.isclose(binary_tv(half, quarter), 0.25) and math.isclose(binary_tv(quarter, half), 0.25)
    assert binary_kl(half, half) == 0
    near = torch.tensor([-1e-12, -2e-12], dtype=torch.float64)  # 1 - p of 1e-12 and 2e-12
    expected = 1e-12 * math.log(0.5) + 1e-12  # p log(p/q) is q's missing mass less p's
    assert math.isclose(binary_kl(near[0], near[1]), expected, rel_tol=1e-6)
    logp = -3 * torch.rand(10_000)
    assert (binary_kl(logp, logp * (1 + 1e-12)) >= 0).all(), "rounding must not make a distance negative"


def test_binary_distances_at_the_ends():
    sure, never, half = torch.tensor(0.0), torch.tensor(-1e4), torch.tensor(math.log(0.5))
    assert binary_kl(sure, sure) == 0 and binary_kl(never, never) == 0
    assert binary_kl(half, sure) == math.inf and math.isclose(binary_kl(sure, half), math.log(2))
    assert math.isclose(binary_kl(never, half), math.log(2)) and binary_kl(half, never) > 4e3
    above = torch.tensor(1e-7)  # what rounding can make of a log-probability of 0
    assert binary_kl(above, above) == 0 and binary_kl(half, above) == math.inf
    leaf = half.clone().requires_grad_()
    for distance in (binary_kl, binary_tv):
        assert not distance(leaf, half).requires_grad and not distance(half, leaf).requires_grad


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Mismatch(kind="cut"), "is not one of off"),
        (lambda: Mismatch(kind="mask", level="answer"), "is not one of token"),
        (lambda: Mismatch(kind="mask", unit="answer"), "is not one of same"),
        (lambda: Mismatch(kind="mask", statistic="kl"), "is not one of ratio"),
        (lambda: Mismatch(kind="mask", low=1.5), "must contain 1"),
        (lambda: Mismatch(kind="mask", high=0.9), "must contain 1"),
        (lambda: Mismatch(kind="mask", low=-0.1), "must contain 1"),
        (lambda: Mismatch(high=3.0), "change nothing"),
        (lambda: Mismatch(statistic="tv", high=0.1), "change nothing"),
        (lambda: Mismatch(kind="truncate", statistic="tv", high=0.1), "only the weight itself"),
        (lambda: Mismatch(kind="truncate", unit="geometric"), "only the weight itself"),
        (lambda: Mismatch(kind="mask", statistic="tv", high=None), "must contain 0"),
        (lambda: Mismatch(kind="mask", statistic="tv", low=0.1, high=0.2), "must contain 0"),
        (lambda: Mismatch(kind="mask", level="none"), "only the band"),
        (lambda: Mismatch(kind="truncate", level="none"), "only the band"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        mismatch_weight(OLD, SAMPLER[:, :3], ALL, Mismatch())
    with pytest.raises(ShapeError, match="same tokens"):
        binary_tv(OLD, SAMPLER[:, :3])
    with pytest.raises(ShapeError, match="same tokens"):
        binary_kl(OLD, SAMPLER[:, :3])


def test_a_band_alone_may_stand_without_a_weight():
    assert Mismatch(kind="mask", level="none", unit="token").level == "none"
    for wrong in ({"kind": "truncate"}, {"kind": "mask"}):
        with pytest.raises(ConfigError, match="without a weight there is"):
            Mismatch(level="none", **wrong)
