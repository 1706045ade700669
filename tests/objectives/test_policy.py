"""The policy loss of every preset: slow loops from the papers, REINFORCE on-policy, and what must not change it."""

import math
from dataclasses import replace

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.gates import Gate
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import chosen_tokens, policy_loss
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.regularizers import Entropy, Kl, Proximal
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.token_masks import Chosen, Focus, drawn_covariance, top_covariance, top_entropy


def data(n=6, t=7):
    mask = torch.rand(n, t) < 0.7
    mask[:, 0], mask[:, 2] = False, True
    logp = -0.3 - 3 * torch.rand(n, t)
    near = {name: (logp + 0.3 * torch.randn(n, t)).clamp(max=-0.01) for name in ("old", "ref", "sampled")}
    return logp, near, torch.randn(n, t), mask


def call(objective, logp, near, advantage, mask, entropy=None, draws=None, **kwargs):
    """The loss with everything an objective may ask for."""
    entropy = torch.linspace(0, 3, logp.numel()).view(logp.shape) if entropy is None else entropy
    draws = torch.linspace(1, 0, logp.numel()).view(logp.shape) if draws is None else draws
    if objective.coupled and "chosen" not in kwargs:
        kwargs["chosen"] = chosen_tokens(objective, logp, advantage, mask, entropy=entropy, draws=draws)
    return policy_loss(
        logp,
        near["old"],
        advantage,
        mask,
        objective,
        ref_logp=near["ref"],
        sampled_logp=near["sampled"],
        entropy=entropy,
        **kwargs,
    )


EVERYTHING = Objective(
    clip=Clip(low=0.1, high=0.3, cap=2.0),
    gate=Gate(kind="tv", low=0.02, high=0.05, against="sampler"),
    focus=Focus(kind="entropy", share=0.6),
    kl=Kl(where="loss", estimator="k3", beta=0.2, corrected=True),
    proximal=Proximal(estimator="abs", weight=0.3, share=0.4),
    mismatch=Mismatch(kind="truncate", high=1.1),
    entropy=Entropy(weight=0.05),
)
EXTRA = {
    "mismatch": Objective(mismatch=Mismatch(kind="truncate", level="sequence")),
    "masked": Objective(mismatch=Mismatch(kind="mask", level="geometric", high=1.01)),
    "entropy": Objective(entropy=Entropy(weight=0.1)),
    "corrected": Objective(kl=Kl(where="loss", beta=0.1, corrected=True)),
    "everything": EVERYTHING,
}
WALK = PRESETS | EXTRA


def test_a_loss_written_from_the_papers_with_loops():
    logp, near, advantage, mask = data()
    entropy = torch.rand_like(logp)
    focus, pays = top_entropy(entropy, mask, 0.6), top_covariance(logp, advantage, mask, 0.4)
    loss, metrics = call(EVERYTHING, logp, near, advantage, mask, entropy=entropy, beta=0.4, tie=0.7, bonus=0.09)
    cut = 0
    for n, t in mask.nonzero().tolist():
        lp, a = float(logp[n, t]), float(advantage[n, t])
        old, ref, mu = (float(near[k][n, t]) for k in ("old", "ref", "sampled"))
        rho = math.exp(lp - old)
        gain = min(rho * a, min(max(rho, 0.9), 1.3) * a)
        gain = max(gain, 2.0 * a) if a < 0 else gain
        gate = math.exp(lp) - math.exp(mu)
        if (a > 0 and gate > 0.05) or (a < 0 and gate < -0.02):
            gain, cut = 0.0, cut + 1
        gain = gain if focus[n, t] else 0.0
        expected = min(math.exp(old - mu), 1.1) * (-gain + (0.7 * abs(lp - old) if pays[n, t] else 0.0))
        expected += 0.4 * rho * (math.exp(ref - lp) - (ref - lp) - 1) - 0.09 * float(entropy[n, t])
        assert math.isclose(loss[n, t], expected, rel_tol=1e-10)
    assert not loss[~mask].any()
    assert metrics["gate_cut_share"] == (cut, mask.sum()) and 0 < cut < int(mask.sum())
    assert metrics["focus_share"] == (focus.sum(), mask.sum())
    assert math.isclose(metrics["proximal"][0], float(((logp - near["old"]).abs() * pays).sum()))


def test_the_weights_of_the_objective_are_used_unless_others_are_given():
    logp, near, advantage, mask = data()
    given = call(EVERYTHING, logp, near, advantage, mask, beta=0.2, tie=0.3, bonus=0.05)[0]
    torch.testing.assert_close(call(EVERYTHING, logp, near, advantage, mask)[0], given, atol=0, rtol=0)


def test_the_published_test_vector_of_dppo_from_the_sampler():
    logp = torch.tensor([[-1.0, -2, -0.5, -3]])
    sampler = torch.tensor([[-1.3, -1.5, -0.6, -4.2]])
    mask, objective = torch.ones(1, 4).bool(), replace(PRESETS["dppo"], gate=Gate(kind="tv", low=0.05, high=0.05))
    for sign, expected in ((1.0, -0.981662), (-1.0, 1.443787)):
        loss, _ = policy_loss(logp, logp - 9, torch.full((1, 4), sign), mask, objective, sampled_logp=sampler)
        assert round(float((token_weights(mask, objective.average) * loss).sum()), 6) == expected


def test_bypass_mode_starts_the_ratio_at_the_sampler():
    logp, near, advantage, mask = data()
    bypass = call(Objective(old="sampler"), logp, near, advantage, mask)
    plain = call(Objective(), logp, near | {"old": near["sampled"]}, advantage, mask)
    torch.testing.assert_close(bypass[0], plain[0], atol=0, rtol=0)
    assert bypass[1]["ratio_mean"] == plain[1]["ratio_mean"] and bypass[1]["kl_old"] == plain[1]["kl_old"]
    gap = float(((near["old"] - near["sampled"]).abs() * mask).sum())
    assert math.isclose(bypass[1]["sampler_gap_mean"][0], gap), "the gap is still between learner and sampler"


def test_uncut_weights_turn_the_ratio_to_the_learner_into_the_ratio_to_the_sampler():
    """π_old/μ · π/π_old = π/μ: decoupled PPO without a clip is importance sampling from the sampler."""
    logp, near, advantage, mask = data()
    decoupled = Objective(clip=Clip(kind="none"), mismatch=Mismatch(kind="truncate", high=None))
    straight = Objective(clip=Clip(kind="none"), old="sampler")
    a, b = (call(o, logp, near, advantage, mask)[0] for o in (decoupled, straight))
    torch.testing.assert_close(a, b)


def test_luspo_is_gspo_times_the_length():
    logp, near, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    luspo, gspo = (replace(PRESETS[name], clip=Clip(low=0.01, high=0.02)) for name in ("luspo", "gspo"))
    loss = call(luspo, logp, near, advantage, mask)[0]
    by_sum = (token_weights(mask, luspo.average) * loss).sum(1)
    by_mean = (token_weights(mask, gspo.average) * call(gspo, logp, near, advantage, mask)[0]).sum(1)
    torch.testing.assert_close(by_sum, by_mean * mask.sum(1))


def test_gspo_token_is_gspo_where_advantages_are_of_answers():
    logp, near, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    found = []
    for name in ("gspo", "gspo_token"):
        leaf = logp.clone().requires_grad_()
        loss = call(replace(PRESETS[name], clip=Clip(low=0.01, high=0.02)), leaf, near, advantage, mask)[0]
        (token_weights(mask, Average("sequence")) * loss).sum().backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_kimi_s_mirror_descent_on_whole_answers():
    """-(r - r̄) log π(y) + τ/2 (log π(y)/π_old(y))², one number per answer."""
    logp, near, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    objective = replace(PRESETS["kimi"], proximal=Proximal(estimator="k2", level="sequence", weight=0.7))
    loss = (token_weights(mask, objective.average) * call(objective, logp, near, advantage, mask)[0]).sum(1) * len(mask)
    for n in range(len(mask)):
        now, then = float(logp[n, mask[n]].sum()), float(near["old"][n, mask[n]].sum())
        assert math.isclose(loss[n], -float(advantage[n, 0]) * now + 0.7 / 2 * (now - then) ** 2)


@pytest.mark.parametrize("name", PRESETS)
def test_on_policy_every_preset_is_reinforce(name):
    """At π = π_old = μ, without leash and penalty, the gradient of every method is its weights times A ∇log π."""
    objective = replace(PRESETS[name], kl=Kl(), proximal=Proximal(), focus=Focus())
    logp, _, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    leaf = logp.clone().requires_grad_()
    loss, metrics = policy_loss(leaf, logp, advantage, mask, objective, sampled_logp=logp)
    weights = token_weights(mask, objective.average, group=torch.arange(len(mask)) // 2)
    (weights * loss).sum().backward()
    whole = mask.sum(1, keepdim=True) if objective.ratio == "sequence_sum" and objective.clip.kind != "gamma" else 1
    torch.testing.assert_close(leaf.grad, -advantage * weights * whole, atol=1e-12, rtol=1e-12)
    for metric in ("clip_share", "kl_old", "sampler_gap_max"):
        assert metrics[metric][0] == 0
    assert metrics["ratio_mean"][0] == metrics["ratio_mean"][1]
    assert metrics.get("gate_cut_share", [0])[0] == metrics.get("mismatch_cut_share", [0])[0] == 0


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].proximal.estimator in ("k2", "k3")])
def test_on_policy_a_smooth_tie_has_no_gradient(name):
    logp, near, advantage, mask = data()
    grads = []
    for objective in (PRESETS[name], replace(PRESETS[name], proximal=Proximal())):
        leaf = logp.clone().requires_grad_()
        call(replace(objective, kl=Kl()), leaf, dict.fromkeys(near, logp), advantage, mask)[0].sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def everything(objective, logp, near, advantage, mask, entropy, chosen=None):
    leaf, leaf2 = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
    kwargs = {} if chosen is None else {"chosen": chosen}
    loss, metrics = call(objective, leaf, near, advantage, mask, entropy=leaf2, **kwargs)
    loss.sum().backward()
    return loss.detach(), leaf.grad, torch.zeros_like(leaf) if leaf2.grad is None else leaf2.grad, metrics


@pytest.mark.parametrize("objective", WALK.values(), ids=WALK)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_junk_under_the_mask_changes_nothing(objective, junk):
    logp, near, advantage, mask = data()
    entropy = torch.rand_like(logp)
    clean = everything(objective, logp, near, advantage, mask, entropy)

    def spoil(x):
        return torch.where(mask, x, junk)

    spoiled = {k: spoil(v) for k, v in near.items()}
    dirty = everything(objective, spoil(logp), spoiled, spoil(advantage), mask, spoil(entropy))
    for a, b in zip(clean[:3], dirty[:3], strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
        assert not a[~mask].any()
    assert clean[3] == dirty[3]


@pytest.mark.parametrize("objective", WALK.values(), ids=WALK)
def test_padding_order_and_cuts_change_nothing(objective):
    """What is picked among all tokens is picked before the cut."""
    logp, near, advantage, mask = data()
    entropy = torch.rand_like(logp)
    chosen = chosen_tokens(objective, logp, advantage, mask, entropy=entropy, draws=torch.rand_like(logp))
    loss, grad, _, _ = everything(objective, logp, near, advantage, mask, entropy, chosen)
    for rows in (torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([5, 4, 2])):

        def cut(x, rows=rows):
            return torch.nn.functional.pad(x[rows], (0, 2))

        part = everything(objective, cut(logp), {k: cut(v) for k, v in near.items()}, cut(advantage), cut(mask),
                          cut(entropy), Chosen(*map(cut, chosen)))  # fmt: skip
        torch.testing.assert_close(part[0][:, :7], loss[rows])
        torch.testing.assert_close(part[1][:, :7], grad[rows])


STOPPED = ("weight", "gamma")  # these detach a weight, as the ratios "none" and "sequence_token" do
SMOOTH = [n for n, o in WALK.items() if o.clip.kind not in STOPPED and o.ratio != "sequence_token"]
SMOOTH = [n for n in SMOOTH if WALK[n].ratio != "none" or WALK[n].clip.kind == "log"]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    """Where no gradient is stopped on purpose (a gate's mask is constant around any point)."""
    logp, near, advantage, mask = data(n=3, t=4)
    objective = WALK[name]
    chosen = chosen_tokens(objective, logp, advantage, mask, entropy=torch.rand(3, 4), draws=torch.rand(3, 4))
    assert torch.autograd.gradcheck(
        lambda x: call(objective, x, near, advantage, mask, chosen=chosen)[0], (logp.requires_grad_(),)
    )


@pytest.mark.parametrize("name", [n for n, o in WALK.items() if o.kl.where != "loss"])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_huge_ratios_and_empty_masks_stay_finite(name, far):
    """The leash is left out: its own estimators say what they do with a reference that is worlds away."""
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]], dtype=torch.float32)
    old = logp - torch.tensor([[0.0, far, -far], [0.0, far, far]], dtype=torch.float32)
    near = {"old": old, "ref": logp, "sampled": old.flip(0)}
    for mask in (torch.ones(2, 3).bool(), torch.tensor([[True] * 3, [False] * 3]), torch.zeros(2, 3).bool()):
        for sign in (1.0, -1.0):
            leaf = logp.clone().requires_grad_()
            advantage = torch.full_like(logp, sign)
            loss, _ = call(WALK[name], leaf, near, advantage, mask, entropy=torch.ones_like(logp))
            loss.sum().backward()
            assert torch.isfinite(loss).all() and torch.isfinite(leaf.grad).all()
            assert loss.dtype == torch.float32


def test_only_logp_and_entropy_get_a_gradient():
    logp, near, advantage, mask = data()
    leaves = {k: v.clone().requires_grad_() for k, v in near.items()}
    advantage, entropy = advantage.clone().requires_grad_(), torch.rand_like(logp).requires_grad_()
    for objective in (EVERYTHING, replace(Objective(), old="sampler")):
        call(objective, logp.requires_grad_(), leaves, advantage, mask, entropy=entropy)[0].sum().backward()
    assert logp.grad is not None and advantage.grad is None and all(x.grad is None for x in leaves.values())
    torch.testing.assert_close(entropy.grad, -0.05 * mask)
    _, metrics = call(EVERYTHING, logp, leaves, advantage, mask, entropy=entropy)
    assert not [name for name, (total, _) in metrics.items() if total.requires_grad]


def test_metrics_with_a_pencil():
    logp = torch.tensor([[0.0, -1.0, -1.0, -1.0, -1.0]])
    near = {"old": logp - torch.tensor([[0.0, 0.0, 0.5, -0.4, 1.2]]), "ref": logp + 0.1, "sampled": logp}
    advantage = torch.tensor([[9.0, 1.0, 1.0, -1.0, -1.0]])
    mask = torch.tensor([[False, True, True, True, True]])
    _, metrics = call(Objective(clip=Clip(cap=3.0)), logp, near, advantage, mask, entropy=torch.full((1, 5), 0.7))
    mean = {k: float(s) / float(n) for k, (s, n) in metrics.items()}
    expected = {
        "ratio_mean": (1 + math.exp(0.5) + math.exp(-0.4) + math.exp(1.2)) / 4,
        "ratio_max": math.exp(1.2),
        # ρ - 1 - log ρ: samples are of π_old
        "kl_old": (math.exp(0.5) - 1.5 + math.exp(-0.4) - 0.6 + math.exp(1.2) - 2.2) / 4,
        "clip_share": 3 / 4,
        "clip_low_share": 1 / 4,
        "clip_high_share": 1 / 4,
        "clip_cap_share": 1 / 4,
        "advantage_abs": 1.0,
        "advantage_mean": 0.0,
        "kl_ref_k1": -0.1,
        "kl_ref_k2": 0.005,
        "kl_ref_k3": math.exp(0.1) - 1.1,
        "sampler_gap_mean": 2.1 / 4,
        "sampler_gap_max": 1.2,
        "entropy": 0.7,
    }
    assert mean.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(mean[name], value, rel_tol=1e-9, abs_tol=1e-12), name


@pytest.mark.parametrize(("moved", "gain", "where"), [(0.5, 1.0, "high"), (-0.5, -1.0, "low"), (1.2, -1.0, "cap")])
def test_metrics_of_a_lone_token(moved, gain, where):
    """Between two tokens of others, so that a mask which is off by one misses it."""
    old, mask = torch.zeros(1, 3), torch.tensor([[False, True, False]])
    near = {"old": old, "ref": old, "sampled": old}
    objective = Objective(clip=Clip(cap=3.0))
    _, metrics = call(objective, old + moved, near, torch.full((1, 3), gain), mask)
    mean = {k: float(s) / float(n) for k, (s, n) in metrics.items()}
    assert math.isclose(mean["ratio_mean"], math.exp(moved)) and math.isclose(mean["ratio_max"], math.exp(moved))
    shares = {name: mean[f"clip_{name}_share"] for name in ("low", "high", "cap")}
    assert mean["clip_share"] == 1 and shares == {name: float(name == where) for name in shares}


def test_every_metric_is_in_the_glossary():
    from posttrain.train.metrics import lookup

    logp, near, advantage, mask = data()
    for name in call(EVERYTHING, logp, near, advantage, mask)[1]:
        lookup(name)


def test_chosen_tokens_are_those_of_the_choices():
    logp, _, advantage, mask = data()
    entropy, draws = torch.rand_like(logp), torch.rand_like(logp)

    def pick(**choices):
        return chosen_tokens(Objective(**choices), logp, advantage, mask, entropy=entropy, draws=draws)

    assert all(torch.equal(x, mask) for x in pick())
    focus = Focus(kind="covariance", share=0.3, low=0.05, high=2.0)
    away = drawn_covariance(logp, advantage, mask, draws, share=0.3, low=0.05, high=2.0)
    assert away.any() and torch.equal(pick(focus=focus).gain, mask & ~away)
    assert torch.equal(pick(focus=Focus(kind="entropy", share=0.3)).gain, top_entropy(entropy, mask, 0.3))
    found = pick(proximal=Proximal(estimator="abs", weight=1.0, share=0.3))
    assert torch.equal(found.penalty, top_covariance(logp, advantage, mask, 0.3)) and torch.equal(found.gain, mask)


def test_missing_or_unused_inputs_are_refused():
    logp, near, advantage, mask = data()
    args = (logp, near["old"], advantage, mask)
    for objective, advice in (
        (PRESETS["grpo"], "needs ref_logp"),
        (EXTRA["mismatch"], "needs sampled_logp"),
        (PRESETS["dppo"], "needs sampled_logp"),
        (replace(PRESETS["deepseek_v32"], kl=Kl()), "needs sampled_logp"),
        (EXTRA["entropy"], "needs entropy"),
        (PRESETS["high_entropy"], "chosen_tokens"),
        (PRESETS["kl_cov"], "chosen_tokens"),
    ):
        with pytest.raises(ConfigError, match=advice):
            policy_loss(*args, objective)
    for kwargs, advice in (
        ({"beta": 0.1}, "no KL term"),
        ({"tie": 0.1}, "no penalty"),
        ({"bonus": 0.1}, "needs entropy"),
    ):
        with pytest.raises(ConfigError, match=advice):
            policy_loss(*args, PRESETS["dapo"], **kwargs)
    with pytest.raises(ConfigError, match="ask the learner"):
        chosen_tokens(PRESETS["high_entropy"], logp, advantage, mask)
    with pytest.raises(ConfigError, match="uniform number"):
        chosen_tokens(PRESETS["clip_cov"], logp, advantage, mask)
    with pytest.raises(ShapeError):
        policy_loss(logp, near["old"], advantage[:, 0], mask, PRESETS["dapo"])
