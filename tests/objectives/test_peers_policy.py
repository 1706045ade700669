"""What TRL and verl call an average or an input, by hand; whole losses are compared in tests/oracles."""

import math

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.mismatch import Mismatch, mismatch_weight
from posttrain.objectives.peers import (
    capped_weight,
    sampler_of,
    spread_over_tokens,
    trl_policy_weights,
    trl_top_entropy,
    verl_weights,
)
from posttrain.objectives.surrogate import Clip, importance
from posttrain.objectives.token_masks import top_entropy

MASK = torch.tensor([[True, True, False, False], [True, True, True, True], [False] * 4])
FULL = MASK[:2]


@pytest.mark.parametrize(
    "ours, trl, verl",
    [("token", "bnpo", "token-mean"), ("token", "dapo", "token-mean"), ("sum", "luspo", "seq-mean-token-sum"),
     ("sequence", "grpo", "seq-mean-token-mean"), ("sequence", "sapo", "seq-mean-token-mean")],
)  # fmt: skip
def test_peers_averages_are_ours_where_no_answer_is_empty(ours, trl, verl):
    expected = token_weights(FULL, Average(ours))
    torch.testing.assert_close(trl_policy_weights(FULL, trl), expected)
    torch.testing.assert_close(verl_weights(FULL, verl), expected)


def test_constants():
    expected = token_weights(FULL, Average("constant", 10))
    torch.testing.assert_close(trl_policy_weights(FULL, "dr_grpo", max_completion_length=10), expected)
    torch.testing.assert_close(verl_weights(FULL, "seq-mean-token-sum-norm", loss_scale_factor=10), expected)
    padded = verl_weights(FULL, "seq-mean-token-sum-norm")
    torch.testing.assert_close(padded, token_weights(FULL, Average("constant", 4)))


def test_trl_counts_empty_answers_and_verl_does_not():
    assert (
        trl_policy_weights(MASK, "grpo")[0, 0] == 1 / (3 * 2)
        and verl_weights(MASK, "seq-mean-token-mean")[0, 0] == 1 / 4
    )
    assert trl_policy_weights(MASK, "luspo")[0, 0] == 1 / 3 and verl_weights(MASK, "seq-mean-token-sum")[0, 0] == 1 / 2
    assert not trl_policy_weights(MASK, "grpo")[~MASK].any()


def test_trl_s_accumulation():
    for kind in ("grpo", "bnpo", "luspo", "dr_grpo"):
        once = trl_policy_weights(MASK, kind, max_completion_length=9)
        four = trl_policy_weights(MASK, kind, max_completion_length=9, gradient_accumulation_steps=4)
        torch.testing.assert_close(four, once / 4)
    found = trl_policy_weights(
        MASK, "dapo", num_items_in_batch=48, gradient_accumulation_steps=4, steps_per_generation=8
    )
    assert found[0, 0] == 8 / (48 * 4)


def test_verl_s_ranks():
    assert verl_weights(MASK, "token-mean", batch_num_tokens=37, dp_size=2)[0, 0] == 2 / 37
    assert verl_weights(MASK, "token-sum", dp_size=2)[0, 0] == 2
    assert verl_weights(MASK, "seq-mean-token-mean", global_batch_size=11, dp_size=2)[1, 0] == 2 / (11 * 4)


def test_weights_are_float64_whatever_the_default():
    torch.set_default_dtype(torch.float32)
    assert trl_policy_weights(FULL, "grpo").dtype == verl_weights(FULL, "token-mean").dtype == torch.float64


def test_inputs_in_another_form():
    assert capped_weight(5.0) == Clip(kind="weight", low=None, high=4.0) and capped_weight(5.0).edges == (0.0, 5.0)
    old, weight = -torch.rand(2, 4), torch.tensor([[0.5, 1.0, 2.0, 0.0]] * 2)
    found, _ = mismatch_weight(old, sampler_of(old, weight), FULL, Mismatch(kind="truncate", high=None))
    torch.testing.assert_close(found[FULL], weight[FULL])
    spread = spread_over_tokens(torch.tensor([-6.0, -8.0]), FULL)
    assert spread.tolist() == [[-3.0, -3.0, 0.0, 0.0], [-2.0] * 4]
    assert spread_over_tokens(torch.tensor([-6.0, -8.0, 0.0]), MASK)[2].tolist() == [0.0] * 4
    assert spread_over_tokens(torch.tensor([-6.0, -8.0, -5.0]), MASK[:, :1])[:, 0].tolist() == [-6.0, -8.0, 0.0]
    assert importance(spread, spread, FULL, "sequence_sum").abs().max() == 0


def test_top_entropy_in_float32_is_ours():
    entropy = torch.rand(6, 9)
    mask = torch.rand(6, 9) < 0.7
    for share in (0.2, 0.37, 0.8):
        single = entropy.float()
        assert torch.equal(trl_top_entropy(single, mask, share), top_entropy(single, mask, share))
    third = torch.tensor([[1 / 3, 0.9, 0.1]])  # the median of three is 1/3, which float32 rounds up
    every = torch.ones(1, 3, dtype=torch.bool)
    assert top_entropy(third, every, 0.5)[0, 0] and not trl_top_entropy(third, every, 0.5)[0, 0]
    assert trl_top_entropy(third.float(), every, 0.5)[0].tolist() == [True, True, False]
    assert math.isclose(float(third.float()[0, 0]), 1 / 3, rel_tol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="loss_type"):
        trl_policy_weights(MASK, "ppo")
    with pytest.raises(ConfigError, match="loss_agg_mode"):
        verl_weights(MASK, "token_mean")
