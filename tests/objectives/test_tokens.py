"""Log-probabilities of tokens: the one shift, and the chunked head against whole logits."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives import tokens
from posttrain.objectives.tokens import (
    answers,
    check_shapes,
    detached,
    entropy,
    logits_before,
    logprobs_from_hidden,
    masked,
    predicting,
    token_logprobs,
    values_before,
)

NEEDS = ("entropy", "sum_sq", "mean_logp", "mean_logit", "top1")


def head(m=23, d=6, v=11):
    return torch.randn(m, d), torch.randn(v, d), torch.randint(v, (m,))


def plain(hidden, weight, targets, temperature=1.0):
    """The same statistics from all the logits at once."""
    temperature = torch.as_tensor(temperature).reshape(-1, 1)
    z = hidden @ weight.T / temperature
    logq = torch.log_softmax(z, -1)
    p = logq.exp()
    logp = logq.gather(1, targets[:, None])[:, 0]
    return logp, -(p * logq).sum(1), p.square().sum(1), logq.mean(1), z.mean(1), z.argmax(1) == targets


def test_token_logprobs_against_a_loop():
    logits, ids = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    logp = token_logprobs(logits, ids)
    for n in range(2):
        assert logp[n, 0] == 0
        for t in range(1, 4):
            z = logits[n, t - 1].tolist()
            expected = z[ids[n, t]] - math.log(sum(math.exp(x) for x in z))
            assert math.isclose(logp[n, t], expected, rel_tol=1e-12)


def test_temperature_divides_the_logits_of_its_row():
    logits, ids = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    logp = token_logprobs(logits, ids, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(logp[0], token_logprobs(logits * 2, ids)[0])
    torch.testing.assert_close(logp[1], token_logprobs(logits / 2, ids)[1])
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, ids, torch.tensor([0.5, 2.0])), logits.requires_grad_())


def test_logits_before_are_those_that_token_logprobs_reads():
    logits, ids = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    moved = logits_before(logits)
    assert not moved[:, 0].any() and moved.shape == logits.shape
    logp = torch.log_softmax(moved, -1).gather(2, ids[..., None])[..., 0]
    torch.testing.assert_close(logp[:, 1:], token_logprobs(logits, ids)[:, 1:])
    with pytest.raises(ShapeError, match="NTV"):
        logits_before(logits[0])


def test_low_precision_logits_are_widened_before_the_softmax():
    logits, ids = torch.randn(2, 4, 50).bfloat16(), torch.randint(50, (2, 4))
    logp = token_logprobs(logits, ids)
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), token_logprobs(logits.double(), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 23, 100])
@pytest.mark.parametrize("keep", [0, 4 * 11 * 8, 10**9])  # bytes: recompute all, keep some chunks, keep all
@pytest.mark.parametrize("temperature", [1.0, 0.7, "rows"])
def test_chunked_head_equals_whole_logits(chunk, keep, temperature, monkeypatch):
    monkeypatch.setattr(tokens, "_KEEP_BYTES", keep)
    hidden, weight, targets = head()
    temperature = torch.rand(23) + 0.5 if temperature == "rows" else temperature
    g = torch.randn(4, 23)
    results = []
    for chunked in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            stats = logprobs_from_hidden(h, w, targets, temperature=temperature, chunk=chunk, needs=NEEDS)
        else:
            stats = plain(h, w, targets, temperature)
        logp, ent, sum_sq, mean, mean_logit, top1 = stats
        (g[0] * logp + g[1] * ent + g[3] * mean).sum().backward()
        results.append((logp, ent, sum_sq, mean, mean_logit, top1, h.grad, w.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_statistics_against_a_loop():
    """One row by hand: p = (1/2, 1/3, 1/6) at temperature 1, the target is the second token."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[6.0], [4.0], [2.0]]).log()
    stats = logprobs_from_hidden(hidden, weight, torch.tensor([1]), needs=NEEDS)
    p = (1 / 2, 1 / 3, 1 / 6)
    assert math.isclose(stats.logp, math.log(1 / 3), rel_tol=1e-12)
    assert math.isclose(stats.entropy, -sum(x * math.log(x) for x in p), rel_tol=1e-12)
    assert math.isclose(stats.sum_sq, 1 / 4 + 1 / 9 + 1 / 36, rel_tol=1e-12)
    assert math.isclose(stats.log_sum_sq, math.log(1 / 4 + 1 / 9 + 1 / 36), rel_tol=1e-12)
    assert math.isclose(stats.mean_logp, sum(math.log(x) for x in p) / 3, rel_tol=1e-12)
    assert math.isclose(stats.mean_logit, math.log(48) / 3, rel_tol=1e-12)
    assert not stats.top1 and logprobs_from_hidden(hidden, weight, torch.tensor([0]), needs=("top1",)).top1
    halved = logprobs_from_hidden(hidden, weight, torch.tensor([1]), temperature=2.0, needs=NEEDS)
    assert math.isclose(halved.mean_logit, math.log(48) / 6, rel_tol=1e-12)


@pytest.mark.parametrize("needs", [(), ("entropy",), ("mean_logp",)])
def test_chunked_head_gradcheck(needs):
    hidden, weight, targets = head(m=5, d=3, v=4)

    def f(h, w):
        return tuple(x for x in logprobs_from_hidden(h, w, targets, chunk=2, needs=needs) if x is not None)

    assert torch.autograd.gradcheck(f, (hidden.requires_grad_(), weight.requires_grad_()))


def test_chunked_head_gradient_of_each_statistic_alone():
    hidden, weight, targets = head()
    for name, index in (("logp", 0), ("entropy", 1), ("mean_logp", 3)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        getattr(logprobs_from_hidden(h, w, targets, chunk=5, needs=NEEDS), name).sum().backward()
        h2 = hidden.clone().requires_grad_()
        plain(h2, weight, targets)[index].sum().backward()
        torch.testing.assert_close(h.grad, h2.grad, atol=1e-11, rtol=1e-11)


def test_what_is_only_watched_carries_no_gradient():
    hidden, weight, targets = head()
    stats = logprobs_from_hidden(hidden.requires_grad_(), weight, targets, needs=NEEDS)
    assert [name for name, x in stats._asdict().items() if not x.requires_grad] == ["sum_sq", "mean_logit", "top1"]


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.numbers = max([self.numbers, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


def test_no_tensor_has_a_number_for_every_token_and_word():
    """Neither the forward nor the backward makes anything larger than the logits of one chunk."""
    hidden, weight, targets = torch.randn(64, 4), torch.randn(50, 4), torch.randint(50, (64,))
    with Largest() as chunked:
        stats = logprobs_from_hidden(hidden.requires_grad_(), weight.requires_grad_(), targets, chunk=8, needs=NEEDS)
        (stats.logp + stats.entropy + stats.mean_logp).sum().backward()
    assert chunked.numbers == 8 * 50
    with Largest() as whole:
        plain(hidden, weight, targets)[0].sum().backward()
    assert whole.numbers == 64 * 50


def test_what_is_asked_for_but_not_used_changes_no_bit_of_the_gradient():
    hidden, weight, targets = head()
    slopes = []
    for needs in ((), NEEDS):
        h = hidden.clone().requires_grad_()
        logprobs_from_hidden(h, weight, targets, needs=needs).logp.square().sum().backward()
        slopes.append(h.grad)
    assert torch.equal(*slopes)


@pytest.mark.parametrize("needs", [(), NEEDS])
def test_bfloat16_in_the_backward_rounds_the_gradient_and_nothing_else(needs):
    hidden, weight, targets = head()
    hidden, weight = hidden.float(), weight.float()
    found = {}
    for backward in (None, torch.bfloat16):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        stats = logprobs_from_hidden(h, w, targets, chunk=5, needs=needs, backward=backward)
        sum(x.square().sum() for x in stats if x is not None and x.requires_grad).backward()
        found[backward] = stats, h.grad, w.grad
    (exact, *slopes), (same, *rounded) = found.values()
    assert all(torch.equal(x, y) for x, y in zip(exact, same, strict=True) if x is not None)
    for fine, coarse in zip(slopes, rounded, strict=True):
        assert coarse.dtype == torch.float32
        assert 0 < (fine - coarse).norm() < 2**-7 * fine.norm()


def test_temperature_is_given_not_learned():
    hidden, weight, targets = head()
    temperature = (torch.rand(23) + 0.5).requires_grad_()
    logprobs_from_hidden(hidden.requires_grad_(), weight, targets, temperature=temperature).logp.sum().backward()
    assert temperature.grad is None and hidden.grad is not None


def test_frozen_head_or_hidden_get_no_gradient():
    hidden, weight, targets = head()
    h = hidden.clone().requires_grad_()
    logprobs_from_hidden(h, weight, targets).logp.sum().backward()
    assert h.grad is not None and weight.grad is None
    w = weight.clone().requires_grad_()
    logprobs_from_hidden(hidden, w, targets).logp.sum().backward()
    assert w.grad is not None and hidden.grad is None


def test_chunked_head_may_be_walked_back_twice():
    hidden, weight, targets = head()
    h = hidden.requires_grad_()
    logp = logprobs_from_hidden(h, weight, targets).logp
    first = torch.autograd.grad(logp.sum(), h, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(logp.sum(), h)[0], first, atol=0, rtol=0)


def test_zero_head_is_uniform():
    stats = logprobs_from_hidden(torch.randn(3, 4), torch.zeros(8, 4), torch.tensor([0, 3, 7]), needs=NEEDS)
    assert stats.top1.all()  # of eight equal tokens any is a best one
    for value, expected in zip(stats[:-1], (-math.log(8), math.log(8), 1 / 8, -math.log(8), 0.0), strict=True):
        torch.testing.assert_close(value, torch.full((3,), expected))


def test_no_rows_give_empty_statistics_and_zero_gradients():
    h, w = torch.zeros(0, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    stats = logprobs_from_hidden(h, w, torch.zeros(0, dtype=torch.long), needs=NEEDS)
    assert all(x.shape == (0,) for x in stats)
    stats.logp.sum().backward()
    assert h.grad.shape == (0, 4) and not w.grad.any()


def test_extreme_logits_stay_finite():
    h = (torch.eye(3, dtype=torch.float32) * 1e4).requires_grad_()
    stats = logprobs_from_hidden(h, torch.eye(3, dtype=torch.float32), torch.tensor([0, 1, 0]), needs=NEEDS)
    (stats.logp.sum() + stats.entropy.sum()).backward()
    assert all(torch.isfinite(x).all() for x in stats) and torch.isfinite(h.grad).all()


def test_kept_memory_is_bounded():
    kept = tokens._KEEP_BYTES
    hidden, weight, targets = torch.randn(64, 4).requires_grad_(), torch.randn(8, 4), torch.zeros(64, dtype=torch.long)
    tokens._KEEP_BYTES = 3 * 10 * 8 * 8  # three chunks of ten rows
    try:
        logp = logprobs_from_hidden(hidden, weight, targets, chunk=10).logp
    finally:
        tokens._KEEP_BYTES = kept
    assert sum(e.numel() for e in logp.grad_fn.saved_tensors[5::2]) == 3 * 10 * 8
    with torch.no_grad():
        assert logprobs_from_hidden(hidden, weight, targets).logp.grad_fn is None


def test_head_refuses_what_it_cannot_do():
    hidden, weight, targets = head()
    with pytest.raises(ConfigError, match="can make entropy"):
        logprobs_from_hidden(hidden, weight, targets, needs=("perplexity",))
    with pytest.raises(ConfigError, match="greedy"):
        logprobs_from_hidden(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ShapeError, match="MD VD M"):
        logprobs_from_hidden(hidden, weight[:, :3], targets)


def test_predicting_finds_the_state_before_each_token():
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    rows, before, at = predicting(mask)
    assert rows.tolist() == [0, 0, 1] and at.tolist() == [1, 3, 2] and before.tolist() == [0, 2, 1]
    logits, ids = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    direct = torch.log_softmax(logits[rows, before], -1).gather(1, ids[rows, at][:, None])[:, 0]
    torch.testing.assert_close(direct, token_logprobs(logits, ids)[mask])


def test_the_first_token_cannot_be_predicted():
    with pytest.raises(ShapeError, match=r"rows \[1\]"):
        predicting(torch.tensor([[False, True], [True, True]]))


def test_values_before_are_made_without_seeing_the_token():
    assert values_before(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0.0, 1.0, 2.0]]


def test_answers_sum_under_the_mask_whatever_stands_elsewhere():
    logp = torch.tensor([[math.nan, -1.0, -2.0, math.inf], [math.nan, -3.0, math.nan, math.nan]], requires_grad=True)
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
    total, length = answers(logp, mask)
    assert total.tolist() == [-3.0, -3.0] and length.tolist() == [2.0, 1.0]
    total.sum().backward()
    assert torch.equal(logp.grad, mask.double())


def test_entropy_of_uniform_and_certain():
    assert math.isclose(entropy(torch.zeros(7)), math.log(7))
    assert entropy(torch.tensor([0.0, -math.inf])) == 0
    p = torch.tensor([0.5, 0.3, 0.2])
    assert round(entropy(p.log()).item(), 6) == 1.029653
    torch.testing.assert_close(entropy(p.log(), 0.5), entropy(2 * p.log()))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_entropy_and_logprobs_at_extreme_logits(size):
    logits = torch.tensor([[[size, 0.0, -size], [0.0, 0.0, size], [0.0, 0.0, 0.0]]], requires_grad=True)
    (entropy(logits).sum() + token_logprobs(logits, torch.tensor([[0, 0, 1]])).sum()).backward()
    assert torch.isfinite(logits.grad).all()


def test_check_shapes():
    check_shapes("NT", torch.zeros(2, 3), torch.zeros(2, 3))
    check_shapes("NTV NT N", torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ShapeError, match=r"\[2, 3\], \[2, 4\]"):
        check_shapes("NT", torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError):
        check_shapes("NT N", torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ShapeError, match="describes 2"):
        check_shapes("NT N", torch.zeros(2, 3))


def test_masked_keeps_junk_out_of_value_and_gradient():
    x = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    mask = torch.tensor([True, False, False])
    (masked(x, mask) * torch.tensor([2.0, math.nan, math.inf]).masked_fill(~mask, 1.0)).sum().backward()
    assert masked(x, mask).tolist() == [1.0, 0.0, 0.0] and x.grad.tolist() == [2.0, 0.0, 0.0]


def test_detached_cuts_the_graph():
    x = torch.ones(2, requires_grad=True)
    assert not detached(double=x * 2)["double"].requires_grad
