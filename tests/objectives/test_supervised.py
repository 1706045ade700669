"""Supervised losses: the definitions, whole optimizer steps in pieces, and junk under the mask."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.supervised import cross_entropy, dft, prompt_completion_weights, smoothed_cross_entropy
from posttrain.objectives.tokens import logprobs_from_hidden, predicting


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
    assert not total.requires_grad
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
    for smoothing in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="use cross_entropy"):
            smoothed_cross_entropy(logp, mean, mask, smoothing=smoothing)


def test_formulas_refuse_other_shapes():
    logp, mean, mask = data()
    for call in (
        lambda: cross_entropy(logp[:, :3], mask),
        lambda: dft(logp[:1], mask),
        lambda: smoothed(logp, mask, mean[:, :3]),
        lambda: prompt_completion_weights(mask, mask[:1], prompt_weight=0.1),
    ):
        with pytest.raises(ShapeError):
            call()


@pytest.mark.parametrize("formula", [cross_entropy, dft, smoothed])
def test_gradcheck_and_extremes(formula):
    logp, _, mask = data()
    if formula is not dft:  # whose weight is detached on purpose
        assert torch.autograd.gradcheck(lambda x: formula(x, mask)[0], (logp.requires_grad_(),))
    leaf = torch.tensor([[0.0, -1e4, 0.0, -1e4]], requires_grad=True)
    every, none = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    for m in (every, none):
        loss, metrics = formula(leaf, m)
        slope = torch.autograd.grad(loss.sum(), leaf)[0]
        assert torch.isfinite(loss).all() and torch.isfinite(slope).all()
        assert metrics["nll"][1] == m.sum()
    assert not slope.any()


def test_smoothing_is_a_mixture_with_the_uniform_target():
    """Section 7 of the paper from its definition: cross-entropy against (1 - ε) onehot + ε / V."""
    logits, mask = torch.randn(1, 2, 5), torch.tensor([[False, True]])
    logq = torch.log_softmax(logits, -1)
    target = torch.full((5,), 0.3 / 5)
    target[3] += 0.7
    expected = -sum(float(target[v]) * float(logq[0, 1, v]) for v in range(5))
    loss, _ = smoothed_cross_entropy(logq[..., 3], logq.mean(-1), mask, smoothing=0.3)
    assert math.isclose(loss[0, 1], expected, rel_tol=1e-12) and loss[0, 0] == 0


def test_a_step_in_pieces_is_the_step():
    """Card 05's numbers: 2 tokens of loss 1 and 8 of loss 3 in two micro-batches; the mean is 2.6 and not 2."""
    mask = torch.tensor([[True] * 2 + [False] * 6, [True] * 8])
    logp = torch.where(mask, torch.tensor([[-1.0], [-3.0]]), math.nan)
    weights = token_weights(mask, Average("token"))
    pieces = [(weights[k] * cross_entropy(logp[k : k + 1], mask[k : k + 1])[0]).sum() for k in range(2)]
    assert math.isclose(sum(pieces), 2.6, rel_tol=1e-12)
    by_sequence = token_weights(mask, Average("sequence"))
    assert math.isclose((by_sequence * cross_entropy(logp, mask)[0]).sum(), 2.0, rel_tol=1e-12)


def spans():
    prompt = torch.tensor([[False] + [True] * 4 + [False] * 2, [False, True] + [False] * 5])
    completion = torch.tensor([[False] * 5 + [True] * 2, [False] * 2 + [True] * 2 + [False] * 3])
    return prompt, completion


def test_prompt_weights_by_hand():
    """A prompt of 4 at one half beside an answer of 2, and 1 beside 2: Σ m = 2 + 2 + 0.5 + 2."""
    prompt, completion = spans()
    w = prompt_completion_weights(prompt, completion, prompt_weight=0.5)
    assert w.tolist() == [
        [x / 6.5 for x in (0, 0.5, 0.5, 0.5, 0.5, 1, 1)],
        [x / 6.5 for x in (0, 0.5, 1, 1, 0, 0, 0)],
    ]
    assert w.dtype == torch.float64
    half = prompt_completion_weights(prompt, completion, prompt_weight=0.1, dtype=torch.float32)
    assert half.dtype == torch.float32 and math.isclose(half.sum(), 1, rel_tol=1e-6)


def test_prompt_weights_end_in_the_plain_averages():
    prompt, completion = spans()
    for weight, mask in ((0, completion), (1, prompt | completion)):
        w = prompt_completion_weights(prompt, completion, prompt_weight=weight)
        torch.testing.assert_close(w, token_weights(mask, Average("token")))
    both = prompt_completion_weights(completion, completion, prompt_weight=0.5)
    torch.testing.assert_close(both, token_weights(completion, Average("token")))


def test_prompt_weights_of_a_part_of_the_step():
    prompt, completion = spans()
    whole = prompt_completion_weights(prompt, completion, prompt_weight=0.25)
    parts = [prompt_completion_weights(p[None], c[None], prompt_weight=0.25, total=5.25)
             for p, c in zip(prompt, completion, strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), whole)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert not prompt_completion_weights(nothing, nothing, prompt_weight=0.5).any()
    with pytest.raises(ConfigError, match="learn answers"):
        prompt_completion_weights(prompt, completion, prompt_weight=1.5)
