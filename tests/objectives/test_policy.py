"""The policy loss: peers' numbers for whole methods, REINFORCE on-policy, and what must not change it."""

import math
from dataclasses import replace

import oracle
import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.policy import Kl, Objective, next_beta, policy_loss, value_loss
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.surrogate import Clip, Mismatch

NOTHING = {"clip": Clip(kind="none")}


def data(n=6, t=7):
    mask = torch.rand(n, t) < 0.7
    mask[:, 0], mask[:, 2] = False, True
    logp = -3 * torch.rand(n, t)
    near = {name: logp + 0.3 * torch.randn(n, t) for name in ("old", "ref", "sampled")}
    return logp, near, torch.randn(n, t), mask


def call(objective, logp, near, advantage, mask, **kwargs):
    return policy_loss(
        logp, near["old"], advantage, mask, objective, ref_logp=near["ref"], sampled_logp=near["sampled"], **kwargs
    )


def compare(case, objective, average, advantage=None, scale=1.0, **kwargs):
    logp, mask = case.leaf("logps"), case["mask"] > 0
    advantage = case["advantages"] if advantage is None else advantage
    advantage = advantage if advantage.dim() == 2 else advantage[:, None].expand_as(logp)
    old = case.inputs.get("old_logps", logp.detach())
    loss, metrics = policy_loss(logp, old, advantage, mask, objective, **kwargs)
    total = scale * (token_weights(mask, average) * loss).sum()
    case.check("loss", total)
    total.backward()
    case.check("grad_logps", logp.grad)
    return metrics


TRL_AVERAGE = {"grpo": Average("sequence"), "sapo": Average("sequence"), "bnpo": Average("token")}
TRL = [f"{f}_{v}" for f in ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo") for v in ("token", "sequence", "kl")]
TRL += [f"{f}_{v}" for f in ("grpo", "dapo") for v in ("delta", "bias_corrected_kl", "on_policy")]
TRL += ["grpo_token_advantages"]


@pytest.mark.parametrize("case", oracle.cases("grpo", *TRL))
def test_the_group_family_equals_trl(case):
    h = case.hyper
    clip = Clip(low=h["epsilon_low"], high=h["epsilon_high"], cap=h.get("delta"))
    if h["loss_type"] == "cispo":  # TRL's epsilon_high is the cap itself, and there is no lower edge
        clip = Clip(kind="weight", low=None, high=h["epsilon_high"] - 1)
    elif h["loss_type"] == "sapo":
        clip = Clip(kind="soft")
    kl = Kl(where="loss", beta=h["beta"], corrected=h.get("use_bias_correction_kl", False)) if "beta" in h else Kl()
    objective = Objective(ratio=h["importance_sampling_level"], clip=clip, kl=kl)
    if h["loss_type"] in TRL_AVERAGE:
        average, scale = TRL_AVERAGE[h["loss_type"]], 1.0
    elif h["loss_type"] == "dr_grpo":
        average, scale = Average("constant", h["max_completion_length"]), 1.0
    else:  # dapo and cispo divide by the tokens of the whole generation batch
        average, scale = Average("token"), float(case["mask"].sum()) / h["num_items_in_batch"]
    compare(case, objective, average, scale=scale, ref_logp=case.inputs.get("ref_logps"))


@pytest.mark.parametrize("case", oracle.cases("grpo", "grpo_tis", "dapo_tis"))
def test_truncated_importance_sampling_equals_trl(case):
    """The peer was given weights truncated at 2; a sampler that differs by them gives the same loss."""
    h = case.hyper
    objective = Objective(
        clip=Clip(low=h["epsilon_low"], high=h["epsilon_high"]), mismatch=Mismatch(kind="truncate", high=2.0)
    )
    average, scale = Average("sequence"), 1.0
    if h["loss_type"] == "dapo":
        average, scale = Average("token"), float(case["mask"].sum()) / h["num_items_in_batch"]
    sampled = case["old_logps"] - case["is_ratio"].log()
    compare(case, objective, average, scale=scale, sampled_logp=sampled)


VERL = ("vanilla", "gspo", "sapo", "cispo")


@pytest.mark.parametrize("case", oracle.cases("verl_losses", *VERL, "gpg"))
def test_policy_losses_equal_verl(case):
    h, name = case.hyper, case.id.split("__")[1]
    average = Average("token" if h["loss_agg_mode"] == "token-mean" else "sequence")
    edges = {"low": h["clip_low"], "high": h["clip_high"]}
    match name:
        case "vanilla":
            compare(case, Objective(clip=Clip(**edges, cap=h["dual_clip"])), average)
        case "gspo":
            compare(case, Objective(ratio="sequence_token", clip=Clip(**edges)), average)
        case "sapo":
            compare(case, Objective(clip=Clip(kind="soft")), Average("sequence"))
        case "cispo":
            compare(case, Objective(clip=Clip(kind="weight", **edges)), average)
        case "gpg":  # verl writes -A log π where we write -A · ratio at ratio 1: another value, the same gradient
            logp, mask = case.leaf("logps"), case["mask"] > 0
            loss, _ = policy_loss(logp, case["old_logps"], case["advantages"], mask, Objective(ratio="none", **NOTHING))
            (token_weights(mask, average) * loss).sum().backward()
            case.check("grad_logps", logp.grad)


@pytest.mark.parametrize(
    "case",
    oracle.cases("ppo", "verl_dual_clip_token_mean", "verl_dual_clip_seq_mean_token_sum", "openrlhf_ppo_seq")
    + oracle.cases("ppo", "openrlhf_ppo", "openrlhf_ppo_dual"),
)
def test_ppo_equals_the_oracle_with_its_metrics(case):
    h = case.hyper
    average = {"token-mean": Average("token"), "seq-mean-token-sum": Average("sum")}.get(h.get("loss_agg_mode"))
    average = average or Average("token" if h["token_level_loss"] else "sequence")
    objective = Objective(clip=Clip(low=h["clip_low"], high=h["clip_high"], cap=h["dual_clip"]))
    metrics = compare(case, objective, average)
    if "clipfrac" in case.outputs:  # verl's clipfrac leaves the dual clip to clipfrac_lower
        total, count = metrics["clip_share"]
        case.check("clipfrac", total / count - case.outputs["clipfrac_lower"])


@pytest.mark.parametrize("case", oracle.cases("rloo", "trl_loss"))
def test_rloo_with_whole_answer_ratios_equals_trl(case):
    """TRL's ratio is of whole answers, one value per answer: a sum of log-ratios, averaged over sequences."""
    logp, mask = case.leaf("logps"), case["mask"] > 0
    h = case.hyper
    old = (case["old_seq_logps"] / mask.sum(1))[:, None].expand_as(logp)
    objective = Objective(ratio="sequence_sum", clip=Clip(low=h["epsilon_low"], high=h["epsilon_high"]))
    loss, _ = policy_loss(logp, old, case["advantages"][:, None].expand_as(logp), mask, objective)
    total = (token_weights(mask, Average("sequence")) * loss).sum()
    case.check("loss", total)
    total.backward()
    case.check("grad_logps", logp.grad)


@pytest.mark.parametrize(
    "case", oracle.cases("rollout_correction", "openrlhf_token_clip_ratio", "openrlhf_token_mask_ratio")
)
def test_rollout_correction_equals_openrlhf(case):
    h = case.hyper
    low, high = h["threshold"]
    mismatch = Mismatch(kind={"clip": "truncate", "mask": "mask"}[h["mode"]], low=low, high=high)
    objective = Objective(clip=Clip(low=h["clip_low"], high=h["clip_high"]), mismatch=mismatch)
    compare(case, objective, Average("token"), sampled_logp=case["rollout_logps"])


def test_a_loss_written_from_the_papers_with_loops():
    logp, near, advantage, mask = data()
    objective = Objective(
        clip=Clip(low=0.1, high=0.3, cap=2.0),
        kl=Kl(where="loss", estimator="k3", beta=0.2),
        mismatch=Mismatch(kind="truncate", high=1.1),
        entropy=0.05,
    )
    entropy = torch.rand_like(logp)
    loss, _ = call(objective, logp, near, advantage, mask, entropy=entropy, beta=0.4)
    for n, t in mask.nonzero().tolist():
        lp, a = float(logp[n, t]), float(advantage[n, t])
        old, ref, mu = (float(near[k][n, t]) for k in ("old", "ref", "sampled"))
        rho = math.exp(lp - old)
        gain = min(rho * a, min(max(rho, 0.9), 1.3) * a)
        gain = max(gain, 2.0 * a) if a < 0 else gain
        gain *= min(math.exp(old - mu), 1.1)
        kl = math.exp(ref - lp) - (ref - lp) - 1
        assert math.isclose(loss[n, t], -gain + 0.4 * kl - 0.05 * entropy[n, t], rel_tol=1e-10)


@pytest.mark.parametrize("name", PRESETS)
def test_on_policy_every_preset_is_reinforce(name):
    """At π = π_old without the leash the gradient of every method is its weights times A ∇log π."""
    objective = replace(PRESETS[name], kl=Kl())
    logp, _, advantage, mask = data()
    advantage = advantage[:, :1].expand_as(logp)
    leaf = logp.clone().requires_grad_()
    loss, metrics = policy_loss(leaf, logp, advantage, mask, objective)
    weights = token_weights(mask, objective.average)
    (weights * loss).sum().backward()
    torch.testing.assert_close(leaf.grad, -advantage * weights, atol=1e-12, rtol=1e-12)
    for metric in ("clip_share", "kl_old"):
        assert metrics[metric][0] == 0
    assert metrics["ratio_mean"][0] == metrics["ratio_mean"][1]


EXTRA = {
    "mismatch": Objective(mismatch=Mismatch(kind="truncate", level="sequence")),
    "masked": Objective(mismatch=Mismatch(kind="mask", level="geometric", high=1.01)),
    "entropy": Objective(entropy=0.1),
    "corrected": Objective(kl=Kl(where="loss", beta=0.1, corrected=True)),
}


def everything(objective, logp, near, advantage, mask, entropy):
    leaf, leaf2 = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
    loss, metrics = call(objective, leaf, near, advantage, mask, entropy=leaf2)
    loss.sum().backward()
    return loss.detach(), leaf.grad, torch.zeros_like(leaf) if leaf2.grad is None else leaf2.grad, metrics


@pytest.mark.parametrize("objective", [*PRESETS.values(), *EXTRA.values()], ids=[*PRESETS, *EXTRA])
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


@pytest.mark.parametrize("objective", [*PRESETS.values(), *EXTRA.values()], ids=[*PRESETS, *EXTRA])
def test_padding_order_and_cuts_change_nothing(objective):
    logp, near, advantage, mask = data()
    entropy = torch.rand_like(logp)
    loss, grad, _, _ = everything(objective, logp, near, advantage, mask, entropy)
    parts = [torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([5, 4, 2])]
    pad = (0, 2)
    for rows in parts:
        near_rows = {k: torch.nn.functional.pad(v[rows], pad) for k, v in near.items()}
        rest = [torch.nn.functional.pad(x[rows], pad) for x in (logp, advantage, mask, entropy)]
        part = everything(objective, rest[0], near_rows, *rest[1:])
        torch.testing.assert_close(part[0][:, :7], loss[rows])
        torch.testing.assert_close(part[1][:, :7], grad[rows])


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].clip.kind in ("min", "soft")])
def test_gradcheck(name):
    logp, near, advantage, mask = data(n=3, t=4)
    objective = PRESETS[name]
    assert torch.autograd.gradcheck(lambda x: call(objective, x, near, advantage, mask)[0], (logp.requires_grad_(),))


def test_only_logp_and_entropy_get_a_gradient():
    logp, near, advantage, mask = data()
    leaves = {k: v.clone().requires_grad_() for k, v in near.items()}
    advantage = advantage.clone().requires_grad_()
    objective = replace(EXTRA["corrected"], mismatch=Mismatch(kind="truncate"))
    call(objective, logp.requires_grad_(), leaves, advantage, mask)[0].sum().backward()
    assert logp.grad is not None and advantage.grad is None and all(x.grad is None for x in leaves.values())


def test_metrics_with_a_pencil():
    logp = torch.tensor([[0.0, -1.0, -1.0, -1.0]])
    near = {"old": logp - torch.tensor([[0.0, 0.0, 0.5, -0.4]]), "ref": logp + 0.1, "sampled": logp}
    advantage, mask = torch.tensor([[9.0, 1.0, 1.0, -1.0]]), torch.tensor([[False, True, True, True]])
    _, metrics = call(Objective(), logp, near, advantage, mask, entropy=torch.full((1, 4), 0.7))
    mean = {k: float(s) / float(n) for k, (s, n) in metrics.items()}
    expected = {
        "ratio_mean": (1 + math.exp(0.5) + math.exp(-0.4)) / 3,
        "ratio_max": math.exp(0.5),
        "kl_old": (math.exp(0.5) - 1.5 + math.exp(-0.4) - 0.6) / 3,  # ρ - 1 - log ρ: samples are of π_old
        "clip_share": 2 / 3,
        "clip_low_share": 1 / 3,
        "clip_high_share": 1 / 3,
        "advantage_abs": 1.0,
        "advantage_mean": 1 / 3,
        "kl_ref_k1": -0.1,
        "kl_ref_k2": 0.005,
        "kl_ref_k3": math.exp(0.1) - 1.1,
        "sampler_gap_mean": 0.3,
        "sampler_gap_max": 0.5,
        "entropy": 0.7,
    }
    assert mean.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(mean[name], value, rel_tol=1e-9), name


def test_every_metric_is_in_the_glossary():
    from posttrain.train.metrics import lookup

    logp, near, advantage, mask = data()
    objective = Objective(mismatch=Mismatch(kind="mask"))
    _, metrics = call(objective, logp, near, advantage, mask, entropy=torch.rand_like(logp))
    _, critic = value_loss(logp, logp, logp, mask, clip=0.2)
    for name in metrics | critic:
        lookup(name)


@pytest.mark.parametrize(
    "case", oracle.cases("ppo", "value_loss_verl", "value_loss_openrlhf"), ids=lambda c: getattr(c, "id", "absent")
)
def test_value_loss_equals_the_oracle(case):
    h, values, mask = case.hyper, case.leaf("values"), case["mask"] > 0
    clip = h.get("cliprange_value", h.get("clip_eps"))
    loss, metrics = value_loss(values, case["old_values"], case["returns"], mask, clip=clip)
    total = (token_weights(mask, Average("token" if h.get("token_level_loss", True) else "sequence")) * loss).sum()
    case.check("loss", total)
    total.backward()
    case.check("grad_values", values.grad)
    if "clipfrac" in case.outputs:
        case.check("clipfrac", metrics["value_clip_share"][0] / metrics["value_clip_share"][1])


def test_value_clipping_freezes_a_critic_that_is_almost_right():
    v = torch.tensor([[1.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = value_loss(v, torch.tensor([[0.2]]), torch.tensor([[0.9]]), mask, clip=0.2)
    loss.sum().backward()
    assert math.isclose(loss.item(), 0.125) and v.grad == 0
    plain, _ = value_loss(v, torch.tensor([[0.2]]), torch.tensor([[0.9]]), mask)
    assert math.isclose(plain.item(), 0.005)
    with pytest.raises(ConfigError, match="units of reward"):
        value_loss(v, v, v, mask, clip=0.0)


def test_next_beta_moves_only_with_a_target():
    assert next_beta(Kl(where="reward", estimator="k1", beta=0.1), 0.1, 50.0, 512) == 0.1
    assert math.isclose(next_beta(Kl(where="loss", beta=0.15, target=6.0), 0.15, 20.0, 512), 0.151536)


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Kl(beta=0.1), 'Set kl.where to "reward" or "loss"'),
        (lambda: Kl(where="loss"), "GRPO 0.04"),
        (lambda: Kl(where="loss", beta=-1.0), "GRPO 0.04"),
        (lambda: Kl(where="loss", estimator="k1", beta=0.1), "gradient 0 in expectation"),
        (lambda: Kl(where="reward", estimator="k3+", beta=0.1), "no gradient to correct"),
        (lambda: Kl(where="reward", estimator="k1", beta=0.1, corrected=True), "no gradient to correct"),
        (lambda: Kl(where="loss", beta=0.1, target=0.0), "must be positive"),
        (lambda: Kl(where="loss", beta=0.1, horizon=5), "without kl.target"),
        (lambda: Kl(where="loss", beta=0.1, target=6.0, horizon=0), "positive number"),
        (lambda: Kl(where="inside"), "is not one of none"),
        (lambda: Kl(estimator="k5"), "is not one of k1"),
        (lambda: Objective(ratio="none"), "nothing to clip"),
        (lambda: Objective(ratio="seq"), "is not one of none, token"),
        (lambda: Objective(advantage="grpo"), "is not one of return"),
        (lambda: Objective(keep="some"), "is not one of all"),
        (lambda: Objective(average=Average("pair")), "preference"),
        (lambda: Objective(entropy=-0.1), "collapse"),
        (lambda: Objective(ratio="sequence", kl=Kl(where="loss", beta=0.1, corrected=True)), 'Set ratio to "token"'),
    ],
)
def test_objectives_without_meaning_are_refused(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


def test_missing_or_unused_inputs_are_refused():
    logp, near, advantage, mask = data()
    args = (logp, near["old"], advantage, mask)
    for objective, advice in (
        (PRESETS["grpo"], "needs ref_logp"),
        (EXTRA["mismatch"], "needs sampled_logp"),
        (EXTRA["entropy"], "needs entropy"),
    ):
        with pytest.raises(ConfigError, match=advice):
            policy_loss(*args, objective)
    with pytest.raises(ConfigError, match="no KL term"):
        policy_loss(*args, PRESETS["dapo"], beta=0.1)
    with pytest.raises(ShapeError):
        policy_loss(logp, near["old"], advantage[:, 0], mask, PRESETS["dapo"])
