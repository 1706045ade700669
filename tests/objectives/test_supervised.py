"""Supervised losses: whole optimizer steps of peers, the definitions, and junk under the mask."""

import math

import oracle
import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.supervised import cross_entropy, dft, smoothed_cross_entropy
from posttrain.objectives.tokens import logprobs_from_hidden, predicting, token_logprobs


@pytest.mark.parametrize("case", oracle.cases("sft", "accumulated_nll", "accumulated_dft"))
def test_a_step_of_micro_batches_equals_trl(case):
    """Weights of the whole step, cut into three micro-batches, give TRL's globally normalised loss."""
    logits, labels, ids = case.leaf("logits"), case["labels"], case["ids"]
    mask = labels != -100
    mask[..., 0] = False
    formula = dft if case.hyper["loss_type"] == "dft" else cross_entropy
    weights = token_weights(mask.flatten(0, 1), Average("token"), total=case.hyper["num_items_in_batch"])
    losses = []
    for k in range(3):
        loss, _ = formula(token_logprobs(logits[k], ids[k]), mask[k])
        losses.append((weights.view_as(mask)[k] * loss).sum())
    case.check("micro_losses", torch.stack(losses))
    case.check("step_loss", sum(losses))
    sum(losses).backward()
    case.check("grad_logits", logits.grad)


@pytest.mark.parametrize("case", oracle.cases("sft", "openrlhf_token", "openrlhf_sequence"))
def test_averages_equal_openrlhf(case):
    mask = case["mask"] > 0
    average = Average("token" if case.hyper["token_level_loss"] else "sequence")
    loss, _ = cross_entropy(case["logps"], mask)
    case.check("loss", (token_weights(mask, average) * loss).sum())


def data():
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    return -2 * torch.rand(2, 4), -3 * torch.rand(2, 4), mask


def smoothed(logp, mask, mean=None):
    return smoothed_cross_entropy(logp, logp if mean is None else mean, mask, smoothing=0.1)


def test_definitions():
    logp, mean, mask = data()
    for n, t in mask.nonzero().tolist():
        x, m = float(logp[n, t]), float(mean[n, t])
        assert cross_entropy(logp, mask)[0][n, t] == -x
        assert math.isclose(dft(logp, mask)[0][n, t], -math.exp(x) * x)
        assert math.isclose(smoothed(logp, mask, mean)[0][n, t], -0.9 * x - 0.1 * m)


@pytest.mark.parametrize("formula", [cross_entropy, dft, smoothed])
def test_junk_under_the_mask_changes_nothing(formula):
    logp, _, mask = data()
    leaf = torch.where(mask, logp, math.nan).requires_grad_()
    loss, metrics = formula(leaf, mask)
    loss.sum().backward()
    assert not loss[~mask].any() and not leaf.grad[~mask].any() and torch.isfinite(loss).all()
    total, count = metrics["nll"]
    assert math.isclose(total / count, -logp[mask].mean())


def test_dft_has_the_gradient_of_minus_the_probability():
    logp, _, mask = data()
    leaf = logp.requires_grad_()
    dft(leaf, mask)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, torch.where(mask, -logp.exp(), 0.0).detach())


def test_label_smoothing_equals_torch_through_the_chunked_head():
    hidden, weight, tokens = torch.randn(2, 4, 3), torch.randn(6, 3), torch.randint(6, (2, 4))
    mask = data()[2]
    rows, before, at = predicting(mask)
    stats = logprobs_from_hidden(hidden[rows, before], weight, tokens[rows, at], chunk=2, needs=("mean_logp",))
    logp = torch.zeros(2, 4).index_put((rows, at), stats.logp)
    mean = torch.zeros(2, 4).index_put((rows, at), stats.mean_logp)
    loss, _ = smoothed_cross_entropy(logp, mean, mask, smoothing=0.2)
    expected = torch.nn.functional.cross_entropy(
        hidden[rows, before] @ weight.T, tokens[rows, at], reduction="none", label_smoothing=0.2
    )
    torch.testing.assert_close(loss[mask], expected)


def test_smoothing_by_nothing_is_refused():
    logp, mean, mask = data()
    with pytest.raises(ConfigError, match="use cross_entropy"):
        smoothed_cross_entropy(logp, mean, mask, smoothing=0.0)
