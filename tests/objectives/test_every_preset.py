"""What is true of every method on the two menus, from rewards to the gradient of a step and from pairs to their losses.

Architecture section 13 lists the identities. What is true of one formula alone is asked of it in `test_every_formula`.
"""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.objectives.advantages import NEEDS, estimate, mixed, whiten
from posttrain.objectives.average import Average, row_weights, token_weights
from posttrain.objectives.kl import kl_estimate
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.policy import chosen_tokens, policy_loss
from posttrain.objectives.preference import MENU, PreferenceLoss
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.pull import Step, token_pull
from posttrain.objectives.regularizers import Kl, Proximal
from posttrain.objectives.returns import gae, token_rewards
from posttrain.objectives.surrogate import RATIOS, Clip
from posttrain.objectives.token_masks import Chosen, Focus

N, T = 8, 5
FEW = settings(max_examples=3, derandomize=True, deadline=None, database=None)
BASELINES = ("greedy", "center", "zscore", "leave_one_out", "length_weighted", "pass_at_k", "batch_center",
             "batch_whiten", "center_then_whiten", "center_then_scale", "center_live", "optimal_token")  # fmt: skip
"""Estimators that see how rewards differ, not how large they are."""
SCALED = ("zscore", "batch_whiten", "center_then_whiten", "center_then_scale", "decoupled")
"""Those that see neither shift nor unit."""


def presets(wanted=lambda objective: True):
    return pytest.mark.parametrize("name", [name for name, objective in PRESETS.items() if wanted(objective)])


def step(seed=0, far=0.3):
    """Two prompts with four answers each. far: distance between the policies."""
    torch.default_generator.manual_seed(seed)
    mask = torch.rand(N, T) < 0.7
    mask[:, 0], mask[:, 1] = False, True
    logp = -0.4 - 2 * torch.rand(N, T)
    near = [(logp + far * torch.randn(N, T)).clamp(max=-0.01) for _ in range(3)]
    reward = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0])
    return Step(mask=mask, group=torch.tensor([7, 3, 7, 3, 3, 7, 3, 7]), reward=reward, logp=logp, old_logp=near[0],
                sampled_logp=near[1], ref_logp=near[2], entropy=2 * torch.rand(N, T), sum_sq=torch.rand(N, T),
                value=torch.randn(N, T), greedy=torch.rand(N), parts=torch.rand(N, 2), draws=torch.rand(N, T),
                baseline=0.2)  # fmt: skip


def each(record, change):
    """A step with all its tensors changed."""
    tensors = ((f.name, getattr(record, f.name)) for f in fields(record) if f.name != "baseline")
    return replace(record, **{name: change(x) for name, x in tensors})


def advantage(objective, rows):
    """[N, T], the charge of a leash in the reward included."""
    kl, beta = None, 0.0
    if objective.kl.where == "reward":
        start = rows.old_logp if objective.needs_critic else rows.sampled_logp
        kl, beta = kl_estimate(start - rows.ref_logp, objective.kl.estimator), objective.kl.beta
    rewards = token_rewards(rows.reward, rows.mask, kl=kl, beta=beta)
    if objective.needs_critic:
        return whiten(gae(rewards, rows.value, rows.mask)[0], rows.mask)
    wanted = NEEDS.get(objective.advantage, ())
    extra = {name: objective.k if name == "k" else getattr(rows, name) for name in wanted}
    return estimate(objective.advantage, rewards, rows.mask, rows.group, **extra)


def trained(objective, whole, cuts=None):
    """Loss of a step and its gradient in log π [N, T]; advantages, weights and picked tokens are made once, then the
    rows are cut."""
    kept = mixed(whole.reward, whole.group) if objective.keep == "mixed" else torch.ones(N, dtype=torch.bool)
    rows = each(whole, lambda x: x[kept])
    gain, weight = advantage(objective, rows), token_weights(rows.mask, objective.average, group=rows.group)
    chosen = chosen_tokens(objective, rows.logp, gain, rows.mask, entropy=rows.entropy, draws=rows.draws)
    value, slope = 0.0, torch.zeros_like(whole.logp)
    for part in [torch.arange(len(gain))] if cuts is None else cuts(len(gain)):
        one = each(rows, lambda x, part=part: x[part])
        leaf = one.logp.clone().requires_grad_()
        loss, _ = policy_loss(leaf, one.old_logp, gain[part], one.mask, objective, ref_logp=one.ref_logp,
                              sampled_logp=one.sampled_logp, entropy=one.entropy,
                              chosen=Chosen(*(x[part] for x in chosen)))  # fmt: skip
        total = (weight[part].to(loss.dtype) * loss).sum()
        value += total.detach()
        slope[kept.nonzero()[part, 0]] = torch.autograd.grad(total, leaf)[0]
    return value, slope


def close(found, wanted, tolerance=1e-12):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@presets()
@FEW
@given(st.integers(0, 9), st.lists(st.integers(0, 3), min_size=N, max_size=N))
def test_micro_batches_add_up_to_the_step(name, seed, part):
    whole = step(seed)

    def cuts(rows):
        return [torch.tensor([n for n in range(rows) if part[n] == k]) for k in set(part[:rows])]

    value, slope = trained(PRESETS[name], whole, cuts)
    close((value, slope), trained(PRESETS[name], whole))
    close(-slope, token_pull(PRESETS[name], whole).whole)


@presets()
@FEW
@given(st.integers(0, 9), st.permutations(range(N)), st.integers(0, 2), st.integers(0, 2))
def test_order_of_answers_and_padding_change_nothing(name, seed, order, left, right):
    whole, order = step(seed), torch.tensor(order)
    value, slope = trained(PRESETS[name], whole)

    def moved(x):
        if x.shape != (N, T):
            return x[order]
        junk = math.nan if x.is_floating_point() else False
        return torch.nn.functional.pad(x[order], (left, right), value=junk)

    found, pulled = trained(PRESETS[name], each(whole, moved))
    close((found, pulled[:, left : left + T]), (value, slope[order]))
    assert not pulled[:, :left].any() and not pulled[:, left + T :].any()


@presets()
def test_far_from_every_policy_and_without_tokens_all_stays_finite(name):
    for seed in range(4):
        whole = step(seed)
        ends = torch.tensor([-1e4, -5e3, -1.0, 0.0])
        names = ("logp", "old_logp", "sampled_logp", "ref_logp")
        far = replace(whole, **{name: ends[torch.randint(0, 4, (N, T))] for name in names})
        none, one = torch.zeros(N, T, dtype=torch.bool), whole.mask & (torch.arange(N) != seed)[:, None]
        for mask in (whole.mask, one, none):
            for record in (far, each(far, lambda x: x.float() if x.is_floating_point() else x)):
                value, slope = trained(PRESETS[name], replace(record, mask=mask))
                assert torch.isfinite(value) and torch.isfinite(slope).all(), (seed, record.logp.dtype)


@presets(lambda objective: objective.advantage in BASELINES)
def test_a_constant_added_to_all_rewards_changes_nothing(name):
    whole, objective = step(), PRESETS[name]
    shifted = replace(whole, reward=whole.reward + 3.7, greedy=whole.greedy + 3.7)
    close(advantage(objective, shifted), advantage(objective, whole), 1e-10)


@presets(lambda objective: objective.advantage in SCALED and objective.kl.where != "reward")
def test_the_unit_of_rewards_changes_nothing_where_they_are_scaled(name):
    """Up to the ε beside the deviation."""
    whole, objective = step(), PRESETS[name]
    scaled = replace(whole, reward=5 * whole.reward, parts=5 * whole.parts)
    close(advantage(objective, scaled), advantage(objective, whole), 2e-3)


@presets(lambda objective: objective.needs_group)
def test_equal_rewards_teach_nothing(name):
    """Without leash and penalty the gradient is exactly 0; where only mixed groups are kept no answer is left."""
    whole, objective = step(), replace(PRESETS[name], kl=Kl(), proximal=Proximal(), focus=Focus())
    equal = replace(whole, reward=torch.ones(N), parts=torch.ones(N, 2))
    assert not trained(replace(objective, keep="all"), equal)[1].any()
    assert objective.keep == "all" or not mixed(equal.reward, equal.group).any()


@presets(lambda objective: objective.ratio != "none")
def test_ratios_of_answers_and_of_tokens_agree_on_answers_of_one_token(name):
    whole = replace(step(), mask=torch.arange(T).expand(N, T) == 2)
    found = {}
    for ratio in RATIOS[1:]:  # all but "none"
        try:
            found[ratio] = trained(replace(PRESETS[name], ratio=ratio), whole)
        except ConfigError:  # a combination that is refused
            assert ratio != PRESETS[name].ratio
    for pair in found.values():
        close(pair, found[PRESETS[name].ratio])


@presets(lambda objective: objective.clip.kind in ("min", "weight"))
def test_inside_the_band_a_clip_does_nothing(name):
    """PPO's minimum is then importance sampling, and so is CISPO's gradient, though its value is another."""
    whole, objective = step(far=1e-5), PRESETS[name]
    free = trained(replace(objective, clip=Clip(kind="none")), whole)
    found = trained(objective, whole)
    close(found[1], free[1])
    if objective.clip.kind == "min":
        close(found[0], free[0])


@presets(lambda objective: objective.mismatch.kind != "off")
def test_a_sampler_that_agrees_needs_no_correction(name):
    whole, objective = step(), PRESETS[name]
    whole = replace(whole, sampled_logp=whole.old_logp)
    close(trained(objective, whole), trained(replace(objective, mismatch=Mismatch()), whole))


# The menu of preference losses ----------------------------------------------------------------------------------------
PAIRS = 3
LABEL = torch.tensor([1.0, -1, -1, 1, -1, 1])


def picked(name):
    return PreferenceLoss(name=name, **({"label_smoothing": 0.1} if name in ("cdpo", "robust") else {}))


def pairs(seed=0):
    torch.default_generator.manual_seed(seed)
    mask = torch.rand(2 * PAIRS, T) < 0.7
    mask[:, 0], mask[:, 1] = False, True
    logp, ref = -0.2 - 2 * torch.rand(2, 2 * PAIRS, T)
    gap = (0.5 + torch.rand(PAIRS))[torch.tensor([0, 0, 1, 1, 2, 2])]
    return {"logp": logp, "ref_logp": ref, "mask": mask, "label": LABEL, "sum_sq": torch.rand(2 * PAIRS, T),
            "score_gap": gap}  # fmt: skip


def sloped(name, rows, weights):
    leaf = rows["logp"].clone().requires_grad_()
    loss, _ = picked(name)(**(rows | {"logp": leaf}))
    return loss.detach(), torch.autograd.grad((weights.to(loss.dtype) * loss).sum(), leaf)[0]


def menu(wanted=lambda formula: True):
    return pytest.mark.parametrize("name", [name for name, formula in MENU.items() if wanted(formula)])


@menu(lambda formula: not formula.coupled)
@pytest.mark.parametrize("parts", [([0], [1], [2]), ([0, 2], [1]), ([2, 1, 0],)], ids=str)
def test_pairs_may_be_cut_anywhere(name, parts):
    rows, owner = pairs(), torch.arange(2 * PAIRS) // 2
    weight = row_weights(rows["mask"], Average("pair"), group=owner)[::2]
    loss, slope = sloped(name, rows, weight)
    for part in parts:
        index = torch.cat([(owner == pair).nonzero()[:, 0] for pair in part])
        found, pulled = sloped(name, {k: x[index] for k, x in rows.items()}, weight[part])
        close((found, pulled), (loss[part], slope[index]))


@menu()
@pytest.mark.parametrize("left, right", [(1, 0), (0, 3), (2, 1)])
def test_padding_of_pairs_changes_nothing(name, left, right):
    rows = pairs()
    loss, slope = sloped(name, rows, torch.ones(PAIRS))

    def wider(x):
        junk = math.nan if x.is_floating_point() else False
        return torch.nn.functional.pad(x, (left, right), value=junk) if x.dim() == 2 else x

    found, pulled = sloped(name, {k: wider(x) for k, x in rows.items()}, torch.ones(PAIRS))
    close((found, pulled[:, left : left + T]), (loss, slope))
    assert not pulled[:, :left].any() and not pulled[:, left + T :].any()


@menu(lambda formula: not formula.weighted)
def test_gradcheck_through_the_menu(name):
    rows = pairs(1)
    assert torch.autograd.gradcheck(
        lambda logp: picked(name)(**(rows | {"logp": logp}))[0], (rows["logp"].requires_grad_(),)
    )


@menu()
def test_pairs_far_from_the_reference_and_answers_without_tokens_stay_finite(name):
    for seed in range(4):
        rows, ends = pairs(seed), torch.tensor([-1e4, -5e3, -1.0, 0.0])
        rows |= {k: ends[torch.randint(0, 4, (2 * PAIRS, T))] for k in ("logp", "ref_logp")}
        one = rows["mask"] & (torch.arange(2 * PAIRS) != seed)[:, None]
        for mask in (rows["mask"], one, one & False):
            for dtype in (torch.float64, torch.float32):
                given = {k: x.to(dtype) if x.is_floating_point() else x for k, x in rows.items()} | {"mask": mask}
                loss, slope = sloped(name, given, torch.ones(PAIRS))
                assert loss.dtype == dtype and torch.isfinite(loss).all() and torch.isfinite(slope).all()


@menu()
def test_turning_all_labels_round_swaps_the_rewards(name):
    rows = pairs()
    metrics, turned = (picked(name)(**(rows | {"label": label}))[1] for label in (LABEL, -LABEL))
    for a, b in (("reward_chosen", "reward_rejected"), ("logp_chosen", "logp_rejected")):
        close((metrics[a], metrics[b]), (turned[b], turned[a]))
    close(metrics["margin"][0], -turned["margin"][0])
    assert metrics["accuracy"][0] + turned["accuracy"][0] == PAIRS


LOG2 = math.log(2)
AT_REFERENCE = {
    "dpo": (LOG2, -1 / 2), "cdpo": (LOG2, -0.4), "robust": (LOG2, -0.625), "ipo": (25.0, -100.0), "hinge": (1.0, -1.0),
    "odpo": (LOG2, -1 / 2), "wpo": (LOG2, -1 / 2), "f_dpo_forward_kl": (LOG2, -1 / 2), "f_dpo_js": (LOG2, -1 / 4),
    "f_dpo_alpha": (LOG2, -1 / 2), "aot": (LOG2, -1 / 2), "aot_unpaired": (LOG2, -1 / 2), "dpo_norm": (LOG2, -1 / 4),
    "ipo_norm": (1 / 16, -1 / 8), "rdpo": (LOG2, -1 / 2), "ld_dpo": (LOG2, -1 / 2), "rpo": (LOG2, -1 / 2),
    "apo_zero": (1.0, -1 / 4), "apo_down": (1.0, 0.0), "nca": (2 * LOG2, -1 / 4), "bco_pair": (2 * LOG2, -1 / 2),
    "mpo": (1.2 * LOG2, -1 / 2), "cal_dpo": (LOG2 + 5000.0, -10050.0), "sppo_hard": (500000.0, -1e6),
    "exo": (math.log(0.5) - (math.log(0.999) + math.log(0.001)) / 2, None), "discopop": ((LOG2 + 1) / 2, None),
    "dpop": (LOG2, None),
}  # fmt: skip
"""With usual numbers and answers of two tokens: the loss of a pair, and its slope in a token of the chosen answer by β
(DPO: log 2 and -β/2). None: the slope is worked out where the loss is tested."""


@menu(lambda formula: formula.reference)
def test_a_policy_at_its_reference(name):
    rows = pairs()
    two = torch.arange(T).expand(2 * PAIRS, T) > T - 3
    rows |= {"ref_logp": rows["logp"], "mask": two, "sum_sq": rows["logp"].exp(), "score_gap": torch.ones(2 * PAIRS)}
    loss, slope = sloped(name, rows, torch.ones(PAIRS))
    value, per_beta = AT_REFERENCE[name]
    close(loss, torch.full((PAIRS,), value), 1e-9)
    if per_beta is not None:
        wanted = torch.where(rows["mask"] & (LABEL > 0)[:, None], per_beta * picked(name).strength, 0.0)
        close(torch.where((LABEL > 0)[:, None], slope, 0.0), wanted, 1e-9)
