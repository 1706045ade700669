"""Losses on pairs: plain Python from the papers, worked numbers, turning points, slopes and extremes."""

import math
from functools import partial

import pytest
import torch
from preference_table import BETA, REWARDS, TABLE, Row, smooth

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives import preference as p
from posttrain.objectives.tokens import answers


def batch(n: int = 6):
    """Sums and lengths of n pairs, away from every kink; both orders of the gap, and both signs of log-ratios."""
    sums = [-1 - 9 * torch.rand(n) for _ in range(4)]
    return (*sums, torch.randint(1, 7, (n,)).double(), torch.randint(1, 7, (n,)).double())


def rows(args) -> list[Row]:
    return [Row(*(float(x) for x in row)) for row in zip(*args, strict=True)]


@pytest.mark.parametrize("name", TABLE)
def test_losses_equal_plain_python(name):
    args = batch()
    loss, metrics = TABLE[name].ours(*args)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, torch.tensor([TABLE[name].plain(row) for row in rows(args)]))
    rewards = [REWARDS.get(name, lambda x: (x.uw, x.ul))(row) for row in rows(args)]
    good, bad = (BETA * torch.tensor(side) for side in zip(*rewards, strict=True))
    torch.testing.assert_close(metrics["reward_chosen"], good)
    torch.testing.assert_close(metrics["reward_rejected"], bad)
    torch.testing.assert_close(metrics["margin"], good - bad)
    assert metrics["accuracy"].tolist() == [float(g > b) for g, b in zip(good, bad, strict=True)]


@pytest.mark.parametrize("name", TABLE)
def test_gradients(name):
    args = tuple(x.requires_grad_(i < 4) for i, x in enumerate(batch(2)))
    assert torch.autograd.gradcheck(lambda *a: TABLE[name].ours(*a)[0], args)
    assert not any(x.requires_grad for x in TABLE[name].ours(*args)[1].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_finite_far_away_and_without_tokens(name, dtype):
    """Log-ratios of ±10,000, probabilities of 0 and 1, and answers of no tokens."""
    far = torch.tensor([0.0, -1e4, 1e4], dtype=dtype)
    chosen, rejected, reference = (x.flatten() for x in torch.meshgrid(far, far, far[:2], indexing="ij"))
    if not name.startswith(("dpo", "cdpo", "robust", "soft", "ipo", "hinge")):
        chosen, rejected = chosen.clamp(max=0), rejected.clamp(max=0)
    leaves = [chosen.clone().requires_grad_(), rejected.clone().requires_grad_()]
    for length in (0.0, 1.0, 300.0):
        n = torch.full_like(chosen, length)
        loss, metrics = TABLE[name].ours(*leaves, reference, reference, n, n)
        grads = torch.autograd.grad(loss.sum(), leaves)
        for x in (loss, *grads, *metrics.values()):
            assert torch.isfinite(x).all() and x.dtype == dtype


@pytest.mark.parametrize("name", TABLE)
def test_shapes_are_checked(name):
    args = list(batch(3))
    args[1] = args[1][:2]
    with pytest.raises(ShapeError, match="expected shapes"):
        TABLE[name].ours(*args)


def one(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor([x]) for x in numbers]


LENGTHS = {"chosen_length": torch.tensor([6]), "rejected_length": torch.tensor([8])}
# One pair: log π -12 and -20, log π_ref -13 and -18, lengths 6 and 8, so u_w = 1, u_l = -2, h = 3.
WORKED = {
    "dpo": (p.dpo, {"beta": 0.1}, 0.554355),
    "cdpo": (p.cdpo, {"beta": 0.1, "label_smoothing": 0.1}, 0.584355),
    "robust": (p.robust, {"beta": 0.1, "label_smoothing": 0.1}, 0.516855),
    "hinge": (p.hinge, {"beta": 0.1}, 0.7),
    "ipo": (p.ipo, {"beta": 0.1}, 4.0),
    "ipo_norm": (p.ipo_norm, {"beta": 0.1, **LENGTHS}, 21.006944),
    "simpo": (p.simpo, {"beta": 2.0, "gamma": 1.0, **LENGTHS}, 0.693147),
    "orpo": (p.orpo, {"beta": 0.1, **LENGTHS}, 0.045193),
    "cpo": (p.cpo, {"beta": 0.1}, 0.371101),
    "dpo_norm": (p.dpo_norm, {"beta": 5.0, **LENGTHS}, 0.117351),
    "dpop": (p.dpop, {"beta": 0.1, "penalty": 5.0}, 0.554355),
    "apo_zero": (p.apo_zero, {"beta": 0.1}, 0.925187),
    "apo_down": (p.apo_down, {"beta": 0.1}, 0.950537),
    "sppo_hard": (p.sppo_hard, {"beta": 0.1}, 25.0),
    "nca": (p.nca, {"beta": 0.1}, 1.315664),
    "exo": (p.exo, {"beta": 0.1, "label_smoothing": 1e-3}, 2.258199),
    "bco_pair": (p.bco_pair, {"beta": 0.1}, 1.242536),
    "discopop": (p.discopop, {"beta": 0.1}, 0.740357),
    "alphapo": (p.alphapo, {"beta": 2.5, "gamma": 0.1, "alpha": 0.25, **LENGTHS}, 0.116039),
    "rdpo": (p.rdpo, {"beta": 0.1, "alpha": 0.05, **LENGTHS}, 0.598139),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name):
    formula, settings, expected = WORKED[name]
    free = formula.__module__.endswith("reference_free")
    loss, _ = formula(*one(-12, -20) if free else one(-12, -20, -13, -18), **settings)
    assert float(loss) == pytest.approx(expected, abs=6e-7)


AT_THE_REFERENCE = {
    "dpo": (math.log(2), -BETA / 2, BETA / 2),
    "cdpo": (math.log(2), -0.3 * BETA, 0.3 * BETA),
    "robust": (math.log(2), -BETA / 1.2, BETA / 1.2),
    "hinge": (1.0, -BETA, BETA),
    "discopop": ((math.log(2) + 1) / 2, None, None),
    "apo_zero": (1.0, -BETA / 4, BETA / 4),
    "apo_down": (1.0, 0.0, BETA / 4),
    "nca": (2 * math.log(2), -BETA / 4, BETA / 4),
    "bco_pair": (2 * math.log(2), -BETA / 2, BETA / 2),
    "mpo": (1.5 * math.log(2), -0.55 * BETA, 0.55 * BETA),
    "f_dpo_forward_kl": (math.log(2), -BETA / 2, BETA / 2),
    "f_dpo_js": (math.log(2), -BETA / 4, BETA / 4),
    "f_dpo_alpha": (math.log(2), -BETA / 2, BETA / 2),
    "xpo": (math.log(2) - 0.4, -BETA / 2, BETA / 2),
}


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_at_the_reference(name):
    """Loss and slopes do not depend on the data where the policy is the reference; no pair counts as right."""
    value, up, down = AT_THE_REFERENCE[name]
    chosen, rejected, *_, nw, nl = batch()
    leaves = [chosen.clone().requires_grad_(), rejected.clone().requires_grad_()]
    loss, metrics = TABLE[name].ours(*leaves, chosen, rejected, nw, nl)
    torch.testing.assert_close(loss, torch.full((6,), value))
    assert not metrics["accuracy"].any() and not metrics["margin"].any()
    if up is not None:
        for slope, found in zip((up, down), torch.autograd.grad(loss.sum(), leaves), strict=True):
            torch.testing.assert_close(found, torch.full((6,), slope))


MINIMA = {  # name: u_w, u_l of a point where the loss is least in u_w
    "ipo": (1 / (2 * BETA), 0.0),
    "cdpo": (math.log(0.8 / 0.2) / BETA, 0.0),
    "soft_dpo": (math.log(0.3 / 0.7) / BETA, 0.0),
    "exo": (math.log(0.98 / 0.02) / BETA, 0.0),
    "nca": (math.log(2) / BETA, 3.0),
    "sppo_hard": (1 / (2 * BETA), -1 / (2 * BETA)),
    "cpo_ipo": (1 / (2 * BETA), 0.0),
}


@pytest.mark.parametrize("name", MINIMA)
def test_finite_minima(name):
    up, down = MINIMA[name]
    chosen = torch.tensor([up - 0.1, up, up + 0.1], requires_grad=True)
    zero, length = torch.zeros(3), torch.ones(3)
    loss, _ = TABLE[name].ours(chosen, zero + down, zero, zero, length, length)
    slope = torch.autograd.grad(loss.sum(), chosen)[0]
    assert slope[0] < 0 < slope[2] and abs(slope[1]) < 1e-12


def test_robust_is_unbiased_under_flipped_labels():
    w, lo, rw, rl, *_ = batch()
    robust = partial(p.robust, beta=BETA, label_smoothing=0.2)
    noisy = 0.8 * robust(w, lo, rw, rl)[0] + 0.2 * robust(lo, w, rl, rw)[0]
    torch.testing.assert_close(noisy, p.dpo(w, lo, rw, rl, beta=BETA)[0])


def test_zero_settings_give_the_simpler_loss():
    sums, (nw, nl) = batch()[:4], batch()[4:]
    lengths = {"chosen_length": nw, "rejected_length": nl}
    plain = p.dpo(*sums, beta=BETA)[0]
    for same in (
        p.cdpo(*sums, beta=BETA, label_smoothing=0.0),
        p.robust(*sums, beta=BETA, label_smoothing=0.0),
        p.soft_dpo(*sums, beta=BETA, probability=torch.ones(6)),
        p.odpo(*sums, beta=BETA, offset=torch.zeros(6)),
        p.rdpo(*sums, beta=BETA, alpha=0.0, **lengths),
        p.dpop(*sums, beta=BETA, penalty=0.0),
        p.f_dpo(*sums, beta=BETA, divergence="reverse_kl"),
        p.f_dpo(*sums, beta=BETA, divergence="alpha", alpha=1.0),
        p.xpo(*sums, beta=BETA, alpha=0.0, drawn_by_reference=nw),
        p.dpo_norm(*sums, beta=BETA, chosen_length=torch.ones(6), rejected_length=torch.ones(6)),
        p.cpo(sums[0] - sums[2], sums[1] - sums[3], beta=BETA),
    ):
        torch.testing.assert_close(same[0], plain)
    torch.testing.assert_close(
        p.alphapo(*sums[:2], beta=BETA, gamma=0.1, alpha=0.0, **lengths)[0],
        p.simpo(*sums[:2], beta=BETA, gamma=0.1, **lengths)[0],
    )
    mixed = 0.8 * p.dpo(*sums, beta=0.1)[0] + 0.2 * p.bco_pair(*sums, beta=0.1)[0]
    torch.testing.assert_close(p.mpo(*sums, beta=0.1)[0], mixed)
    torch.testing.assert_close(p.discopop(*sums, beta=BETA)[0], p.discopop(*sums, beta=BETA, tau=0.05)[0])


def test_relations_between_losses():
    sums = batch(40)[:4]
    assert (p.bco_pair(*sums, beta=BETA)[0] > p.dpo(*sums, beta=BETA)[0]).all()
    line = (sums[0] - sums[2] - sums[1] + sums[3] - 1 / BETA).square() / 2
    assert (p.sppo_hard(*sums, beta=BETA)[0] >= line - 1e-12).all()
    hinge, slic = p.hinge(*sums, beta=BETA)[0], p.slic(sums[0] - sums[2], sums[1] - sums[3], beta=BETA)[0]
    torch.testing.assert_close(hinge, slic)
    right = p.hinge(torch.tensor([5.0]), *[torch.zeros(1)] * 3, beta=BETA)[0]
    assert right.item() == 0  # β h = 1.5 > 1


def test_discopop_dips_left_of_zero():
    rho = torch.linspace(-1, 1, 2001)
    zero = torch.zeros_like(rho)
    loss, _ = p.discopop(rho, zero, zero, zero, beta=1.0)
    assert float(rho[:1000][loss[:1000].argmin()]) == pytest.approx(-0.119, abs=2e-3)
    assert loss[1072] > loss[1000] > loss[880]
    for tau, sign in ((0.05, 1), (0.1, 1), (0.105, -1), (0.4, -1)):
        here, zero = torch.zeros(1, requires_grad=True), torch.zeros(1)
        slope = torch.autograd.grad(p.discopop(here, zero, zero, zero, beta=1.0, tau=tau)[0].sum(), here)[0]
        assert slope.sign() == sign


def test_orpo_by_hand():
    """Tokens of probability 1/2 against 1/3 have odds 1 and 1/2; equal answers cost λ log 2."""
    chosen, rejected = torch.tensor([2 * math.log(1 / 2), -3.0]), torch.tensor([3 * math.log(1 / 3), -3.0])
    lengths = torch.tensor([2.0, 4.0]), torch.tensor([3.0, 4.0])
    loss, _ = p.orpo(chosen, rejected, chosen_length=lengths[0], rejected_length=lengths[1], beta=0.5)
    torch.testing.assert_close(loss, 0.5 * torch.tensor([math.log(3 / 2), math.log(2)]))


def test_odpo_offset():
    gap = torch.tensor([1.0, math.e, 0.5])
    torch.testing.assert_close(p.odpo_offset(gap, alpha=2.0), 2 * torch.tensor([0.0, 1.0, math.log(0.5)]))
    for bad, shown in ((0.0, 0.0), (-1.0, -1.0), (math.nan, -math.inf)):
        with pytest.raises(DataError, match=f"goes down to {shown}: .* higher score"):
            p.odpo_offset(torch.tensor([1.0, bad]), alpha=1.0)


@pytest.mark.parametrize(
    "divergence, alpha", [("reverse_kl", None), ("forward_kl", None), ("js", None), ("alpha", 0.3), ("alpha", 2.0)]
)
def test_links_are_derivatives_of_their_divergence(divergence, alpha):
    """f' at t = e^u up to a constant, for f written from the definition of each divergence."""
    f = {
        "reverse_kl": lambda t: t * t.log(),
        "forward_kl": lambda t: -t.log(),
        "js": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
        "alpha": lambda t: (t**alpha - 1) / (alpha * (alpha - 1)) - (t - 1) / (alpha - 1),
    }[divergence]
    u = torch.tensor([-2.0, -0.5, 0.0, 0.7, 1.5])
    t = u.exp().requires_grad_()
    slope = torch.autograd.grad(f(t).sum(), t)[0]
    link = p.divergence_link(u, divergence, alpha=alpha)
    torch.testing.assert_close(link - link[2], slope - slope[2])
    shifted = p.divergence_link(u[:, None], divergence, alpha=alpha)
    assert shifted.shape == (5, 1)


def test_alpha_links_join_the_others():
    u = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(p.divergence_link(u, "alpha", alpha=0.0), 1 + p.divergence_link(u, "forward_kl"))
    torch.testing.assert_close(p.divergence_link(u, "alpha", alpha=1.0), u)
    torch.testing.assert_close(p.divergence_link(u, "alpha", alpha=1 + 1e-9), u)


def test_desensitised_sums():
    """Against a plain loop; the tail beyond the partner's length weighs α, wherever the answer begins."""
    mask = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    logp, other = -torch.rand(4, 6), torch.tensor([2.0, 3.0, 5.0, 1.0])
    expected = []
    for row in range(4):
        seen, total = 0, 0.0
        for t in range(6):
            if mask[row, t]:
                seen += 1
                total += float(logp[row, t]) * (1.0 if seen <= other[row] else 0.3)
        expected.append(total)
    torch.testing.assert_close(p.desensitised(logp, mask, other, alpha=0.3), torch.tensor(expected))
    torch.testing.assert_close(p.desensitised(logp, mask, other, alpha=1.0), answers(logp, mask)[0])
    junk = torch.where(mask, logp, math.nan).requires_grad_()
    p.desensitised(junk, mask, other, alpha=0.3).sum().backward()
    torch.testing.assert_close(junk.grad[0], torch.tensor([0, 1, 1, 0, 0.3, 0.3]))
    assert not junk.grad[~mask].any()
    four = p.desensitised(-torch.ones(1, 4), torch.ones(1, 4).bool(), torch.ones(1), alpha=0.5)
    assert four.item() == -2.5


def test_wpo_weights():
    mask = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    probability = torch.tensor([[0.9, 0.2, 0.5], [0.9, 0.9, 0.25], [0.9, 0.9, 0.9]])
    sum_sq = torch.tensor([[0.1, 0.4, 0.5], [0.1, 0.1, 0.5], [0.1, 0.1, 0.1]])
    logp = torch.where(mask, probability.log(), math.nan).requires_grad_()
    weight = p.wpo_weights(logp, torch.where(mask, sum_sq.log(), -math.inf), mask)
    torch.testing.assert_close(weight, torch.tensor([math.sqrt(0.2 / 0.4 * 0.5 / 0.5), 0.5, 1.0]))
    assert not weight.requires_grad


@pytest.mark.parametrize("unpaired", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_transport_sorts_both_sides(unpaired, smoothing):
    w, lo, rw, rl, *_ = batch(5)
    formula = p.aot_unpaired if unpaired else p.aot
    loss, metrics = formula(w, lo, rw, rl, beta=BETA, label_smoothing=smoothing)
    first, second = (w - rw, lo - rl) if unpaired else (w - lo, rw - rl)
    gaps = [a - b for a, b in zip(sorted(first.tolist()), sorted(second.tolist()), strict=True)]
    torch.testing.assert_close(loss, torch.tensor([smooth(BETA * x, smoothing) for x in gaps]))
    torch.testing.assert_close(metrics["margin"], p.dpo(w, lo, rw, rl, beta=BETA)[1]["margin"])
    leaves = tuple(x[:3].clone().requires_grad_() for x in (w, lo, rw, rl))
    assert torch.autograd.gradcheck(lambda *a: formula(*a, beta=BETA, label_smoothing=smoothing)[0], leaves)
    order = torch.tensor([3, 1, 4, 0, 2])
    mixed = formula(w, lo[order], rw, rl[order], beta=BETA, label_smoothing=smoothing)[0]
    assert torch.allclose(mixed, loss) == unpaired
    together = formula(*(x[order] for x in (w, lo, rw, rl)), beta=BETA, label_smoothing=smoothing)[0]
    torch.testing.assert_close(together, loss)
    single = formula(w[:1], lo[:1], rw[:1], rl[:1], beta=BETA, label_smoothing=smoothing)[0]
    torch.testing.assert_close(single, p.cdpo(w[:1], lo[:1], rw[:1], rl[:1], beta=BETA, label_smoothing=smoothing)[0])
    far = [torch.tensor([1e4, -1e4, 0.0], requires_grad=True) for _ in range(4)]
    grads = torch.autograd.grad(formula(*far, beta=BETA, label_smoothing=smoothing)[0].sum(), far)
    assert all(torch.isfinite(g).all() for g in grads)


def test_implicit_reward_finds_the_reward_again():
    """π = π_ref e^{r/β} / Z over six answers of one token: r comes back up to one constant."""
    reward, ref = torch.randn(6), torch.randn(6).log_softmax(0)
    policy = (ref + reward / 0.4).log_softmax(0)
    found = p.implicit_reward(policy[:, None], ref[:, None], torch.ones(6, 1).bool(), beta=0.4)[:, 0]
    torch.testing.assert_close(found - found[0], reward - reward[0])
    mask = torch.tensor([[False, True, True]])
    nan = torch.tensor([[math.nan, -1.0, -2.0]])
    out = p.implicit_reward(nan, torch.tensor([[math.inf, -2.0, -1.0]]), mask, beta=2.0)
    assert out.tolist() == [[0.0, 2.0, -2.0]]


def test_dpo_is_least_at_the_tilted_optimum():
    """All pairs of four answers, weighted by Bradley-Terry: the loss has its minimum at π_ref e^{r/β} / Z."""
    reward, ref = torch.randn(4), torch.randn(4).log_softmax(0)
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))

    def loss(logits):
        logp = logits.log_softmax(0)
        return (torch.sigmoid(reward[i] - reward[j]) * p.dpo(logp[i], logp[j], ref[i], ref[j], beta=0.5)[0]).sum()

    optimum = (ref + reward / 0.5).requires_grad_()
    assert torch.autograd.grad(loss(optimum), optimum)[0].abs().max() < 1e-12
    assert all(loss(optimum) < loss(optimum + 0.1 * torch.randn(4)) for _ in range(20))


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda s: p.cdpo(*s, beta=0.1, label_smoothing=-0.1), "between 0 and 0.5"),
        (lambda s: p.robust(*s, beta=0.1, label_smoothing=0.5), "labels say nothing"),
        (lambda s: p.exo(*s, beta=0.1, label_smoothing=0.0), "Use 0.001"),
        (lambda s: p.discopop(*s, beta=0.1, tau=1.0), "between 0 and 1"),
        (lambda s: p.discopop(*s, beta=0.1, tau=0.0), "between 0 and 1"),
        (lambda s: p.dpop(*s, beta=0.1, penalty=-1.0), "0 or more"),
        (lambda s: p.rdpo(*s, beta=0.1, alpha=-1.0, chosen_length=s[0], rejected_length=s[0]), "0 or more"),
        (lambda s: p.simpo(*s[:2], beta=0.1, gamma=-1.0, chosen_length=s[0], rejected_length=s[0]), "0 or more"),
        (lambda s: p.f_dpo(*s, beta=0.1, divergence="alpha"), "needs it"),
        (lambda s: p.f_dpo(*s, beta=0.1, divergence="js", alpha=0.5), "do not read it"),
        (lambda s: p.f_dpo(*s, beta=0.1, divergence="kl"), "not one of reverse_kl"),
        (lambda s: p.desensitised(s[0][:, None], s[0][:, None] < 0, s[0], alpha=1.5), "between 0"),
        (lambda s: p.desensitised(s[0][:, None], s[0][:, None] < 0, s[0], alpha=-0.5), "between 0"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make([-torch.rand(3) for _ in range(4)])


def test_more_shapes_are_checked():
    sums = batch(3)[:4]
    for make in (
        lambda: p.soft_dpo(*sums, probability=torch.ones(2), beta=0.1),
        lambda: p.odpo(*sums, offset=torch.ones(2), beta=0.1),
        lambda: p.xpo(*sums, drawn_by_reference=torch.ones(2), beta=0.1, alpha=1.0),
        lambda: p.rdpo(*sums, chosen_length=torch.ones(2), rejected_length=torch.ones(3), beta=0.1, alpha=1.0),
        lambda: p.dpo_norm(*sums, chosen_length=torch.ones(2), rejected_length=torch.ones(3), beta=0.1),
        lambda: p.orpo(*sums[:2], chosen_length=torch.ones(2), rejected_length=torch.ones(3), beta=0.1),
        lambda: p.wpo_weights(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2).bool()),
        lambda: p.desensitised(torch.ones(2, 3), torch.ones(2, 3).bool(), torch.ones(3), alpha=0.5),
    ):
        with pytest.raises(ShapeError):
            make()
