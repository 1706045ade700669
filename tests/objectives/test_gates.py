"""Gates: the published numbers, loops, and that only moves which the advantage asked for are stopped."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.gates import Gate, gate_keep

LOGP = torch.tensor([[-1.0, -2, -0.5, -3]], dtype=torch.float64)
SAMPLER = torch.tensor([[-1.3, -1.5, -0.6, -4.2]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)
TV = Gate(kind="tv", low=0.05, high=0.05)


def test_the_published_test_vector_of_dppo():
    """Against the sampler with δ = 0.05, tokens 2 and 4 are kept for A = 1, and 1, 3, 4 for A = -1."""
    rho = (LOGP - SAMPLER).exp()
    for sign, kept, loss in ((1.0, [1, 3], -0.981662), (-1.0, [0, 2, 3], 1.443787)):
        keep = gate_keep(LOGP, SAMPLER, torch.full((1, 4), sign), ALL, TV)
        assert keep[0].nonzero().flatten().tolist() == kept
        assert round(float(-(sign * rho * keep).mean()), 6) == loss


def slow(gate, logp, start, a):
    """One answer with loops: which of its tokens are kept."""
    p, q = [math.exp(x) for x in logp], [math.exp(x) for x in start]
    mean = sum(b - c for b, c in zip(logp, start, strict=True)) / len(p)
    kept = []
    for now, then, sign in zip(p, q, a, strict=True):
        if gate.kind == "tv":
            distance, up = abs(now - then), now > then
        elif gate.kind == "binary_kl":
            distance, up = then * math.log(then / now) + (1 - then) * math.log((1 - then) / (1 - now)), now > then
        else:
            distance, up = abs(mean), mean > 0
        too_high = gate.high is not None and sign > 0 and up and distance > gate.high
        too_low = gate.low is not None and sign < 0 and not up and distance > gate.low
        kept.append(not (too_high or too_low))
    return kept


@pytest.mark.parametrize(
    "gate",
    [
        TV,
        Gate(kind="tv", low=0.02, high=0.1),
        Gate(kind="tv", high=0.05),
        Gate(kind="tv", low=0.05),
        Gate(kind="binary_kl", low=0.01, high=0.03),
        Gate(kind="answer", low=0.1),
        Gate(kind="answer", low=0.05, high=0.1),
    ],
    ids=str,
)
def test_kept_tokens_against_loops(gate):
    start = -0.2 - 3 * torch.rand(12, 7)
    logp = (start + 0.4 * torch.randn(12, 7)).clamp(max=-0.05)
    advantage = torch.randn(12, 7)
    mask = torch.rand(12, 7) < 0.7
    mask[:, 3] = True
    keep = gate_keep(logp, start, advantage, mask, gate)
    dropped = 0
    for n in range(12):
        at = mask[n]
        expected = slow(gate, logp[n, at].tolist(), start[n, at].tolist(), advantage[n, at].tolist())
        assert keep[n, at].tolist() == expected and keep[n, ~at].all()
        dropped += expected.count(False)
    assert 0 < dropped < int(mask.sum())


def test_on_policy_everything_is_kept():
    for kind in ("none", "tv", "binary_kl", "answer"):
        gate = Gate() if kind == "none" else Gate(kind=kind, low=1e-6, high=1e-6)
        for sign in (1.0, 0.0, -1.0):
            assert gate_keep(LOGP, LOGP, torch.full((1, 4), sign), ALL, gate).all()


def test_a_move_against_the_advantage_is_kept():
    half = torch.tensor([[math.log(0.5)]])
    up = torch.tensor([[math.log(0.7)]])
    gate = Gate(kind="tv", low=0.15, high=0.15)
    one = ALL[:, :1]
    assert not gate_keep(up, half, torch.ones(1, 1), one, gate)
    assert gate_keep(up, half, -torch.ones(1, 1), one, gate)
    assert not gate_keep(half, up, -torch.ones(1, 1), one, gate)
    assert gate_keep(half, up, torch.ones(1, 1), one, gate)


def test_the_edge_itself_and_an_advantage_of_zero_are_kept():
    quarter, half, one = torch.tensor([[math.log(0.25)]]), torch.tensor([[math.log(0.5)]]), ALL[:, :1]
    exactly = Gate(kind="tv", low=0.25, high=0.25)
    assert float(half.exp() - quarter.exp()) == 0.25
    assert gate_keep(half, quarter, torch.ones(1, 1), one, exactly)
    assert gate_keep(quarter, half, -torch.ones(1, 1), one, exactly)
    for now, then in ((half, quarter), (quarter, half)):
        assert gate_keep(now, then, torch.zeros(1, 1), one, TV)


def test_the_sequence_mask_drops_whole_answers_of_negative_advantage():
    """The mean log μ/π is 0.3 in the first answer and -0.3 in the second."""
    logp = torch.tensor([[-2.0, -2.0, -9.0], [-2.0, -2.0, -9.0]])
    start = logp + torch.tensor([[0.4, 0.2, 50.0], [-0.4, -0.2, 50.0]])
    mask = torch.tensor([[True, True, False]] * 2)
    gate = Gate(kind="answer", low=0.25)
    assert gate_keep(logp, start, -torch.ones(2, 3), mask, gate).tolist() == [[False, False, True], [True] * 3]
    assert gate_keep(logp, start, torch.ones(2, 3), mask, gate).all()
    assert gate_keep(logp, start, -torch.ones(2, 3), mask, Gate(kind="answer", low=0.35)).all()


def test_junk_under_the_mask_is_not_read():
    mask = torch.tensor([[False, True, True, False]])
    for gate in (TV, Gate(kind="binary_kl", low=0.01, high=0.01), Gate(kind="answer", low=0.01, high=0.01)):
        for sign in (1.0, -1.0):
            advantage = torch.full((1, 4), sign)
            clean = gate_keep(LOGP, SAMPLER, advantage, mask, gate)
            for junk in (math.nan, math.inf, -1e30):
                spoiled = [torch.where(mask, x, junk) for x in (LOGP, SAMPLER, advantage)]
                assert torch.equal(gate_keep(*spoiled, mask, gate), clean) and clean[~mask].all()
    assert gate_keep(LOGP, SAMPLER, torch.ones(1, 4), mask & False, TV).all()


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Gate(kind="ratio"), "is not one of none, tv"),
        (lambda: Gate(low=0.1), "change nothing"),
        (lambda: Gate(against="sampler"), "change nothing"),
        (lambda: Gate(kind="tv"), "stops nothing"),
        (lambda: Gate(kind="tv", low=0.0), "must be positive"),
        (lambda: Gate(kind="tv", high=-0.1), "must be positive"),
        (lambda: Gate(kind="tv", low=0.1, against="reference"), "is not one of old, sampler"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        gate_keep(LOGP, SAMPLER, torch.ones(4), ALL, TV)
