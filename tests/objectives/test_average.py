"""Averages as weights: against the direct formulas, peers, and every way of cutting a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.average import Average, row_weights, token_weights, weight_total

HORIZON = 10
EVERY = [Average("token"), Average("sequence"), Average("prompt"), Average("constant", HORIZON), Average("sum")]


def batch(n=7, t=6, groups=3):
    mask = torch.rand(n, t) < 0.6
    mask[:, 0], mask[2] = False, False  # row 2 has nothing to train on
    mask[:2, 1] = True
    return torch.randn(n, t), mask, torch.arange(n) % groups


def direct(kind, loss, mask, group):
    """The definitions, with loops."""
    rows = [[float(x) for x, m in zip(a, b, strict=True) if m] for a, b in zip(loss, mask, strict=True)]
    alive = [r for r in rows if r]
    if kind == "token":
        return sum(map(sum, alive)) / sum(map(len, alive))
    if kind == "sequence":
        return sum(sum(r) / len(r) for r in alive) / len(alive)
    if kind == "constant":
        return sum(map(sum, alive)) / (HORIZON * len(alive))
    if kind == "sum":
        return sum(map(sum, alive)) / len(alive)
    prompts = {}
    for r, g in zip(rows, group.tolist(), strict=True):
        prompts.setdefault(g, []).extend(r)
    prompts = [tokens for tokens in prompts.values() if tokens]
    return sum(sum(tokens) / len(tokens) for tokens in prompts) / len(prompts)


@pytest.mark.parametrize("average", EVERY, ids=lambda a: a.kind)
def test_weights_equal_the_definition(average):
    loss, mask, group = batch()
    value = (token_weights(mask, average, group=group) * loss).sum()
    assert math.isclose(value, direct(average.kind, loss, mask, group), rel_tol=1e-12)


def test_the_worked_example_of_two_answers():
    loss = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0.5] * 6])
    mask = torch.tensor([[True, True] + [False] * 4, [True] * 6])
    expected = {"sequence": 0.75, "token": 0.625, "constant": 0.25}
    for kind, value in expected.items():
        average = Average(kind, HORIZON if kind == "constant" else None)
        assert math.isclose((token_weights(mask, average) * loss).sum(), value, rel_tol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=7, max_size=7), st.sampled_from(EVERY))
def test_any_cut_adds_up_to_the_same_number(parts, average):
    loss, mask, group = batch()
    weights = token_weights(mask, average, group=group)
    whole = (weights * loss).sum()
    pieces = [torch.tensor(parts) == k for k in range(3)]
    assert math.isclose(whole, sum((weights[p] * loss[p]).sum() for p in pieces), rel_tol=1e-10, abs_tol=1e-14)


@pytest.mark.parametrize("average", EVERY, ids=lambda a: a.kind)
def test_ranks_with_a_shared_total_equal_one_machine(average):
    loss, mask, _ = batch()
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    first, second = torch.arange(7) < 3, torch.arange(7) >= 3
    total = sum(weight_total(mask[p], average, group=group[p]) for p in (first, second))
    value = sum((token_weights(mask[p], average, group=group[p], total=total) * loss[p]).sum() for p in (first, second))
    assert math.isclose(value, (token_weights(mask, average, group=group) * loss).sum(), rel_tol=1e-12)


def test_averaging_averages_is_another_number():
    loss, mask, _ = batch()
    halves = [torch.arange(7) < 3, torch.arange(7) >= 3]
    twice = sum((token_weights(mask[p], Average("token")) * loss[p]).sum() for p in halves) / 2
    assert not math.isclose(twice, (token_weights(mask, Average("token")) * loss).sum(), rel_tol=1e-3)


@pytest.mark.parametrize("average", EVERY, ids=lambda a: a.kind)
def test_a_trajectory_in_two_segments_counts_once(average):
    """Cutting one row into two rows of the same trajectory changes no average."""
    _, mask, group = batch(n=4)
    mask[0, 4] = mask[2, 3] = True
    cut = mask[:1] & (torch.arange(6) < 3), mask[:1] & (torch.arange(6) >= 3)
    assert cut[0].any() and cut[1].any()
    before = token_weights(mask, average, group=group)
    after = token_weights(
        torch.cat([*cut, mask[1:]]),
        average,
        group=torch.cat([group[:1], group]),
        trajectory=torch.tensor([9, 9, 1, 2, 3]),
    )
    torch.testing.assert_close(after[0] + after[1], before[0])
    torch.testing.assert_close(after[2:], before[1:])


@pytest.mark.parametrize("average", EVERY, ids=lambda a: a.kind)
def test_padding_and_order_change_nothing(average):
    _, mask, group = batch()
    weights = token_weights(mask, average, group=group)
    padded = torch.nn.functional.pad(mask, (0, 3, 0, 2))
    torch.testing.assert_close(
        token_weights(padded, average, group=torch.cat([group, torch.tensor([50, 51])]))[:7, :6], weights
    )
    order = torch.randperm(7)
    torch.testing.assert_close(token_weights(mask[order], average, group=group[order]), weights[order])


@pytest.mark.parametrize("average", EVERY, ids=lambda a: a.kind)
def test_an_empty_mask_weighs_nothing(average):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert not token_weights(mask, average, group=torch.tensor([0, 1])).any()


def test_row_weights():
    mask = torch.tensor([[False, True], [False, True], [False, False], [False, True]])
    third = 1 / 3
    assert row_weights(mask, Average("sequence")).tolist() == pytest.approx([third, third, 0, third])
    group = torch.tensor([5, 5, 7, 7])
    assert row_weights(mask, Average("prompt"), group=group).tolist() == [0.25, 0.25, 0, 0.5]
    assert row_weights(mask, Average("pair"), group=group).tolist() == [0.5, 0.5, 0, 0.5]
    assert row_weights(mask, Average("pair"), group=group, total=8).tolist() == [0.125, 0.125, 0, 0.125]


def test_a_single_token_weighs_one():
    one = torch.tensor([[False, True, False], [False, False, False]])
    group = torch.tensor([3, 4])
    for average in (Average("token"), Average("sequence"), Average("prompt"), Average("sum"), Average("constant", 1)):
        assert token_weights(one, average, group=group).tolist() == [[0, 1, 0], [0, 0, 0]]
        assert weight_total(one, average, group=group) == 1
    for kind in ("sequence", "sum", "prompt", "pair"):
        assert row_weights(one, Average(kind), group=group).tolist() == [1, 0], "a group without an answer is no group"
        assert not row_weights(one & False, Average(kind), group=group).any()


def test_weights_come_in_the_dtype_that_is_asked_for():
    torch.set_default_dtype(torch.float32)
    mask = torch.ones(3, 1, dtype=torch.bool)
    for average in (Average("token"), Average("sequence"), Average("prompt")):
        for make in (token_weights, weight_total):
            assert make(mask, average, group=torch.zeros(3)).dtype == torch.float32
            assert make(mask, average, group=torch.zeros(3), dtype=torch.float64).dtype == torch.float64
    for kind in ("sequence", "prompt"):
        found = row_weights(mask, Average(kind), group=torch.zeros(3), dtype=torch.float64)
        assert found.dtype == torch.float64 and found[0] == 1 / 3
        assert row_weights(mask, Average(kind), group=torch.zeros(3)).dtype == torch.float32


def test_averages_without_meaning_are_refused():
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="longest answer"):
        Average("constant")
    with pytest.raises(ConfigError, match="longest answer"):
        Average("constant", horizon=0)
    with pytest.raises(ConfigError, match="changes nothing"):
        Average("token", horizon=10)
    with pytest.raises(ConfigError, match="is not one of token, sequence"):
        Average("tokens")
    with pytest.raises(ConfigError, match="per pair"):
        token_weights(mask, Average("pair"), group=torch.tensor([0, 0]))
    with pytest.raises(ConfigError, match="counts tokens"):
        row_weights(mask, Average("token"))
    with pytest.raises(ShapeError, match="group ids"):
        token_weights(mask, Average("prompt"))
