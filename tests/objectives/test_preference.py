"""The menu of preference losses: each entry does what it says it needs, no knob is dead, junk changes nothing."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives import preference as p
from posttrain.objectives.preference import MENU, PreferenceLoss
from posttrain.objectives.tokens import answers

LABEL = torch.tensor([1.0, -1.0] * 3)
MASK = torch.tensor([[False, True, True, False], [False, True, False, False]] * 3)


def rows():
    """log π and log π_ref of three pairs, tokens' Σ π², and score gaps."""
    logp, ref = -3 * torch.rand(6, 4), -3 * torch.rand(6, 4)
    return logp, ref, {"sum_sq": torch.rand(6, 4), "score_gap": torch.tensor([0.5, 1.5, 3.0]).repeat_interleave(2)}


def picked(name, **settings):
    return PreferenceLoss(name=name, **({"label_smoothing": 0.1} if name in ("cdpo", "robust") else {}) | settings)


def inputs(name, logp, ref, more):
    """What the loss says it takes, and nothing else."""
    loss = picked(name)
    wanted = {"sum_sq": "sum_sq" in loss.needs, "score_gap": loss.needs_score_gap}
    return logp, ref if loss.needs_reference else None, {k: v for k, v in more.items() if wanted[k]}


@pytest.mark.parametrize("name", MENU)
def test_junk_and_order_of_pairs_change_nothing(name):
    logp, ref, more = inputs(name, *rows())
    clean, metrics = picked(name)(logp, ref, MASK, LABEL, **more)
    assert clean.shape == (3,) and clean.dtype == torch.float64
    leaf = torch.where(MASK, logp, math.nan).requires_grad_()
    dirty_ref = None if ref is None else torch.where(MASK, ref, math.inf)
    dirty_more = {k: torch.where(MASK, v, 0.0) if v.dim() == 2 else v for k, v in more.items()}
    dirty, same = picked(name)(leaf, dirty_ref, MASK, LABEL, **dirty_more)
    dirty.sum().backward()
    torch.testing.assert_close(dirty, clean)
    assert metrics == same and not leaf.grad[~MASK].any() and torch.isfinite(leaf.grad).all()
    assert not any(total.requires_grad for total, _ in same.values())
    order = torch.tensor([5, 4, 0, 1, 2, 3])  # pairs move, and one is given rejected first
    more = {k: v[order] for k, v in more.items()}
    moved, _ = picked(name)(logp[order], None if ref is None else ref[order], MASK[order], LABEL[order], **more)
    torch.testing.assert_close(moved, clean if MENU[name].coupled else clean[[2, 0, 1]])


@pytest.mark.parametrize("name", MENU)
def test_what_is_needed_is_read_and_nothing_else(name):
    logp, ref, more = rows()
    loss = picked(name)
    base = loss(*inputs(name, logp, ref, more)[:2], MASK, LABEL, **inputs(name, logp, ref, more)[2])[0]
    other = loss(logp, ref + torch.rand(6, 4), MASK, LABEL, **more)[0]
    assert torch.equal(other, base) != loss.needs_reference
    for key in more:
        changed = loss(logp, ref, MASK, LABEL, **{**more, key: 2.3 * more[key]})[0]
        wanted = "sum_sq" in loss.needs if key == "sum_sq" else loss.needs_score_gap
        assert torch.equal(changed, base) != wanted
        if wanted:
            with pytest.raises(DataError, match=f"takes {key}"):
                loss(logp, ref, MASK, LABEL)
    if loss.needs_reference:
        with pytest.raises(DataError, match="takes ref_logp"):
            loss(logp, None, MASK, LABEL, **more)
    fewer = torch.cat([LABEL[:2]] * 2), logp[:4], ref[:4], MASK[:4]
    part = loss(fewer[1], fewer[2], fewer[3], fewer[0], **{k: v[:4] for k, v in more.items()})[0]
    assert loss.coupled or torch.allclose(part, base[:2])


@pytest.mark.parametrize("name, setting", [(n, s) for n, f in MENU.items() for s in ("beta", *f.reads)])
def test_every_setting_changes_the_loss(name, setting):
    logp, ref, more = rows()
    usual = picked(name)(logp, ref, MASK, LABEL, **more)[0]
    other = picked(name, **{setting: 0.37})(logp, ref, MASK, LABEL, **more)[0]
    assert not torch.isclose(other, usual).any()


@pytest.mark.parametrize("name", MENU)
def test_rows_without_a_label_are_left_out(name):
    logp, ref, more = rows()
    base = picked(name)(logp, ref, MASK, LABEL, **more)[0]
    wider = {k: torch.cat([v, v[:1]]) for k, v in more.items()}
    label = torch.cat([LABEL, torch.zeros(1)])
    found = picked(name)(*(torch.cat([x, x[:1]]) for x in (logp, ref, MASK)), label, **wider)[0]
    torch.testing.assert_close(found, base)


def sums(logp, ref):
    total, length = answers(logp, MASK)
    return [x[LABEL > 0] for x in (total, length)], [x[LABEL < 0] for x in (total, length)], answers(ref, MASK)[0]


def test_entries_compute_what_their_functions_do():
    logp, ref, more = rows()
    (w, nw), (lo, nl), other = sums(logp, ref)
    four, lengths = (w, lo, other[::2], other[1::2]), {"chosen_length": nw, "rejected_length": nl}
    light = [p.desensitised(x, MASK, torch.tensor([1.0, 2.0] * 3), alpha=0.5) for x in (logp, ref)]
    weight = p.wpo_weights(logp, more["sum_sq"].log(), MASK)
    offset = p.odpo_offset(more["score_gap"][::2], alpha=1.0)
    expected = {
        "dpo": p.dpo(*four, beta=0.1)[0],
        "rpo": p.dpo(*four, beta=0.1)[0],
        "wpo": p.dpo(*four, beta=0.1)[0] * weight[::2] * weight[1::2],
        "odpo": p.odpo(*four, offset=offset, beta=0.1)[0],
        "ld_dpo": p.dpo(*(x[i::2] for x in light for i in (0, 1)), beta=0.1)[0],
        "rdpo": p.rdpo(*four, **lengths, alpha=0.01, beta=0.1)[0],
        "f_dpo_js": p.f_dpo(*four, divergence="js", beta=0.1)[0],
        "f_dpo_forward_kl": p.f_dpo(*four, divergence="forward_kl", beta=0.1)[0],
        "f_dpo_alpha": p.f_dpo(*four, divergence="alpha", alpha=0.5, beta=0.1)[0],
        "aot": p.aot(*four, beta=0.1)[0],
        "aot_unpaired": p.aot_unpaired(*four, beta=0.1)[0],
        "exo": p.exo(*four, beta=0.1, label_smoothing=0.001)[0],
        "discopop": p.discopop(*four, beta=0.05, tau=0.05)[0],
        "dpo_norm": p.dpo_norm(*four, **lengths, beta=5.0)[0],
        "ipo_norm": p.ipo_norm(*four, **lengths, beta=2.0)[0],
        "dpop": p.dpop(*four, beta=0.1, penalty=5.0)[0],
        "sppo_hard": p.sppo_hard(*four, beta=0.001)[0],
        "mpo": p.mpo(*four, beta=0.1)[0],
        "orpo": p.orpo(w, lo, **lengths, beta=0.1)[0],
        "simpo": p.simpo(w, lo, **lengths, beta=2.0, gamma=1.0)[0],
        "alphapo": p.alphapo(w, lo, **lengths, beta=2.5, gamma=0.1, alpha=0.25)[0],
        "cpo": p.cpo(w, lo, beta=0.1)[0],
        "cpo_ipo": p.cpo_ipo(w, lo, **lengths, beta=0.1)[0],
        "slic": p.slic(w, lo, beta=0.1)[0],
    }
    named = {"ipo": 0.1, "hinge": 0.1, "apo_zero": 0.1, "apo_down": 0.1, "nca": 0.01, "bco_pair": 0.01, "cal_dpo": 0.01}
    expected |= {name: getattr(p, name)(*four, beta=beta)[0] for name, beta in named.items()}
    expected |= {n: getattr(p, n)(*four, beta=0.1, label_smoothing=0.1)[0] for n in ("cdpo", "robust")}
    assert set(expected) == set(MENU)
    for name, value in expected.items():
        assert torch.equal(picked(name)(logp, ref, MASK, LABEL, **more)[0], value), name


def test_metrics_are_sums_and_counts_in_the_glossary():
    from posttrain.train.metrics import lookup

    logp, ref, _ = rows()
    _, metrics = PreferenceLoss()(logp, ref, MASK, LABEL)
    for name, (_, count) in metrics.items():
        lookup(name)
        assert count == 3
    assert metrics["length_chosen"][0] == 6 and metrics["length_rejected"][0] == 3
    assert math.isclose(metrics["logp_chosen"][0], (logp * MASK).sum(1)[::2].sum())
    assert math.isclose(metrics["logp_rejected"][0], (logp * MASK).sum(1)[1::2].sum())


def test_usual_numbers():
    assert PreferenceLoss().strength == 0.1 and PreferenceLoss(name="dpo_norm").strength == 5.0
    assert PreferenceLoss(beta=0.5).strength == 0.5
    assert {n for n in MENU if picked(n).nll_weight} == {"rpo", "mpo", "orpo", "cpo", "cpo_ipo", "slic"}
    assert PreferenceLoss(nll=0.2).nll_weight == 0.2 and PreferenceLoss(name="cpo", nll=0.0).nll_weight == 0
    free = {"orpo", "simpo", "alphapo", "cpo", "cpo_ipo", "slic"}
    assert {n for n in MENU if not picked(n).needs_reference} == free
    assert {n for n in MENU if picked(n).coupled} == {"aot", "aot_unpaired"}


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: PreferenceLoss(name="dp0"), 'Did you mean "dpo"'),
        (lambda: PreferenceLoss(beta=0.0), "must be positive"),
        (lambda: PreferenceLoss(label_smoothing=0.1), "cdpo, robust, exo, aot, aot_unpaired, .* read it"),
        (lambda: PreferenceLoss(name="cdpo", label_smoothing=0.1, gamma=1.0), "simpo, alphapo read it"),
        (lambda: PreferenceLoss(name="cdpo"), "needs loss.label_smoothing"),
        (lambda: PreferenceLoss(name="cdpo", label_smoothing=0.0), "no label is flipped"),
        (lambda: PreferenceLoss(name="robust", label_smoothing=0.5), "loss.label_smoothing = 0.5.*labels say nothing"),
        (lambda: PreferenceLoss(name="discopop", tau=2.0), "loss.tau = 2.0"),
        (lambda: PreferenceLoss(name="ld_dpo", alpha=-1.0), "loss.alpha = -1.0"),
        (lambda: PreferenceLoss(name="rdpo", alpha=-1.0), "loss.alpha = -1.0"),
        (lambda: PreferenceLoss(name="dpop", penalty=-1.0), "loss.penalty = -1.0"),
        (lambda: PreferenceLoss(name="simpo", gamma=-1.0), "loss.gamma = -1.0"),
        (lambda: PreferenceLoss(nll=-1.0), "unlearn"),
        (lambda: PreferenceLoss(nll_average="token"), "changes nothing while"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_half_a_pair_is_refused():
    logp, ref, _ = rows()
    with pytest.raises(ShapeError, match="3 chosen and 2 rejected"):
        PreferenceLoss()(logp[:5], ref[:5], MASK[:5], LABEL[:5])
