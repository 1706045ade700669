"""Preference losses on pairs: peers, the papers' turning points, and the menu that names them."""

import math

import oracle
import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.preference import MENU, PreferenceLoss, cdpo, dpo, dpo_norm, hinge, ipo, robust

PLAIN = {"dpo": dpo, "ipo": ipo, "hinge": hinge}
SMOOTHED = {"cdpo": cdpo, "robust": robust}


def formula(name, beta=0.3):
    if name in PLAIN:
        return lambda *args: PLAIN[name](*args, beta=beta)
    return lambda *args: SMOOTHED[name](*args, beta=beta, label_smoothing=0.2)


def sums():
    return tuple(-10 * torch.rand(5) for _ in range(4))


TRL = {"sigmoid": "dpo", "hinge": "hinge", "robust": "robust", "sigmoid_norm": "dpo_norm"}


@pytest.mark.parametrize("case", oracle.cases("dpo", *TRL))
def test_the_menu_equals_trl(case):
    name = TRL[case.id.split("__")[1]]
    smoothing = case.hyper["label_smoothing"] if name == "robust" else None
    loss = PreferenceLoss(name=name, beta=case.hyper["beta"], label_smoothing=smoothing)
    logp, mask = case.leaf("logps"), case["mask"] > 0
    label = torch.tensor([1.0, -1.0]).repeat_interleave(len(mask) // 2)
    value, metrics = loss(logp, case["ref_logps"], mask, label)
    case.check("loss", value.mean())
    value.mean().backward()
    case.check("grad_logps", logp.grad)
    total, count = metrics["logp_chosen"]
    assert math.isclose(total / count, case.outputs["seq_logps"][: len(mask) // 2].mean(), rel_tol=1e-6)


@pytest.mark.parametrize("case", oracle.cases("dpo", "ipo"))
def test_ipo_of_means_equals_trl(case):
    logp, ref, mask = case["logps"], case["ref_logps"], case["mask"] > 0
    means = ((logp - ref) * mask).sum(1) / mask.sum(1)
    chosen, rejected = means.chunk(2)
    zero = torch.zeros_like(chosen)
    case.check("loss", ipo(chosen, rejected, zero, zero, beta=case.hyper["beta"])[0].mean())


@pytest.mark.parametrize("case", oracle.cases("dpo", "openrlhf_dpo", "openrlhf_cdpo", "openrlhf_ipo"))
def test_pair_losses_equal_openrlhf(case):
    chosen, rejected = case.leaf("chosen"), case.leaf("rejected")
    name = case.id.split("__")[1].removeprefix("openrlhf_")
    extra = {"label_smoothing": case.hyper["label_smoothing"]} if name == "cdpo" else {}
    loss, metrics = {**PLAIN, **SMOOTHED}[name](
        chosen, rejected, case["ref_chosen"], case["ref_rejected"], beta=case.hyper["beta"], **extra
    )
    case.check("loss", loss.mean())
    loss.mean().backward()
    case.check("grad_chosen", chosen.grad)
    case.check("grad_rejected", rejected.grad)
    case.check("chosen_rewards", metrics["reward_chosen"])
    case.check("rejected_rewards", metrics["reward_rejected"])


def test_losses_against_plain_python():
    args, beta, e = sums(), 0.3, 0.2
    h = [float(w - rw - (lo - rl)) for w, lo, rw, rl in zip(*args, strict=True)]

    def nls(z):
        return math.log(1 + math.exp(-z))

    expected = {
        "dpo": [nls(beta * x) for x in h],
        "cdpo": [(1 - e) * nls(beta * x) + e * nls(-beta * x) for x in h],
        "robust": [((1 - e) * nls(beta * x) - e * nls(-beta * x)) / (1 - 2 * e) for x in h],
        "ipo": [(x - 1 / (2 * beta)) ** 2 for x in h],
        "hinge": [max(0.0, 1 - beta * x) for x in h],
    }
    for name, values in expected.items():
        torch.testing.assert_close(formula(name)(*args)[0], torch.tensor(values))


def test_at_the_reference():
    """DPO is log 2 with slope -β/2, whatever the data; so every implicit reward is 0 and no pair counts as right."""
    reference = sums()[:2]
    chosen, rejected = (x.clone().requires_grad_() for x in reference)
    loss, metrics = dpo(chosen, rejected, *reference, beta=0.3)
    torch.testing.assert_close(loss, torch.full((5,), math.log(2)))
    loss.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.full((5,), -0.15))
    torch.testing.assert_close(rejected.grad, torch.full((5,), 0.15))
    assert not any(metrics[name].any() for name in metrics)
    assert all(not value.requires_grad for value in metrics.values())
    assert formula("hinge")(*reference, *reference)[0].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "name, beta, best", [("ipo", 0.1, 5.0), ("cdpo", 0.1, math.log(0.8 / 0.2) / 0.1)], ids=["ipo", "cdpo"]
)
def test_finite_minima(name, beta, best):
    """IPO is least at h = 1/(2β), cDPO at β h = log((1-ε)/ε)."""
    h = torch.tensor([best, best - 0.1, best + 0.1], requires_grad=True)
    zero = torch.zeros(3)
    loss, _ = formula(name, beta)(h, zero, zero, zero)
    loss.sum().backward()
    assert abs(h.grad[0]) < 1e-12 and h.grad[1] < 0 < h.grad[2]


def test_robust_is_unbiased_under_flipped_labels():
    w, lo, rw, rl = sums()
    noisy = 0.8 * formula("robust")(w, lo, rw, rl)[0] + 0.2 * formula("robust")(lo, w, rl, rw)[0]
    torch.testing.assert_close(noisy, formula("dpo")(w, lo, rw, rl)[0])


def test_length_normalised_dpo():
    w, lo, rw, rl = sums()
    a, b = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 2, 2, 2, 2])
    ours, _ = dpo_norm(w, lo, rw, rl, chosen_length=a, rejected_length=b, beta=2.0)
    torch.testing.assert_close(ours, dpo(w / a, lo / b, rw / a, rl / b, beta=2.0)[0])


@pytest.mark.parametrize("name", [*PLAIN, *SMOOTHED])
def test_gradcheck_extremes_and_shift(name):
    args = tuple(x.requires_grad_() for x in sums())
    assert torch.autograd.gradcheck(lambda *a: formula(name)(*a)[0], args)
    w, lo, rw, rl = (x.detach() for x in args)
    torch.testing.assert_close(formula(name)(w + 2, lo, rw + 2, rl)[0], formula(name)(w, lo, rw, rl)[0])
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    formula(name)(far, torch.zeros(2), torch.zeros(2), torch.zeros(2))[0].sum().backward()
    assert torch.isfinite(far.grad).all()


def rows():
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]] * 3)
    return -3 * torch.rand(6, 4), -3 * torch.rand(6, 4), mask, torch.tensor([1.0, -1.0] * 3)


def picked(name):
    return PreferenceLoss(name=name, label_smoothing=0.1 if MENU[name].reads else None)


@pytest.mark.parametrize("name", MENU)
def test_junk_and_order_of_pairs_change_nothing(name):
    logp, ref, mask, label = rows()
    clean, metrics = picked(name)(logp, ref, mask, label)
    leaf = torch.where(mask, logp, math.nan).requires_grad_()
    dirty, same = picked(name)(leaf, torch.where(mask, ref, math.inf), mask, label)
    dirty.sum().backward()
    torch.testing.assert_close(dirty, clean)
    assert metrics == same and not leaf.grad[~mask].any() and torch.isfinite(leaf.grad).all()
    order = torch.tensor([5, 4, 0, 1, 2, 3])  # pairs move, and one is given rejected first
    moved, _ = picked(name)(logp[order], ref[order], mask[order], label[order])
    torch.testing.assert_close(moved, clean[[2, 0, 1]])


def test_metrics_are_sums_and_counts_in_the_glossary():
    from posttrain.train.metrics import lookup

    logp, ref, mask, label = rows()
    _, metrics = PreferenceLoss()(logp, ref, mask, label)
    for name, (_, count) in metrics.items():
        lookup(name)
        assert count == 3
    assert metrics["length_chosen"][0] == 6 and metrics["length_rejected"][0] == 3
    chosen = (logp * mask).sum(1)[::2]
    assert math.isclose(metrics["logp_chosen"][0], chosen.sum())


def test_usual_strengths():
    assert PreferenceLoss().strength == 0.1 and PreferenceLoss(name="dpo_norm").strength == 5.0
    assert PreferenceLoss(beta=0.5).strength == 0.5


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: PreferenceLoss(name="dop"), 'Did you mean "dpo"'),
        (lambda: PreferenceLoss(beta=0.0), "must be positive"),
        (lambda: PreferenceLoss(label_smoothing=0.1), "cdpo, robust read it"),
        (lambda: PreferenceLoss(name="cdpo"), "needs loss.label_smoothing"),
        (lambda: PreferenceLoss(name="robust", label_smoothing=0.5), "labels say nothing"),
        (lambda: cdpo(*sums(), beta=0.1, label_smoothing=0.0), "Use dpo"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_half_a_pair_is_refused():
    logp, ref, mask, label = rows()
    with pytest.raises(ShapeError, match="3 chosen and 2 rejected"):
        PreferenceLoss()(logp[:5], ref[:5], mask[:5], label[:5])
