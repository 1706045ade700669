"""The glossary is complete and unambiguous, and (sum, count) metrics add up."""

import pytest
import torch

from posttrain.train.metrics import HEADLINE, METRICS, add, lookup, mean


def test_every_row_says_everything():
    for name, row in METRICS.items():
        assert row.name == name and row.formula and row.meaning and row.healthy and row.alarm, name
        assert 1 <= row.section <= 27, name
    assert all(name in METRICS or lookup(name) for name in HEADLINE)


def test_families_match_their_members_only():
    assert lookup("eval_countdown").name == "eval_*"
    assert lookup("eval_nll").name == "eval_nll"
    assert lookup("reward_part_format").name == "reward_part_*"
    for unknown in ("eval_", "reward_part", "gradnorm"):
        with pytest.raises(KeyError, match="not in the glossary"):
            lookup(unknown)


def test_means_divide_once():
    metrics = add({"entropy": (1.0, 2.0), "loss": (5.0, 1.0)}, {"entropy": (3.0, 6.0), "nll": (1.0, 4.0)})
    assert mean(metrics) == {"entropy": 0.5, "loss": 5.0, "nll": 0.25}
    assert mean({"b": 2, "a": torch.tensor(3.0)}) == {"a": 3.0, "b": 2.0}
    assert list(mean({"b": 2, "a": 1})) == ["a", "b"]


def test_what_nothing_was_counted_for_is_left_out():
    assert mean({"tool_error_share": (0.0, 0), "loss": (torch.tensor(1.0), torch.tensor(0))}) == {}


def test_maxima_do_not_add():
    assert add({"ratio_max": (2.0, 1)}, {"ratio_max": (torch.tensor(3.0), 1)}) == {"ratio_max": (torch.tensor(3.0), 1)}


def test_any_split_gives_the_same_mean():
    values = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = {"nll": (values.sum(), 12)}
    parts: dict = {}
    for piece in (values[:1], values[1:8], values[8:]):
        parts = add(parts, {"nll": (piece.sum(), len(piece))})
    assert mean(parts)["nll"] == pytest.approx(mean(whole)["nll"], rel=1e-14)
