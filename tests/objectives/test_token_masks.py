"""Tokens picked among all of a step: by hand, by sorting, and that rows are really compared with each other."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.token_masks import Focus, covariance, drawn_covariance, top_covariance, top_entropy


def data(n=9, t=8):
    mask = torch.rand(n, t) < 0.7
    mask[:, 1], mask[3] = True, False
    return -3 * torch.rand(n, t), torch.randn(n, t), mask


def test_top_entropy_with_a_pencil():
    entropy = torch.tensor([[0.0, 4.0, 9.0], [3.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert top_entropy(entropy, mask, 0.4).tolist() == [[False, True, False], [True, False, False]]
    assert top_entropy(entropy, mask, 0.5).tolist() == [[False, True, False], [True, False, True]]  # >= the median
    assert top_entropy(entropy, mask, 0.999).sum() == 4  # the quantile lies just above the smallest


def test_top_entropy_is_a_quantile_of_the_whole_step():
    entropy, _, mask = data()
    entropy = -entropy
    for share in (0.2, 0.4, 0.7):
        values = sorted(entropy[mask].tolist())
        place = (1 - share) * (len(values) - 1)
        below = math.floor(place)
        threshold = values[below] + (place - below) * (values[below + 1] - values[below])
        found = top_entropy(entropy, mask, share)
        assert torch.equal(found, (entropy >= threshold) & mask)
        assert abs(int(found.sum()) - share * len(values)) <= 1
    halves = torch.cat([top_entropy(entropy[:4], mask[:4], 0.2), top_entropy(entropy[4:], mask[4:], 0.2)])
    assert not torch.equal(halves, top_entropy(entropy, mask, 0.2)), "rows must be compared across the batch"


def test_covariance_against_loops():
    logp, advantage, mask = data()
    pairs = list(zip(logp[mask].tolist(), advantage[mask].tolist(), strict=True))
    mean_x, mean_a = (sum(p[i] for p in pairs) / len(pairs) for i in (0, 1))
    cov = covariance(logp.requires_grad_(), advantage, mask)
    assert cov[mask].tolist() == pytest.approx([(x - mean_x) * (a - mean_a) for x, a in pairs])
    assert not cov[~mask].any() and not cov.requires_grad
    assert not covariance(logp.detach(), advantage.requires_grad_(), mask).requires_grad
    assert covariance(
        torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, -1.0]]), mask[1:2, 1:2].expand(1, 2)
    ).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("share, count", [(0.1, 3), (0.3, 10), (2e-4, 1)])
def test_top_covariance_against_sorting(share, count):
    logp, advantage, mask = data()
    mask[:] = False
    mask.view(-1)[5:40] = True
    cov = covariance(logp, advantage, mask)
    found = top_covariance(logp, advantage, mask, share)
    assert int(found.sum()) == count and not (found & ~mask).any()
    assert sorted(cov[found].tolist()) == sorted(cov[mask].tolist())[-count:]


def test_drawn_covariance_draws_from_the_band_by_the_smallest_numbers():
    logp, advantage, mask = data()
    draws = torch.rand(logp.shape)
    cov = covariance(logp, advantage, mask)
    among = mask & (cov > 0.1) & (cov < 0.8)
    count = int(int(mask.sum()) * 0.1)
    found = drawn_covariance(logp, advantage, mask, draws, share=0.1, low=0.1, high=0.8)
    assert 1 < count < int(among.sum()) and int(found.sum()) == count and not (found & ~among).any()
    assert sorted(draws[found].tolist()) == sorted(draws[among].tolist())[:count]
    everything = drawn_covariance(logp, advantage, mask, draws, share=0.9, low=0.1, high=0.8)
    assert torch.equal(everything, among)
    assert int(drawn_covariance(logp, advantage, mask, draws, share=1e-6, low=0.1, high=0.8).sum()) == 1
    assert not drawn_covariance(logp, advantage, mask, draws, share=0.1, low=50.0, high=60.0).any()
    ones = torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2).bool(), torch.rand(1, 2)
    assert covariance(*ones[:3]).tolist() == [[1.0, 1.0]]
    for low, high, drawn in ((1.0, 5.0, 0), (0.0, 1.0, 0), (0.9, 1.1, 1)):  # the ends are outside
        assert int(drawn_covariance(*ones, share=0.5, low=low, high=high).sum()) == drawn


def test_junk_and_empty_masks():
    logp, advantage, mask = data()
    draws = torch.rand(logp.shape)
    pick = {
        "entropy": lambda x, a, u, m: top_entropy(x, m, 0.3),
        "cov": lambda x, a, u, m: covariance(x, a, m),
        "top": lambda x, a, u, m: top_covariance(x, a, m, 0.2),
        "drawn": lambda x, a, u, m: drawn_covariance(x, a, m, u, share=0.1, low=0.1, high=0.8),
    }
    for name, f in pick.items():
        clean = f(logp, advantage, draws, mask)
        for junk in (math.nan, math.inf, -math.inf, 1e30):
            spoiled = [torch.where(mask, x, junk) for x in (logp, advantage, draws)]
            assert torch.equal(f(*spoiled, mask), clean), name
        assert not f(logp, advantage, draws, torch.zeros_like(mask)).any(), name


def test_order_of_rows_changes_nothing():
    logp, advantage, mask = data()
    order = torch.randperm(len(logp))
    for f in (lambda x, a, m: top_entropy(x, m, 0.3), covariance, lambda *x: top_covariance(*x, 0.1)):
        torch.testing.assert_close(f(logp[order], advantage[order], mask[order]), f(logp, advantage, mask)[order])


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Focus(kind="top"), "is not one of all, entropy"),
        (lambda: Focus(share=0.2), "change nothing"),
        (lambda: Focus(kind="entropy"), "between 0 and"),
        (lambda: Focus(kind="entropy", share=1.0), "between 0 and"),
        (lambda: Focus(kind="covariance", share=0.0), "between 0 and"),
        (lambda: Focus(kind="entropy", share=0.2, high=3.0), "are covariances"),
        (lambda: Focus(kind="covariance", share=0.2, low=5.0), "is empty"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_shapes_must_agree():
    logp, advantage, mask = data()
    with pytest.raises(ShapeError):
        covariance(logp, advantage[0], mask)
    with pytest.raises(ShapeError):
        drawn_covariance(logp, advantage, mask, torch.rand(3), share=0.1, low=1.0, high=5.0)
