"""Distillation: divergences against loops, chunks against the whole, and gradients by enumeration of all samples."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.distill import (
    generalized_jsd,
    jsd_from_hidden,
    logit_distillation,
    logprobs_of,
    minillm_advantage,
    sampled_reverse_kl,
    teacher_advantage,
    top_k_bucketed,
    top_k_renormalised,
    with_rest,
)
from posttrain.objectives.kl import forward_kl, reverse_kl
from posttrain.objectives.tokens import logits_before, predicting

TEACHER = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
STUDENT = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
ONE = torch.ones(1, 1, dtype=torch.bool)
MASK = torch.tensor([[False, True, True, False], [False, False, True, True]])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def softmax(z, temperature=1.0):
    e = [math.exp(x / temperature) for x in z]
    return [x / sum(e) for x in e]


def pair(v=6):
    return torch.randn(2, 4, v), torch.randn(2, 4, v)


def log_pair():
    return STUDENT.log()[None, None], TEACHER.log()[None, None]


def test_worked_numbers():
    student, teacher = log_pair()
    assert round(logit_distillation(student, teacher, ONE).item(), 6) == 0.183787
    for beta, expected in ((0, 0.183787), (0.1, 0.016518), (0.5, 0.046201), (0.9, 0.017100), (1, 0.192042)):
        assert round(generalized_jsd(student, teacher, ONE, beta=beta).item(), 6) == expected
    student, teacher = torch.tensor([[[0.3, 0.3]]]).log(), torch.tensor([[[0.6, 0.2]]]).log()
    assert round(top_k_renormalised(student, teacher, ONE).item(), 6) == 0.641638
    assert round(top_k_bucketed(student, teacher, ONE).item(), 6) == 0.196166


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_divergences_against_loops(temperature):
    student, teacher = pair()
    soft = logit_distillation(student, teacher, MASK, temperature=temperature)
    for beta in (0.0, 0.2, 0.5, 0.9, 1.0):
        loss = generalized_jsd(student, teacher, MASK, beta=beta, temperature=temperature)
        assert not loss[~MASK].any()
        for n, t in MASK.nonzero().tolist():
            s, p = softmax(student[n, t].tolist(), temperature), softmax(teacher[n, t].tolist(), temperature)
            m = [beta * a + (1 - beta) * b for a, b in zip(p, s, strict=True)]
            expected = beta * kl(p, m) + (1 - beta) * kl(s, m) if 0 < beta < 1 else kl(s, p) if beta else kl(p, s)
            assert math.isclose(loss[n, t], expected, rel_tol=1e-9)
            assert math.isclose(soft[n, t], temperature**2 * kl(p, s), rel_tol=1e-9)


def test_warm_temperatures_compare_logits():
    """For large τ Hinton's loss is the squared distance of the centred logits over 2V."""
    student, teacher = pair()
    gap = student - teacher
    gap = gap - gap.mean(-1, keepdim=True)
    loss = logit_distillation(student, teacher, MASK, temperature=1e4)
    torch.testing.assert_close(loss[MASK], (gap.square().sum(-1) / 12)[MASK], rtol=1e-3, atol=0)


def losses():
    yield "soft", lambda s, t, m: logit_distillation(s, t, m, temperature=2.0)
    for beta in (0, 0.3, 1):
        yield f"jsd {beta}", lambda s, t, m, beta=beta: generalized_jsd(s, t, m, beta=beta, temperature=1.5)


def top_losses():
    yield "renormalised", top_k_renormalised
    yield "bucketed", top_k_bucketed


def logp_pair(k=3):
    return [torch.log_softmax(x, -1)[..., :k].detach() for x in pair()]


@pytest.mark.parametrize(("name", "f"), [*losses(), *top_losses()])
def test_junk_teacher_and_gradcheck(name, f):
    student, teacher = logp_pair() if f in (top_k_renormalised, top_k_bucketed) else pair()
    clean = f(student, teacher, MASK)
    junk = torch.tensor([math.nan, math.inf, -math.inf]).repeat(2 * 4 * 2).view(2, 4, -1)[..., : student.shape[-1]]
    s, t = (torch.where(MASK[..., None], x, junk).requires_grad_() for x in (student, teacher))
    loss = f(s, t, MASK)
    assert torch.equal(loss, clean) and not loss[~MASK].any() and (loss[MASK] > 0).all()
    loss.sum().backward()
    assert t.grad is None and not s.grad[~MASK].any() and torch.isfinite(s.grad).all()
    assert torch.autograd.gradcheck(lambda s: f(s, teacher, MASK), (student.requires_grad_(),))
    empty = f(student, teacher, MASK & False)
    assert not empty.any() and not torch.autograd.grad(empty.sum(), student)[0].any()


@pytest.mark.parametrize(("name", "f"), list(losses()))
def test_extreme_logits(name, f):
    s = torch.tensor([[[1e4, 0.0, -1e4]]], requires_grad=True)
    loss = f(s, -s.detach(), ONE)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(s.grad).all()


@pytest.mark.parametrize(("name", "f"), list(losses()))
def test_equal_models_have_nothing_to_learn(name, f):
    s = torch.randn(2, 4, 6, requires_grad=True)
    loss = f(s, s.detach() + 3.0, MASK)  # logits that differ by a constant are the same distribution
    loss.sum().backward()
    assert loss.abs().max() < 1e-14 and s.grad.abs().max() < 1e-14


def test_jsd_falls_to_both_kls():
    student, teacher = pair()
    for beta, f in ((1e-7, forward_kl), (1 - 1e-7, reverse_kl)):
        loss = generalized_jsd(student, teacher, MASK, beta=beta) / 1e-7
        torch.testing.assert_close(loss[MASK], f(student, teacher)[MASK], rtol=1e-5, atol=0)


def hidden_pair(m=11, v=9):
    return torch.randn(m, 4), torch.randn(v, 4), torch.randn(m, 5), torch.randn(v, 5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_jsd_from_hidden_equals_whole_logits(beta, chunk):
    sh, sw, th, tw = (x.requires_grad_() for x in hidden_pair())
    upstream = torch.randn(11)
    loss = jsd_from_hidden(sh, sw, th, tw, beta=beta, temperature=0.8, chunk=chunk)
    found = torch.autograd.grad((upstream * loss).sum(), (sh, sw, th, tw), allow_unused=True)
    whole = generalized_jsd(
        (sh @ sw.T)[None], (th @ tw.T)[None], torch.ones(1, 11, dtype=torch.bool), beta=beta, temperature=0.8
    )[0]
    expected = torch.autograd.grad((upstream * whole).sum(), (sh, sw))
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert found[2] is None and found[3] is None


def test_jsd_from_hidden_gradcheck_and_dtypes():
    sh, sw, th, tw = hidden_pair(m=5, v=4)
    f = lambda h, w: jsd_from_hidden(h, w, th, tw, beta=0.4, chunk=2)  # noqa: E731
    assert torch.autograd.gradcheck(f, (sh.requires_grad_(), sw.requires_grad_()))
    half = [x.detach().bfloat16() for x in (sh, sw, th, tw)]
    assert jsd_from_hidden(*half, beta=0.4).dtype == torch.float32
    assert jsd_from_hidden(sh[:0], sw, th[:0], tw, beta=0.4).shape == (0,)
    same = jsd_from_hidden(sh, sw, sh, sw, beta=0.4)
    assert same.abs().max() < 1e-14


@pytest.mark.parametrize("chunk", [2, 100])
def test_logprobs_of_equals_whole_logits(chunk):
    hidden, weight, ids = (
        torch.randn(7, 4).requires_grad_(),
        torch.randn(9, 4).requires_grad_(),
        torch.randint(9, (7, 3)),
    )
    found = logprobs_of(hidden, weight, ids, temperature=0.7, chunk=chunk)
    whole = torch.log_softmax(hidden @ weight.T / 0.7, -1)
    expected = torch.stack([whole[i, ids[i]] for i in range(7)])
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(7, 3)
    for a, b in zip(
        *(torch.autograd.grad((upstream * x).sum(), (hidden, weight)) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert logprobs_of(hidden, torch.zeros(9, 4), ids).allclose(torch.tensor(-math.log(9)))


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.numbers = max([self.numbers, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


def test_no_tensor_has_a_number_for_every_token_and_word():
    """Forward and backward: nothing larger than one chunk's logits."""
    sh, sw, th, tw = hidden_pair(m=64, v=50)
    with Largest() as largest:
        loss = jsd_from_hidden(sh.requires_grad_(), sw.requires_grad_(), th, tw, beta=0.5, chunk=8)
        loss.sum().backward()
        logprobs_of(sh, sw, torch.zeros(64, 2, dtype=torch.long), chunk=8).sum().backward()
    assert largest.numbers == 8 * 50


def test_rest_is_a_distribution():
    p = with_rest(torch.tensor([0.5, 0.3]).log()).exp()
    torch.testing.assert_close(p, torch.tensor([0.5, 0.3, 0.2]))
    whole = torch.log_softmax(torch.randn(4, 6), -1).requires_grad_()  # k = V: nothing is left
    rest = with_rest(whole)
    torch.testing.assert_close(rest[:, :6], whole)
    assert (rest[:, 6].exp() < 1e-15).all()
    assert torch.isfinite(torch.autograd.grad(rest.sum(), whole)[0]).all()


def test_top_k_against_loops():
    student, teacher = (torch.softmax(x, -1) for x in pair())
    order = teacher.argsort(-1, descending=True)[..., :3]
    s, t = student.gather(2, order), teacher.gather(2, order)
    renormalised, bucketed = (f(s.log(), t.log(), MASK) for f in (top_k_renormalised, top_k_bucketed))
    whole = forward_kl(student.log(), teacher.log())
    for n, i in MASK.nonzero().tolist():
        a, b = s[n, i].tolist(), t[n, i].tolist()
        scaled = [x / sum(b) for x in b]
        assert math.isclose(renormalised[n, i], kl(scaled, a), rel_tol=1e-9)
        assert math.isclose(bucketed[n, i], kl([*b, 1 - sum(b)], [*a, 1 - sum(a)]), rel_tol=1e-9)
        assert bucketed[n, i] < whole[n, i]


def test_top_k_with_every_token_is_the_whole():
    student, teacher = (torch.log_softmax(x, -1) for x in pair())
    whole = torch.where(MASK, forward_kl(student, teacher), 0.0)
    for f in (top_k_renormalised, top_k_bucketed):
        torch.testing.assert_close(f(student, teacher, MASK), whole, atol=1e-12, rtol=1e-12)


def test_where_the_two_top_k_losses_end():
    """The bucket is at rest when the k agree; renormalised, the student still wants more of them."""
    logits = TEACHER.log().requires_grad_()
    teacher = TEACHER.log()[:2]
    top = torch.log_softmax(logits, -1)[None, None, :2]
    bucket = torch.autograd.grad(top_k_bucketed(top, teacher[None, None], ONE).sum(), logits, retain_graph=True)[0]
    assert bucket.abs().max() < 1e-15
    greedy = torch.autograd.grad(top_k_renormalised(top, teacher[None, None], ONE).sum(), logits)[0]
    torch.testing.assert_close(greedy, TEACHER - torch.tensor([0.7, 0.2, 0.0]) / 0.9)


def test_a_teacher_who_says_less_than_k_tokens():
    """Places in the top k that hold no probability (the teacher's own cut) count nothing, also for the gradient."""
    teacher = torch.tensor([[[0.6, 0.4, 0.0]]]).log()
    student = torch.tensor([[[0.3, 0.3, 0.2]]]).log().requires_grad_()
    for f, expected in ((top_k_renormalised, kl((0.6, 0.4), (0.3, 0.3))), (top_k_bucketed, kl((0.6, 0.4), (0.3, 0.3)))):
        loss = f(student, teacher, ONE)
        assert math.isclose(loss.item(), expected, rel_tol=1e-9)
        assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()


def test_one_token_renormalised_is_cross_entropy():
    logp = torch.randn(2, 4, 1)
    loss = top_k_renormalised(logp, torch.full((2, 4, 1), -0.3), MASK)
    torch.testing.assert_close(loss[MASK], -logp[..., 0][MASK])


def test_advantages_by_hand():
    """Log-ratios (1, -2, -4) with a tool's token between, which counts neither as time nor as money."""
    mask = torch.tensor([[False, True, False, True, True]])
    logp = torch.tensor([[math.nan, -1.0, math.nan, -1.0, -1.0]])
    teacher = torch.tensor([[math.nan, 0.0, math.inf, -3.0, -5.0]])
    for discount, expected in ((0.0, (1, -2, -4)), (0.5, (1 - 1 - 1, -4, -4)), (1.0, (-5, -6, -4))):
        found = teacher_advantage(logp, teacher, mask, discount=discount)
        assert found[mask].tolist() == list(expected) and not found[~mask].any()
    found = minillm_advantage(logp, teacher, mask)
    assert found[mask].tolist() == [-3, -4, 0] and not found[~mask].any()


def test_sampled_reverse_kl_is_reinforce_with_the_teacher_as_critic():
    logp, teacher = (-torch.rand(2, 4)).requires_grad_(), (-torch.rand(2, 4)).requires_grad_()
    loss = sampled_reverse_kl(logp, teacher, MASK, discount=0.5)
    advantage = teacher_advantage(logp, teacher, MASK, discount=0.5)
    assert not advantage.requires_grad and not loss[~MASK].any()
    torch.testing.assert_close(loss, torch.where(MASK, -advantage * logp, 0.0))
    slopes = torch.autograd.grad(loss.sum(), (logp, teacher), allow_unused=True)
    torch.testing.assert_close(slopes[0], -advantage)
    assert slopes[1] is None
    junk = torch.where(MASK, logp.detach(), math.nan).requires_grad_()
    again = sampled_reverse_kl(junk, torch.where(MASK, teacher.detach(), math.inf), MASK, discount=0.5)
    torch.testing.assert_close(again, loss)
    assert torch.isfinite(torch.autograd.grad(again.sum(), junk)[0]).all()


class Answers:
    """Every answer of three tokens from a student whose tokens depend on the one before."""

    def __init__(self, v=3):
        self.v = v
        self.student = torch.randn(v + 1, v, requires_grad=True)  # row: the token before, the last row for the start
        self.teacher = torch.log_softmax(torch.randn(v + 1, v), -1)
        self.answers = torch.tensor(list(itertools.product(range(v), repeat=3)))
        self.before = torch.cat([torch.full((len(self.answers), 1), v), self.answers[:, :-1]], 1)
        self.mask = torch.ones_like(self.answers, dtype=torch.bool)

    def logp(self, table):
        return table[self.before, self.answers]

    def exact(self):
        """kl(S ‖ T) over whole answers."""
        logp = self.logp(torch.log_softmax(self.student, -1)).sum(1)
        return (logp.exp() * (logp - self.logp(self.teacher).sum(1))).sum()

    def expected(self, loss):
        """Expectation over the student's own samples of a loss per token, summed over the answer."""
        logp = self.logp(torch.log_softmax(self.student, -1))
        return (logp.sum(1).exp().detach() * loss(logp).sum(1)).sum()

    def per_position(self):
        """Exact reverse KL at every position, at prefixes drawn from the student, who is not blamed for them."""
        each = generalized_jsd(self.student[self.before], self.teacher[self.before], self.mask, beta=1)
        logp = self.logp(torch.log_softmax(self.student, -1))
        return (logp.sum(1).exp().detach() * each.sum(1)).sum()

    def slope(self, loss):
        return torch.autograd.grad(loss, self.student)[0]


def test_expected_gradient_of_the_sampled_form():
    """γ = 1 is the gradient of the KL of answers, γ = 0 of the KL at every position with the prefixes held fixed."""
    a = Answers()
    teacher = a.logp(a.teacher)
    whole = a.slope(a.expected(lambda logp: sampled_reverse_kl(logp, teacher, a.mask, discount=1.0)))
    torch.testing.assert_close(whole, a.slope(a.exact()))
    token = a.slope(a.expected(lambda logp: sampled_reverse_kl(logp, teacher, a.mask)))
    torch.testing.assert_close(token, a.slope(a.per_position()))
    assert (whole - token).abs().max() > 1e-3


def test_minillm_splits_the_gradient():
    """Without its length normalisation, future plus exact present is the gradient of the KL of answers."""
    a = Answers()
    teacher = a.logp(a.teacher)
    following = torch.tensor([2, 1, 0])
    future = a.expected(lambda logp: -following * minillm_advantage(logp, teacher, a.mask) * logp)
    torch.testing.assert_close(a.slope(future) + a.slope(a.per_position()), a.slope(a.exact()))


def test_logits_before_put_a_models_logits_in_order():
    """Whole logits with `logits_before` and a mask over tokens, or the rows that `predicting` finds: one loss."""
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    heads = torch.randn(6, 3), torch.randn(6, 3)
    whole = generalized_jsd(
        *(logits_before(h @ w.T) for h, w in zip((student, teacher), heads, strict=True)), MASK, beta=0.3
    )
    rows, before, at = predicting(MASK)
    by_rows = jsd_from_hidden(student[rows, before], heads[0], teacher[rows, before], heads[1], beta=0.3)
    torch.testing.assert_close(whole[rows, at], by_rows)


def test_refusals():
    student, teacher = pair()
    with pytest.raises(ConfigError, match="forward KL"):
        generalized_jsd(student, teacher, MASK, beta=1.1)
    with pytest.raises(ConfigError, match="forward KL"):
        jsd_from_hidden(*hidden_pair(), beta=-0.1)
    for temperature in (0.0, -1.0):
        with pytest.raises(ConfigError, match="must be positive"):
            logit_distillation(student, teacher, MASK, temperature=temperature)
    with pytest.raises(ConfigError, match="this token alone"):
        teacher_advantage(student[..., 0], teacher[..., 0], MASK, discount=2.0)
    with pytest.raises(ShapeError):
        generalized_jsd(student, teacher[..., :5], MASK, beta=0.5)
    with pytest.raises(ShapeError):
        top_k_bucketed(student, teacher[:, :3], MASK)
    sh, sw, th, tw = hidden_pair()
    with pytest.raises(ShapeError, match="VE"):
        jsd_from_hidden(sh, sw, th, tw[:5], beta=0.5)
    with pytest.raises(ShapeError):
        logprobs_of(sh, sw, torch.zeros(3, 2, dtype=torch.long))
