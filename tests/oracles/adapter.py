"""Which function of ours answers a golden case: one dictionary, and as little as possible on the way there.

An adapter takes a `golden.Case` and returns every output of the case by name. It renames, casts, slices, pads the
first column, passes constants, applies weights and calls backward, and nothing else: all mathematics is in the package,
where users find it (`test_adapter_is_thin.py` walks this file). What a peer does differently is an argument with a
meaning, or a named function in `posttrain.objectives.peers`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from golden import Case
from torch import Tensor
from torch.nn.functional import pad

from posttrain.batch import cut_at_stop
from posttrain.chat.steps import label_steps
from posttrain.models.attention import row_lengths
from posttrain.models.decoder import Decoder
from posttrain.models.hf_format import copy_tensors, hf_name, parse_config
from posttrain.objectives import peers
from posttrain.objectives.advantages import (
    batch_center,
    batch_zscore,
    center,
    center_then_scale,
    decoupled,
    estimate,
    leave_one_out,
    length_weighted,
    moments,
    pass_at_k,
    weighted_sum,
    zscore,
)
from posttrain.objectives.average import Average, row_weights, token_weights
from posttrain.objectives.distill import generalized_jsd, jsd_from_hidden
from posttrain.objectives.gates import Gate, gate_keep
from posttrain.objectives.kl import adaptive_beta, forward_kl, jensen_shannon, k1, reverse_kl
from posttrain.objectives.mismatch import Mismatch, mismatch_weight
from posttrain.objectives.normalize import moments_std, update_moments
from posttrain.objectives.objective import Objective
from posttrain.objectives.peers.preference import trl_nash_md
from posttrain.objectives.policy import chosen_tokens, policy_loss
from posttrain.objectives.preference import (
    alphapo,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    apo_zero_unpaired,
    bco,
    bco_pair,
    cdpo,
    cpo,
    cpo_ipo,
    desensitised,
    discopop,
    divergence_link,
    dpo,
    dpo_norm,
    dpop,
    exo,
    hinge,
    in_order,
    ipo,
    ipo_norm,
    kto,
    kto_reference_point,
    nca,
    orpo,
    robust,
    simpo,
    slic,
    sppo_hard,
    wpo_weights,
    xpo,
)
from posttrain.objectives.process_rewards import process, two_class_score
from posttrain.objectives.regularizers import Kl, Proximal
from posttrain.objectives.returns import gae, rewards_to_go, token_rewards
from posttrain.objectives.reward import bradley_terry
from posttrain.objectives.selection import (
    best_of_n_bound,
    best_of_n_kl,
    best_of_n_policy,
    majority_at_k,
    unbiased_pass_at_k,
)
from posttrain.objectives.supervised import cross_entropy, dft
from posttrain.objectives.surrogate import Clip, clipped_tokens, gamma_weight, importance
from posttrain.objectives.token_masks import Chosen, Focus
from posttrain.objectives.tokens import answers, entropy, logprobs_from_hidden, masked, token_logprobs
from posttrain.objectives.value import value_loss
from posttrain.packing import best_fit, best_fit_split, wrapped
from posttrain.rewards.shaping import repetition, replace_truncated, soft_overlong, stop_properly
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.metrics import mean as average_of

Outputs = dict[str, Tensor]


def gradients(loss: Tensor, **leaves: Tensor) -> Outputs:
    """grad_NAME for each leaf; zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"grad_{name}": g for name, g in zip(leaves, found, strict=True)}


# --- logprobs ---


def _shifted(case: Case) -> Outputs:
    logits, mask, temperature = case.leaf("logits"), case["mask"].bool(), case.hyper["temperature"]
    rows = logits.new_full((len(logits),), temperature)
    logp = masked(token_logprobs(logits, case["ids"], rows), mask)[:, 1:]
    found = {"logps": logp, "entropy": entropy(logits[:, :-1], temperature)}
    return found | gradients((logp * case["upstream"]).sum(), logits=logits)


def _unshifted(case: Case) -> Outputs:
    """verl scores ids[t] by logits[t]; one more token in front, and one more position behind, is our order."""
    logits, ids = pad(case["logits"], (0, 0, 0, 1)), pad(case["ids"], (1, 0))
    logp = token_logprobs(logits, ids)[:, 1:]
    total = peers.verl_masked_mean(logp, case["mask"].bool())
    return {"logps": logp, "entropy": entropy(case["logits"]), "masked_mean_logps": total}


def _fused_head(case: Case) -> Outputs:
    hidden, weight = case.leaf("hidden"), case.leaf("weight")
    needs = ("entropy", "sum_sq", "mean_logit", "top1")
    stats = logprobs_from_hidden(
        hidden, weight, case["labels"], temperature=case.hyper["temperature"], chunk=7, needs=needs
    )
    found = {"logps": stats.logp, "entropy": stats.entropy, "log_sum_sq_probs": stats.log_sum_sq}
    found |= {"mean_logits": stats.mean_logit, "is_top1": stats.top1}
    loss = (stats.logp * case["upstream"]).sum() + 0.3 * stats.entropy.sum()
    return found | gradients(loss, hidden=hidden, weight=weight)


# --- kl ---


def _verl_kl(case: Case) -> Outputs:
    logp = case.leaf("logps")
    kl = peers.verl_kl(logp - case["ref_logps"], case.hyper["estimator"])
    return {"kl": kl} | gradients((kl * case["upstream"]).sum(), logps=logp)


def _openrlhf_kl(case: Case) -> Outputs:
    logp, estimator = case.leaf("logps"), case.hyper["estimator"]
    log_ratio, drift = logp - case["ref_logps"], logp - case["old_logps"]
    if case.hyper["unbiased_gradient"]:
        kl = peers.openrlhf_unbiased_kl(log_ratio, drift, estimator)
    else:
        kl = peers.openrlhf_kl(log_ratio, estimator)
    return {"kl": kl} | gradients((kl * case["upstream"]).sum(), logps=logp)


def _exact_kl(case: Case) -> Outputs:
    logits, ref = case["logits"], case["ref_logits"]
    found = {"reverse_kl": reverse_kl(logits, ref), "forward_kl": forward_kl(logits, ref)}
    return found | {"jensen_shannon": jensen_shannon(logits, ref)}


# --- sft ---


def _sft_step(case: Case) -> Outputs:
    """Micro-batches of one step: the weights are made once, from all of them."""
    logits, mask = case.leaf("logits"), case["labels"] != -100
    mask[..., 0] = False  # nothing predicts the first token
    ids = case.inputs.get("ids", case["labels"].masked_fill(~mask, 0))
    formula = dft if case.hyper.get("loss_type") == "dft" else cross_entropy
    loss = torch.stack([formula(token_logprobs(z, i), m)[0] for z, i, m in zip(logits, ids, mask, strict=True)])
    token, dtype = Average("token"), logits.dtype
    whole = token_weights(mask.flatten(0, 1), token, total=case.hyper["num_items_in_batch"], dtype=dtype).view_as(mask)
    own = torch.stack([token_weights(m, token, dtype=dtype) for m in mask])
    step = (whole * loss).sum()
    found = {"micro_losses": (whole * loss).sum((1, 2)), "own_mean": (own * loss).sum((1, 2)), "step_loss": step}
    return found | gradients(step, logits=logits)


def _openrlhf_sft(case: Case) -> Outputs:
    logp, mask = case["logps"], case["mask"].bool()
    average = Average("token" if case.hyper["token_level_loss"] else "sequence")
    loss, _ = cross_entropy(logp, mask)
    return {"loss": (token_weights(mask, average, dtype=logp.dtype) * loss).sum()}


# --- reward_model ---


def bradley_terry_trl(c: Case) -> Outputs:
    chosen, rejected = c.leaf("chosen"), c.leaf("rejected")
    centering = c.hyper["center_rewards_coefficient"] or 0.0
    per_pair, _ = bradley_terry(chosen, rejected, margin=c.inputs.get("margin"), centering=centering)
    loss = per_pair.sum() / len(per_pair)
    return {"loss": loss} | gradients(loss, chosen=chosen, rejected=rejected)


def bradley_terry_openrlhf(c: Case) -> Outputs:
    plain, _ = bradley_terry(c["chosen"], c["rejected"])
    with_margin, _ = bradley_terry(c["chosen"], c["rejected"], margin=c["margin"])
    loss = plain.sum() / len(plain)
    return {"pairwise": loss, "logexp": loss, "pairwise_margin": with_margin.sum() / len(plain)}


# --- gae ---


def verl_gae(c: Case) -> Outputs:
    mask = c["mask"].bool()
    raw, returns = gae(c["rewards"], c["values"], mask, gamma=c.hyper["gamma"], lam=c.hyper["lam"])
    whitened = peers.verl_whiten(raw, mask) * mask
    return {"advantages_raw": raw, "returns": returns, "advantages_whitened": whitened}


def openrlhf_gae(c: Case) -> Outputs:
    advantages, returns = peers.openrlhf_gae(
        c["rewards"], c["values"], c["mask"].bool(), gamma=c.hyper["gamma"], lam=c.hyper["lam"]
    )
    return {"advantages": advantages, "returns": returns}


def discounted_returns(c: Case) -> Outputs:
    return {"returns": peers.openrlhf_rewards_to_go(c["rewards"], c["mask"].bool(), gamma=c.hyper["gamma"])}


# --- whiten ---


def verl_whiten(c: Case) -> Outputs:
    mask = c["mask"].bool()
    mean, var = peers.verl_moments(c["x"], mask)
    return {"whitened": peers.verl_whiten(c["x"], mask, shift=c.hyper["shift_mean"]), "mean": mean, "var": var}


def trl_whiten(c: Case) -> Outputs:
    mask = c["mask"].bool()
    mean, var = moments(c["x"], mask)
    return {"whitened": peers.trl_whiten(c["x"], mask, shift=c.hyper["shift_mean"]), "mean": mean, "var": var}


def openrlhf_rows(c: Case) -> Outputs:
    return {"normalized": peers.openrlhf_whiten_rows(c["x"], c["mask"].bool())}


# --- ppo ---


def adaptive_kl(c: Case) -> Outputs:
    h, coefficients = c.hyper, [c.hyper["init"]]
    for kl in c["kl"].tolist():
        beta = adaptive_beta(coefficients[-1], kl, target=h["target"], samples=h["n_steps"], horizon=h["horizon"])
        coefficients.append(beta)
    return {"coef": c["kl"].new_tensor(coefficients[1:])}


def kl_in_reward_verl(c: Case) -> Outputs:
    every = torch.ones_like(c["scores"], dtype=torch.bool)
    kl = k1(c["old_logps"] - c["ref_logps"])
    return {"rewards": token_rewards(c["scores"], every, kl=kl, beta=c.hyper["kl_coef"])}


def kl_in_reward_openrlhf(c: Case) -> Outputs:
    rewards = peers.openrlhf_token_rewards(
        c["scores"], c["kl"], c["mask"].bool(), beta=c.hyper["kl_coef"], clip=c.hyper["reward_clip_range"]
    )
    return {"rewards": rewards}


def on_tokens(c: Case) -> Tensor:
    """Advantages [N] on every token, or as they are."""
    advantage = c["advantages"]
    return advantage if advantage.dim() == 2 else advantage[:, None].expand_as(c["mask"])


def policy_outputs(c: Case, objective: Objective, weights: Tensor, **inputs: object) -> Outputs:
    """The averaged loss of an objective on a case, with its gradient."""
    logps, mask = c.leaf("logps"), c["mask"].bool()
    old = c.inputs.get("old_logps", c["logps"])
    draws = torch.zeros_like(logps)
    inputs.setdefault("chosen", chosen_tokens(objective, logps, on_tokens(c), mask, draws=draws))
    loss, _ = policy_loss(logps, old, on_tokens(c), mask, objective, **inputs)
    total = (weights * loss).sum()
    return {"loss": total} | gradients(total, logps=logps)


def cut_shares(c: Case, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """The shares of tokens that the band and the cap cut, and the mean log π_old/π."""
    mask = c["mask"].bool()
    log_ratio = importance(c["logps"], c["old_logps"], mask, objective.ratio)
    cut = clipped_tokens(log_ratio, on_tokens(c), objective.clip)
    weights = peers.verl_weights(mask, "token-mean")
    band, cap, gap = ((weights * x).sum() for x in (cut.low | cut.high, cut.cap, k1(c["old_logps"] - c["logps"])))
    return band, cap, gap


def verl_dual_clip(c: Case) -> Outputs:
    h = c.hyper
    objective = Objective(clip=Clip(low=h["clip_low"], high=h["clip_high"], cap=h["dual_clip"]))
    band, cap, gap = cut_shares(c, objective)
    found = policy_outputs(c, objective, peers.verl_weights(c["mask"].bool(), h["loss_agg_mode"]))
    return found | {"clipfrac": band, "clipfrac_lower": cap, "approx_kl": gap}


OPENRLHF_RATIO = {"ppo": "token", "gspo": "sequence"}


def openrlhf_ppo(c: Case) -> Outputs:
    h = c.hyper
    clip = Clip(low=h["clip_low"], high=h["clip_high"], cap=h["dual_clip"])
    objective = Objective(ratio=OPENRLHF_RATIO[h["type"]], clip=clip)
    by_token = h["token_level_loss"] and h["type"] == "ppo"  # OpenRLHF averages GSPO by answer
    mode = "token-mean" if by_token else "seq-mean-token-mean"
    band, _, gap = cut_shares(c, objective)
    found = policy_outputs(c, objective, peers.verl_weights(c["mask"].bool(), mode))
    return found | {"clip_ratio": band, "ppo_kl": gap}


def critic(c: Case) -> Outputs:
    h, values, mask = c.hyper, c.leaf("values"), c["mask"].bool()
    epsilon = h["cliprange_value"] if "cliprange_value" in h else h["clip_eps"]
    loss, metrics = value_loss(values, c["old_values"], c["returns"], mask, clip=epsilon)
    by_token = h.get("token_level_loss", True)
    total = (peers.verl_weights(mask, "token-mean" if by_token else "seq-mean-token-mean") * loss).sum()
    share = average_of(metrics)["value_clip_share"]
    return {"loss": total, "clipfrac": torch.as_tensor(share)} | gradients(total, values=values)


# --- aggregation ---

VERL_MODES = ("token_mean", "token_sum", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm")


def verl_aggregation(c: Case) -> Outputs:
    mode, counts, mask = c.hyper["loss_agg_mode"], c.hyper["global_counts"], c["mask"].bool()
    ways = {"local": {}, "with_global_counts": counts, "dp2": counts | {"dp_size": 2}}
    return {name: (peers.verl_weights(mask, mode, **way) * c["loss_mat"]).sum() for name, way in ways.items()}


# --- rollout_correction ---


def openrlhf_corrected(c: Case) -> Outputs:
    h, (low, high) = c.hyper, c.hyper["threshold"]
    if h["mode"] == "clip":
        mismatch = Mismatch(kind="truncate", low=low, high=high)
    else:
        unit = {"token": "token", "seq": "geometric"}[h["level"]]
        mismatch = Mismatch(kind="mask", statistic=h["gating"], unit=unit, low=low, high=high)
    objective = Objective(clip=Clip(low=h["clip_low"], high=h["clip_high"]), mismatch=mismatch)
    weights = peers.verl_weights(c["mask"].bool(), "token-mean")
    return policy_outputs(c, objective, weights, sampled_logp=c["rollout_logps"])


def trl_mismatch(c: Case) -> Outputs:
    level, kind = c.hyper["mode"].split("_")
    mismatch = Mismatch(kind=kind, level=level, low=c.hyper["clip_min"], high=c.hyper["clip_max"])
    weight, _ = mismatch_weight(c["old_logps"], c["sampling_logps"], c["mask"].bool(), mismatch)
    return {"ratio": weight[:, :1] if level == "sequence" else weight}


# --- grpo ---

TRL_SETTINGS = ("max_completion_length", "num_items_in_batch", "gradient_accumulation_steps", "steps_per_generation")


def trl_rule(h: dict) -> Clip:
    match h["loss_type"]:
        case "cispo":
            return peers.capped_weight(h["epsilon_high"])
        case "sapo":
            return Clip(kind="soft", tau=h.get("sapo_temperature_pos", 1.0),
                        tau_negative=h.get("sapo_temperature_neg", 1.05))  # fmt: skip
        case "vespo":
            return trl_gamma(h.get("vespo_k_pos", 2.0), h.get("vespo_lambda_pos", 3.0), h.get("vespo_k_neg", 3.0),
                             h.get("vespo_lambda_neg", 2.0))  # fmt: skip
    return Clip(low=h["epsilon_low"], high=h["epsilon_high"], cap=h.get("delta"))


def trl_gamma(k: float, lam: float, k_negative: float, lam_negative: float) -> Clip:
    return Clip(kind="gamma", k=k, lam=lam, k_negative=k_negative, lam_negative=lam_negative)


def trl_objective(h: dict) -> Objective:
    """TRL reads the level for every loss but VESPO, whose ratio is the answer's."""
    threshold, corrected = h.get("off_policy_mask_threshold"), h.get("use_bias_correction_kl", False)
    return Objective(
        ratio="sequence_sum" if h["loss_type"] == "vespo" else h["importance_sampling_level"],
        clip=trl_rule(h),
        gate=Gate() if threshold is None else Gate(kind="answer", low=threshold, against="sampler"),
        kl=Kl(where="loss", beta=h["beta"], corrected=corrected) if h.get("beta") else Kl(),
        mismatch=Mismatch(kind="truncate", high=None) if h.get("use_vllm") else Mismatch(),
    )


def trl_policy(c: Case) -> Outputs:
    h, inputs = c.hyper, {}
    mask = c["mask"].bool() & c.inputs.get("tool_mask", c["mask"]).bool()
    settings = {name: h[name] for name in TRL_SETTINGS if name in h}
    weights = peers.trl_policy_weights(mask, h["loss_type"], **settings)
    if "top_entropy_quantile" in h:
        picked = peers.trl_top_entropy(c["entropies"], mask, h["top_entropy_quantile"])
        inputs["chosen"] = Chosen(picked, mask)
    if "is_ratio" in c.inputs:
        inputs["sampled_logp"] = peers.sampler_of(c["old_logps"], c["is_ratio"])
    if "sampling_logps" in c.inputs:
        inputs["sampled_logp"] = c["sampling_logps"]
    found = trl_loss(c, mask, weights, inputs)
    if h.get("_entropy_bonus_enabled"):
        bonus = peers.trl_policy_weights(mask, "bnpo", **settings) * c["entropies"]  # by token, whatever the loss is
        found["loss"] = found["loss"] - h["entropy_coef"] * bonus.sum()
    return found


def trl_loss(c: Case, mask: Tensor, weights: Tensor, inputs: dict) -> Outputs:
    objective, logps = trl_objective(c.hyper), c.leaf("logps")
    if "chosen" in inputs:
        objective = replace(objective, focus=Focus(kind="entropy", share=c.hyper["top_entropy_quantile"]))
    old = c.inputs.get("old_logps", c["logps"])
    loss, _ = policy_loss(logps, old, on_tokens(c), mask, objective, ref_logp=c.inputs.get("ref_logps"), **inputs)
    total = (weights * loss).sum()
    return {"loss": total} | gradients(total, logps=logps)


def trl_gmpo(c: Case) -> Outputs:
    h = c.hyper
    clip = Clip(kind="geometric", low=h["epsilon_low"], high=h["epsilon_high"])
    objective = Objective(clip=clip, kl=Kl(where="loss", beta=h["beta"]) if h.get("beta") else Kl())
    weights = peers.trl_policy_weights(c["mask"].bool(), "grpo")
    return policy_outputs(c, objective, weights, ref_logp=c.inputs.get("ref_logps"))


def trl_off_policy_mask(c: Case) -> Outputs:
    gate = Gate(kind="answer", low=c.hyper["threshold"])
    return {"keep": gate_keep(c["logps"], c["sampling_logps"], on_tokens(c), c["mask"].bool(), gate)[:, :1]}


def trl_gamma_weights(c: Case) -> Outputs:
    h = c.hyper
    log_ratio = importance(c["log_ratio"], torch.zeros_like(c["log_ratio"]), c["mask"].bool(), "sequence_sum")
    clip = trl_gamma(h["k_pos"], h["lambda_pos"], h["k_neg"], h["lambda_neg"])
    return {"phi": gamma_weight(log_ratio, on_tokens(c), clip)[:, :1]}


TRL_POLICY = [f"{kind}_{what}" for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
              for what in ("token", "sequence", "kl", "accum4")]  # fmt: skip
TRL_POLICY += [f"{kind}_{what}" for kind in ("grpo", "dapo") for what in (
    "delta", "bias_corrected_kl", "top_entropy", "tool_mask", "on_policy", "off_policy_mask", "entropy_bonus", "tis",
)]  # fmt: skip


# --- rloo ---


def trl_rloo_loss(c: Case) -> Outputs:
    h, logps, mask = c.hyper, c.leaf("logps"), c["mask"].bool()
    objective = Objective(ratio="sequence_sum", clip=Clip(low=h["epsilon_low"], high=h["epsilon_high"]))
    old = peers.spread_over_tokens(c["old_seq_logps"], mask)
    loss, _ = policy_loss(logps, old, on_tokens(c), mask, objective)
    total = (peers.trl_policy_weights(mask, "grpo") * loss).sum()
    return {"loss": total} | gradients(total, logps=logps)


# --- advantages ---


def trl_total(c: Case) -> tuple[Tensor, Tensor]:
    """The reward of each answer, and the id of its group: G rows in order belong together."""
    size, rewards = c.hyper["num_generations"], c["rewards"]
    total = weighted_sum(rewards, trl_weights(c), clip=c.hyper.get("reward_clip_range"))
    return total, torch.arange(len(rewards) // size).repeat_interleave(size)


def trl_weights(c: Case) -> Tensor:
    return c["rewards"].new_tensor(c.hyper["reward_weights"])


def trl_grpo(c: Case) -> Outputs:
    scale = {"group": zscore, "batch": center_then_scale, "none": center}[c.hyper["scale_rewards"]]
    return {"advantages": scale(*trl_total(c))}


def trl_gdpo(c: Case) -> Outputs:
    return {"advantages": decoupled(c["rewards"], trl_total(c)[1], trl_weights(c))}


def trl_rloo(c: Case) -> Outputs:
    reward, group = trl_total(c)
    advantages = leave_one_out(reward, group)
    if c.hyper["normalize_advantages"]:
        advantages = batch_zscore(advantages, given=~reward.isnan())
    return {"advantages": advantages}


def verl_answers(per_answer: Callable[[Case, Tensor, Tensor], Tensor]) -> Callable[[Case], Outputs]:
    """An estimator of verl that gives one number per answer, put on all its tokens."""

    def adapter(c: Case) -> Outputs:
        advantages = per_answer(c, c["token_rewards"].sum(1), c["group"])[:, None] * c["mask"]
        return {"advantages": advantages, "returns": advantages}

    return adapter


def verl_whitened(per_answer: Callable[[Case, Tensor, Tensor], Tensor]) -> Callable[[Case], Outputs]:
    """The same, whitened over the tokens of the batch."""

    def adapter(c: Case) -> Outputs:
        spread = verl_answers(per_answer)(c)["advantages"]
        advantages = peers.verl_whiten(spread, c["mask"].bool()) * c["mask"]
        return {"advantages": advantages, "returns": advantages}

    return adapter


def verl_grpo(c: Case, reward: Tensor, group: Tensor) -> Tensor:
    if c.hyper.get("norm_by_std", True):
        return peers.verl_zscore(reward, group, eps=c.hyper["epsilon"])
    return verl_dr_grpo(c, reward, group)


def verl_dr_grpo(c: Case, reward: Tensor, group: Tensor) -> Tensor:
    return peers.keep_lone(center(reward, group), reward, group)


def verl_rloo(c: Case, reward: Tensor, group: Tensor) -> Tensor:
    return peers.keep_lone(leave_one_out(reward, group), reward, group)


def verl_passk(c: Case, reward: Tensor, group: Tensor) -> Tensor:
    if c.hyper.get("norm_by_std", True):
        return peers.verl_pass_at_k(reward, group, eps=c.hyper["epsilon"])
    return pass_at_k(reward, group)


def verl_opo(c: Case, reward: Tensor, group: Tensor) -> Tensor:
    return peers.keep_lone(length_weighted(reward, group, c["mask"].sum(1)), reward, group)


def verl_reinforce_pp(c: Case) -> Outputs:
    mask = c["mask"].bool()
    returns = rewards_to_go(c["token_rewards"], mask, gamma=c.hyper["gamma"])
    return {"advantages": peers.verl_whiten(returns, mask) * mask, "returns": returns}


def verl_remax(c: Case) -> Outputs:
    mask, rewards = c["mask"].bool(), c["token_rewards"]
    advantages = estimate("greedy", rewards, mask, c["group"], greedy=c["reward_baselines"])
    return {"advantages": advantages, "returns": rewards_to_go(rewards, mask)}


def verl_otb(c: Case) -> Outputs:
    mask, rewards = c["mask"].bool(), c["token_rewards"]
    advantages = peers.verl_optimal_token(rewards, mask, c["group"], c["old_logps"], c["sum_pi_squared"])
    return {"advantages": advantages, "returns": rewards_to_go(rewards, mask)}


OPENRLHF_SHAPED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gae": lambda reward, group: reward,
    "reinforce": lambda reward, group: reward,
    "rloo": leave_one_out,
    "reinforce_baseline": center,
    "group_norm": lambda reward, group: zscore(reward, group, eps=1e-9),
    "dr_grpo": center,
    "flash_reinforce": lambda reward, group: batch_center(reward),
}


def openrlhf(c: Case) -> Outputs:
    h, mask, kind = c.hyper, c["mask"].bool(), c.name.removeprefix("openrlhf_")
    group = torch.arange(len(mask) // h["num_generations"]).repeat_interleave(h["num_generations"])
    shaped = OPENRLHF_SHAPED[kind](c["rewards"], group)
    rewards = peers.openrlhf_token_rewards(shaped, c["kl"], mask, beta=h["kl_coef"], clip=h["reward_clip"])
    if kind == "gae":
        advantages, returns = peers.openrlhf_gae(rewards, c["values"], mask, gamma=h["gamma"], lam=h["lam"])
    else:
        advantages = returns = peers.openrlhf_rewards_to_go(rewards, mask, gamma=h["gamma"])
    if kind in ("gae", "reinforce", "reinforce_baseline"):
        advantages = peers.openrlhf_whiten(advantages, mask, divide=not h["no_std_norm"])
    return {"advantages": advantages, "returns": returns}


# --- data ---


def _packed(case: Case) -> Outputs:
    pack = {"bfd": best_fit, "bfd_split": best_fit_split, "wrapped": wrapped}[case.hyper["strategy"]]
    lengths = case["lengths"].tolist()
    rows = pack(lengths, case.hyper["seq_length"])
    tokens = torch.arange(sum(lengths)).split(lengths)
    ids = [tokens[p.sequence][p.start : p.stop] for row in rows for p in row]
    found = {"ids": torch.cat(ids), "row_lengths": [sum(p.length for p in row) for row in rows]}
    found |= {"seq_lengths": [p.length for row in rows for p in row], "seqs_per_row": [len(row) for row in rows]}
    return {name: torch.as_tensor(x) for name, x in found.items()}


def _truncated(case: Case) -> Outputs:
    tokens, place = cut_at_stop(case["ids"], [case.hyper["stop_token_id"]], case.hyper["pad_token_id"])
    return {"truncated": tokens, "first_stop": place}


# --- verl_losses ---


def verl_objective(name: str, h: dict) -> Objective:
    low, high = h["clip_low"], h["clip_high"]
    match name:
        case "vanilla":
            return Objective(clip=Clip(low=low, high=high, cap=h["dual_clip"]))
        case "gspo":
            return Objective(ratio="sequence_token", clip=Clip(low=low, high=high))
        case "sapo":
            return Objective(clip=Clip(kind="soft", tau=h["tau_pos"], tau_negative=h["tau_neg"]))
        case "gpg":
            return Objective(ratio="none", clip=Clip(kind="log"))
        case "geo_mean":
            return Objective(clip=Clip(kind="geometric", low=low, high=high))
        case "cispo":
            return Objective(clip=Clip(kind="weight", low=low, high=high))
    return verl_newer_objective(name, h, low, high)


def verl_newer_objective(name: str, h: dict, low: float, high: float) -> Objective:
    match name:
        case "kl_cov":
            tie = Proximal(estimator="abs", weight=h["ppo_kl_coef"], share=h["kl_cov_ratio"])
            return Objective(clip=Clip(kind="none"), proximal=tie)
        case "dppo_tv" | "dppo_kl":
            gate = Gate(kind={"dppo_tv": "tv", "dppo_kl": "binary_kl"}[name], low=low, high=high)
            return Objective(clip=peers.capped_weight(h["truncated_ratio_cap"]), gate=gate)
        case "dro":
            tie = Proximal(estimator="k2", weight=h["dro_beta"])
            return Objective(ratio="none", clip=Clip(kind="log"), proximal=tie)


VERL_OWN_WEIGHTS = {
    "sapo": lambda mask: peers.verl_weights(mask, "seq-mean-token-mean"),
    "geo_mean": lambda mask: peers.trl_policy_weights(mask, "grpo"),  # a plain mean over rows, empty ones too
}


def verl_policy(c: Case) -> Outputs:
    name, mask = c.name.removesuffix("_tis"), c["mask"].bool()
    objective, inputs = verl_objective(name, c.hyper), {}
    if "is_weights" in c.inputs:
        level = "geometric" if name == "geo_mean" else "token"
        objective = replace(objective, mismatch=Mismatch(kind="truncate", level=level, high=None))
        inputs["sampled_logp"] = peers.sampler_of(c["old_logps"], c["is_weights"])
    own = VERL_OWN_WEIGHTS.get(name)
    weights = peers.verl_weights(mask, c.hyper["loss_agg_mode"]) if own is None else own(mask)
    return policy_outputs(c, objective, weights, **inputs)


VERL_POLICY = ("vanilla", "gspo", "sapo", "gpg", "kl_cov", "geo_mean", "cispo", "dppo_tv", "dppo_kl", "dro")


# --- dpo ---


TRL_PAIRS = {
    "sigmoid": dpo, "hinge": hinge, "ipo": ipo_norm, "exo_pair": exo, "nca_pair": nca, "robust": robust,
    "bco_pair": bco_pair, "sppo_hard": sppo_hard, "aot": aot, "aot_unpaired": aot_unpaired, "apo_zero": apo_zero,
    "apo_down": apo_down, "discopop": discopop, "sigmoid_norm": dpo_norm,
}  # fmt: skip
TRL_LINKED = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm")
TRL_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
TRL_DIVERGENCES = {"js_divergence": "js", "alpha_divergence": "alpha"}


TRL_DPO_CASES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm", "fdiv_forward_kl", "fdiv_js_divergence", "fdiv_alpha",
    "ld_dpo", "wpo", "mpo", "rpo",
)  # fmt: skip


def trl_dpo(case: Case) -> Outputs:
    """One loss of TRL's DPO trainer, or a weighted sum of several."""
    logps, ref, mask = case.leaf("logps"), case["ref_logps"], case["mask"].bool()
    kinds = case.hyper["loss_types"]
    weights = case.hyper.get("weights") or [1.0] * len(kinds)
    terms = [trl_sft(logps, mask) if kind == "sft" else trl_pair(case, kind, logps) for kind in kinds]
    loss = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    sums = {"seq_logps": answers(logps, mask)[0], "ref_seq_logps": answers(ref, mask)[0]}
    return {"loss": loss, **sums, **gradients(loss, logps=logps)}


def trl_sft(logps: Tensor, mask: Tensor) -> Tensor:
    """TRL averages the cross-entropy of the chosen half over all its tokens."""
    (logps, _), (mask, _) = logps.chunk(2), mask.chunk(2)
    return (token_weights(mask, Average("token"), dtype=logps.dtype) * cross_entropy(logps, mask)[0]).sum()


def trl_pair(case: Case, kind: str, logps: Tensor) -> Tensor:
    """The mean over pairs of one of TRL's losses."""
    sums, ref_sums, lengths = trl_sums(case, logps)
    if kind in TRL_LINKED:
        divergence = case.hyper["f_divergence"]
        link = TRL_DIVERGENCES.get(divergence, divergence)
        alpha = case.hyper["alpha"] if link == "alpha" else None
        sums, ref_sums = divergence_link(sums - ref_sums, link, alpha=alpha), torch.zeros_like(sums)
    settings = {"beta": case.hyper["beta"]}
    if kind in TRL_SMOOTHED:
        settings["label_smoothing"] = case.hyper["label_smoothing"]
    if kind in ("ipo", "sigmoid_norm"):
        settings |= dict(zip(("chosen_length", "rejected_length"), lengths.chunk(2), strict=True))
    loss, _ = TRL_PAIRS[kind](*sums.chunk(2), *ref_sums.chunk(2), **settings)
    return row_average(loss * trl_weight(case, logps))


def trl_sums(case: Case, logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the answers, by the policy and the reference, and lengths."""
    mask = case["mask"].bool()
    total, length = answers(logps, mask)
    if case.hyper.get("ld") is None:
        return total, answers(case["ref_logps"], mask)[0], length
    other = length.roll(len(length) // 2)
    both = [desensitised(x, mask, other, alpha=case.hyper["ld"]) for x in (logps, case["ref_logps"])]
    return *both, length


def trl_weight(case: Case, logps: Tensor) -> Tensor | float:
    """WPO's weight of each pair."""
    if not case.hyper.get("wpo"):
        return 1.0
    chosen, rejected = wpo_weights(logps, case["log_sum_sq_probs"], case["mask"].bool()).chunk(2)
    return chosen * rejected


def row_average(loss: Tensor) -> Tensor:
    """The mean over pairs or answers, as a weighted sum."""
    alive = torch.ones(len(loss), 1, dtype=torch.bool)
    return (row_weights(alive, Average("sequence"), dtype=loss.dtype) * loss).sum()


def pair_loss(loss: Callable, **names: str) -> Callable[[Case], Outputs]:
    """The adapter of a loss on sums; names: our argument -> hyper-parameter of the case."""

    def adapt(case: Case) -> Outputs:
        leaves = {name: case.leaf(name) for name in ("chosen", "rejected")}
        settings = {ours: case.hyper[theirs] for ours, theirs in names.items()}
        value, metrics = loss(
            *leaves.values(), case["ref_chosen"], case["ref_rejected"], beta=case.hyper["beta"], **settings
        )
        rewards = {"chosen_rewards": metrics["reward_chosen"], "rejected_rewards": metrics["reward_rejected"]}
        return {"loss": row_average(value), **rewards, **gradients(row_average(value), **leaves)}

    return adapt


def trl_bco(case: Case) -> Outputs:
    """TRL adds the rewards of the step to the running moments before it uses them."""
    chosen, rejected, beta = case["chosen"], case["rejected"], case.hyper["beta"]
    logp, ref = torch.cat([chosen, rejected]), torch.cat([case["ref_chosen"], case["ref_rejected"]])
    good = torch.arange(len(logp)) < len(chosen)
    start = {"count": 0.0, "mean": 0.0, "sum_sq": 0.0}
    before = update_moments(start, case["earlier_rewards"], torch.ones_like(case["earlier_rewards"]).bool())
    rewards = bco(logp, ref, good, shift=0.0, beta=beta)[1]["reward"]
    after = update_moments(before, rewards, torch.ones_like(good))
    losses, _ = bco(logp, ref, good, shift=after["mean"], beta=beta)
    return {
        "losses": losses, "chosen_rewards": rewards[good], "rejected_rewards": rewards[~good], "delta": after["mean"],
        "mean_before": before["mean"], "std_after": moments_std(after, ddof=1), "count_after": after["count"],
    }  # fmt: skip


# --- reference_free ---


def free_loss(loss: Callable, *, lengths: bool, **names: str) -> Callable[[Case], Outputs]:
    """The adapter of a loss without a reference; TRL gives it means, so answers are taken to have one token."""

    def adapt(case: Case) -> Outputs:
        chosen, rejected = case.leaf("chosen"), case.leaf("rejected")
        settings = {ours: case.hyper[theirs] for ours, theirs in names.items()}
        if lengths:
            settings |= {"chosen_length": torch.ones_like(chosen), "rejected_length": torch.ones_like(rejected)}
        losses, _ = loss(chosen, rejected, beta=case.hyper["beta"], **settings)
        total = row_average(losses)
        return {"losses": losses, "loss": total, **gradients(total, chosen=chosen, rejected=rejected)}

    return adapt


def trl_orpo(case: Case) -> Outputs:
    """TRL's cross-entropy runs over prompt and answer, its odds over the answer."""
    logits, mask = case.leaf("logits"), case["labels"] != -100
    logp, read = token_logprobs(logits, case["ids"]), case["attention_mask"].bool()
    later = torch.arange(mask.shape[1]) > 0
    total, length = answers(logp, mask & later)
    lengths = dict(zip(("chosen_length", "rejected_length"), length.chunk(2), strict=True))
    terms, metrics = orpo(*total.chunk(2), **lengths, beta=1.0)
    nll = trl_sft(logp, read & later)
    loss = nll + case.hyper["beta"] * row_average(terms)
    log_odds = row_average(metrics["margin"])
    return {
        "loss": loss, "nll": nll, "log_odds_ratio": -row_average(terms), "log_odds": log_odds,
        **gradients(loss, logits=logits),
    }  # fmt: skip


# --- kto ---


def trl_kto(case: Case) -> Outputs:
    logps, good = case.leaf("logps"), case["desirable"]
    mismatched = [answers(case[name], case["kl_mask"].bool())[0] for name in ("kl_logps", "kl_ref_logps")]
    point = kto_reference_point(*mismatched)
    sums = [answers(x, case["mask"].bool())[0] for x in (logps, case["ref_logps"])]
    weights = {name: case.hyper[name] for name in ("desirable_weight", "undesirable_weight")}
    loss = row_average(kto(*sums, good, reference_point=point, beta=case.hyper["beta"], **weights)[0])
    return {"loss": loss, "kl": point, **gradients(loss, logps=logps)}


def trl_apo_zero_unpaired(case: Case) -> Outputs:
    """TRL reports a KL of 0 where none is estimated."""
    logps, good = case.leaf("logps"), case["desirable"]
    sums = [answers(x, case["mask"].bool())[0] for x in (logps, case["ref_logps"])]
    weights = {name: case.hyper[name] for name in ("desirable_weight", "undesirable_weight")}
    loss = row_average(apo_zero_unpaired(*sums, good, beta=case.hyper["beta"], **weights)[0])
    return {"loss": loss, "kl": torch.zeros(()), **gradients(loss, logps=logps)}


# --- distill ---


def _jsd(case: Case) -> Outputs:
    student, mask = case.leaf("student_logits"), case["mask"].bool()
    loss = generalized_jsd(
        student, case["teacher_logits"], mask, beta=case.hyper["beta"], temperature=case.hyper["temperature"]
    )
    loss = (token_weights(mask, Average("token"), dtype=loss.dtype) * loss).sum()
    return {"loss": loss} | gradients(loss, student_logits=student)


def _jsd_from_hidden(case: Case) -> Outputs:
    hidden, head = case.leaf("student_hidden"), case.leaf("student_head")
    mask, beta, temperature = case["mask"].bool(), case.hyper["beta"], case.hyper.get("temperature", 1.0)
    teacher = case["teacher_hidden"][mask], case["teacher_head"]
    loss = jsd_from_hidden(hidden[mask], head, *teacher, beta=beta, temperature=temperature, chunk=5)
    loss = (token_weights(mask, Average("token"), dtype=loss.dtype)[mask] * loss).sum()
    return {"loss": loss} | gradients(loss, student_hidden=hidden, student_head=head)


# --- rewards ---


def soft_overlong_trl(c: Case) -> Outputs:
    h = c.hyper
    limits = {"max_len": h["max_completion_len"], "buffer": h["soft_punish_cache"]}
    return {"reward": torch.tensor([soft_overlong(n, **limits) for n in c["lengths"].tolist()], dtype=torch.float64)}


def repetition_trl(c: Case) -> Outputs:
    h = c.hyper
    answers = [[i for i in row if i != h["padding"]] for row in c["ids"].tolist()]
    rewards = [repetition(ids, n=h["ngram_size"], penalty=h["max_penalty"]) for ids in answers]
    return {"reward": torch.tensor(rewards, dtype=torch.float64)}


def length_penalties_openrlhf(c: Case) -> Outputs:
    h = c.hyper
    limits = {"max_len": h["max_new_tokens"], "buffer": h["overlong_buffer_len"]}
    penalty = c["rewards"].new_tensor([soft_overlong(n, **limits) for n in c["lengths"].tolist()])
    rows = list(zip(c["rewards"].tolist(), c["truncated"].tolist(), strict=True))
    return {
        "overlong": c["rewards"] + h["overlong_penalty_factor"] * penalty,
        "stop_scale": torch.tensor([stop_properly(r, cut, scale=0.3) for r, cut in rows], dtype=torch.float64),
        "stop_fixed": torch.tensor([replace_truncated(r, cut, value=-0.5) for r, cut in rows], dtype=torch.float64),
    }


# --- evaluation ---


def pass_at_every_k(c: Case) -> Outputs:
    found = [unbiased_pass_at_k(c["c"], c.hyper["n"], k) for k in c["k"].tolist()]
    return {"pass_at_k": torch.stack(found, 1)}


def majority_at_every_k(c: Case) -> Outputs:
    answers, truth = c["answers"][None], torch.tensor([c.hyper["truth"]])
    read = torch.ones_like(answers, dtype=torch.bool)
    shared = [majority_at_k(answers, truth, read, k) for k in c["k"].tolist()]
    first = [majority_at_k(answers, truth, read, k, ties="first") for k in c["k"].tolist()]
    return {"maj_share": torch.cat(shared), "maj_first": torch.cat(first)}


def best_of_every_n(c: Case) -> Outputs:
    p, reward, draws = c["p"], c["reward"], c["n"].tolist()
    return {
        "kl": torch.stack([best_of_n_kl(p, reward, n) for n in draws]),
        "expected_reward": torch.stack([(best_of_n_policy(p, reward, n) * reward).sum() for n in draws]),
        "analytic": p.new_tensor([best_of_n_bound(n) for n in draws]),
    }


# --- models ---


def _decoder(case: Case) -> Decoder:
    weights = {name.removeprefix("w__"): x for name, x in case.inputs.items() if name.startswith("w__")}
    model = Decoder(parse_config({**case.hyper, "model_type": case.hyper["arch"]}))
    model = model.to(weights["model.embed_tokens.weight"].dtype)
    copy_tensors(model, weights)
    return model.round_as_transformers()


def _whole_model(case: Case) -> Outputs:
    model, ids = _decoder(case), case["ids"]
    found = {}
    for side in ("left", "right"):
        attend = case[f"mask_{side}"].bool()
        found[f"logits_{side}"] = model.logits(model(ids, attend)) * attend[..., None]
    packed = model.rows(case["packed_ids"][0], row_lengths(case["packed_positions"][0]))
    found |= {"packed_logits": model.logits(packed)[None], "greedy": _greedy(case, model)}
    mask = case["mask_right"].bool()
    mask[:, 0] = False
    loss, _ = cross_entropy(token_logprobs(found["logits_right"], ids), mask)
    loss = (token_weights(mask, Average("token"), dtype=loss.dtype) * loss).sum()
    names = {f"g__{hf_name(name)}": p for name, p in model.named_parameters()}
    found |= dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    return found | {"loss": loss}


def _greedy(case: Case, model: Decoder) -> Tensor:
    prompts = [row[attend.bool()].tolist() for row, attend in zip(case["ids"], case["mask_left"], strict=True)]
    params = SamplingParams(temperature=0, max_tokens=case.hyper["max_new_tokens"])
    return torch.tensor([c.tokens for c in TorchSampler(model).generate(prompts, params, [0] * len(prompts))])


# --- prm ---


def stepwise_loss(c: Case) -> Outputs:
    logits, labels = c.leaf("logits"), c["labels"]
    mask = labels != -100
    per_step, _ = process(two_class_score(logits), labels, mask)
    loss = per_step.sum() / mask.sum()
    return {"loss": loss} | gradients(loss, logits=logits)


def tokenize_row(c: Case) -> Outputs:
    h, prompt, labels = c.hyper, c["prompt"], c["labels"].tolist()
    if h["train_on_last_step_only"]:
        labels = [None] * (len(labels) - 1) + labels[-1:]
    steps = [[ord(char) for char in text] for text in c["completions"]]
    separator = [ord(char) for char in h["step_separator"]]
    row = label_steps([ord(char) for char in prompt], steps, labels, separator, max_len=h["max_length"])
    said = [-100 if label is None else int(label) for label in row.labels]
    return {"input_ids": torch.tensor(row.segment.tokens), "labels": torch.tensor(said)}


# --- online ---


def xpo_inputs(case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The answers in order of preference, and what to differentiate by."""
    leaves = {name: case.leaf(name) for name in ("model_on_model", "model_on_ref")}
    policy, reference = leaves.values(), (case["ref_on_model"], case["ref_on_ref"])
    pairs = [in_order(*(x.sum(1) for x in by), case["model_answer_chosen"]) for by in (policy, reference)]
    return [*pairs[0], *pairs[1]], leaves


def trl_xpo(case: Case) -> Outputs:
    sums, leaves = xpo_inputs(case)
    drawn = leaves["model_on_ref"].sum(1)
    value, _ = xpo(*sums, drawn_by_reference=drawn, beta=case.hyper["beta"], alpha=case.hyper["alpha"])
    return {"loss": row_average(value), **gradients(row_average(value), **leaves)}


def trl_xpo_ipo(case: Case) -> Outputs:
    """TRL offers IPO in place of DPO."""
    sums, leaves = xpo_inputs(case)
    value, _ = ipo(*sums, beta=case.hyper["beta"])
    loss = row_average(value) + case.hyper["alpha"] * row_average(leaves["model_on_ref"].sum(1))
    return {"loss": loss, **gradients(loss, **leaves)}


def trl_nash(case: Case) -> Outputs:
    logps = case.leaf("logps")
    mask = torch.ones_like(logps).bool()
    value, _ = trl_nash_md(logps, case["ref_logps"], mask, case["probability"], beta=case.hyper["beta"])
    return {"loss": row_average(value), **gradients(row_average(value), logps=logps)}


ADAPTERS: dict[str, dict[str, Callable[[Case], Outputs]]] = {
    "logprobs": {"shifted_masked": _shifted, "unshifted_verl": _unshifted, "fused_lm_head": _fused_head},
    "kl": {
        **dict.fromkeys(("verl_k1", "verl_k2", "verl_k3", "verl_abs", "verl_k1_plus", "verl_k3_plus"), _verl_kl),
        **dict.fromkeys(("openrlhf_k1", "openrlhf_k2", "openrlhf_k3"), _openrlhf_kl),
        **dict.fromkeys(("openrlhf_k1_unbiased", "openrlhf_k2_unbiased", "openrlhf_k3_unbiased"), _openrlhf_kl),
        "exact": _exact_kl,
    },
    "sft": {
        **dict.fromkeys(("accumulated_nll", "accumulated_dft", "hf_causal_lm_loss"), _sft_step),
        **dict.fromkeys(("openrlhf_token", "openrlhf_sequence"), _openrlhf_sft),
    },
    "reward_model": {
        "bradley_terry_plain": bradley_terry_trl,
        "bradley_terry_margin": bradley_terry_trl,
        "bradley_terry_centred": bradley_terry_trl,
        "bradley_terry_margin_centred": bradley_terry_trl,
        "openrlhf": bradley_terry_openrlhf,
    },
    "gae": {
        "verl": verl_gae,
        "verl_holes": verl_gae,
        "openrlhf": openrlhf_gae,
        "discounted_returns": discounted_returns,
    },
    "whiten": {
        "verl": verl_whiten,
        "trl": trl_whiten,
        "openrlhf_rows": openrlhf_rows,
    },
    "ppo": {
        "truncate_at_stop": _truncated,
        "adaptive_kl": adaptive_kl,
        "kl_in_reward_verl": kl_in_reward_verl,
        "kl_in_reward_openrlhf": kl_in_reward_openrlhf,
        **{f"verl_dual_clip_{mode}": verl_dual_clip for mode in VERL_MODES},
        **dict.fromkeys(("openrlhf_ppo", "openrlhf_ppo_seq", "openrlhf_ppo_dual", "openrlhf_gspo"), openrlhf_ppo),
        **dict.fromkeys(("value_loss_verl", "value_loss_openrlhf"), critic),
    },
    "aggregation": dict.fromkeys(VERL_MODES, verl_aggregation),
    "rollout_correction": {
        **{
            f"openrlhf_{way}": openrlhf_corrected
            for way in (
                "token_clip_ratio",
                "token_mask_ratio",
                "seq_mask_ratio",
                "seq_mask_binary_kl",
                "token_mask_tv",
            )
        },
        **{f"trl_{level}_{kind}": trl_mismatch for level in ("token", "sequence") for kind in ("truncate", "mask")},
    },
    "grpo": {
        **dict.fromkeys(TRL_POLICY, trl_policy),
        "grpo_token_advantages": trl_policy,
        "gmpo": trl_gmpo,
        "off_policy_mask": trl_off_policy_mask,
        "vespo_weights": trl_gamma_weights,
    },
    "rloo": {"trl_loss": trl_rloo_loss},
    "advantages": {
        **{f"grpo_{scale}{missing}": trl_grpo for scale in ("group", "batch", "none") for missing in ("", "_missing")},
        "gdpo": trl_gdpo,
        "gdpo_missing": trl_gdpo,
        "rloo_trl": trl_rloo,
        "rloo_trl_missing": trl_rloo,
        "verl_grpo": verl_answers(verl_grpo),
        "verl_grpo_singleton": verl_answers(verl_grpo),
        "verl_grpo_vectorized": verl_answers(verl_grpo),
        "verl_rloo": verl_answers(verl_rloo),
        "verl_rloo_singleton": verl_answers(verl_rloo),
        "verl_rloo_vectorized": verl_answers(lambda c, reward, group: leave_one_out(reward, group)),
        "verl_rloo_vectorized_singleton": verl_answers(lambda c, reward, group: leave_one_out(reward, group)),
        "verl_opo": verl_answers(verl_opo),
        "verl_opo_singleton": verl_answers(verl_opo),
        "verl_gpg": verl_answers(lambda c, reward, group: peers.verl_center_live(reward, group)),
        "verl_grpo_passk": verl_answers(verl_passk),
        "verl_gdpo": verl_whitened(verl_grpo),
        "verl_reinforce_plus_plus": verl_reinforce_pp,
        "verl_reinforce_plus_plus_dense": verl_reinforce_pp,
        "verl_reinforce_plus_plus_baseline": verl_whitened(verl_dr_grpo),
        "verl_reinforce_plus_plus_baseline_singleton": verl_whitened(verl_dr_grpo),
        "verl_remax": verl_remax,
        "verl_remax_dense": verl_remax,
        "verl_optimal_token_baseline": verl_otb,
        "verl_optimal_token_baseline_dense": verl_otb,
        **{f"openrlhf_{kind}": openrlhf for kind in OPENRLHF_SHAPED},
    },
    "data": dict.fromkeys(("pack_bfd", "pack_bfd_split", "pack_wrapped"), _packed),
    "verl_losses": {name + end: verl_policy for name in VERL_POLICY for end in ("", "_tis")},
    "dpo": {
        **dict.fromkeys(TRL_DPO_CASES, trl_dpo),
        "openrlhf_dpo": pair_loss(cdpo, label_smoothing="label_smoothing"),
        "openrlhf_cdpo": pair_loss(cdpo, label_smoothing="label_smoothing"),
        "openrlhf_ipo": pair_loss(ipo),
        "dpop_formula": pair_loss(dpop, penalty="dpop_lambda"),
        "bco": trl_bco,
    },
    "reference_free": {
        "simpo": free_loss(simpo, lengths=True, gamma="simpo_gamma", label_smoothing="label_smoothing"),
        "simpo_smoothed": free_loss(simpo, lengths=True, gamma="simpo_gamma", label_smoothing="label_smoothing"),
        "alphapo": free_loss(
            alphapo, lengths=True, gamma="simpo_gamma", alpha="alpha", label_smoothing="label_smoothing"
        ),
        "cpo": free_loss(cpo, lengths=False, label_smoothing="label_smoothing"),
        "cpo_hinge": free_loss(slic, lengths=False),
        "cpo_ipo": free_loss(cpo_ipo, lengths=True),
        "orpo": trl_orpo,
    },
    "kto": {"kto": trl_kto, "apo_zero_unpaired": trl_apo_zero_unpaired},
    "distill": {"generalized_jsd": _jsd, "chunked_divergence": _jsd_from_hidden},
    "rewards": {
        "soft_overlong": soft_overlong_trl,
        "repetition": repetition_trl,
        "length_penalties_openrlhf": length_penalties_openrlhf,
    },
    "evaluation": {
        "pass_at_k": pass_at_every_k,
        "maj_at_k": majority_at_every_k,
        "best_of_n": best_of_every_n,
    },
    "models": dict.fromkeys(("llama", "qwen2", "qwen3"), _whole_model),
    "prm": {"stepwise_loss": stepwise_loss, "tokenize_row": tokenize_row},
    "online": {"xpo_sigmoid": trl_xpo, "xpo_ipo": trl_xpo_ipo, "nash_md": trl_nash},
}
"""Family -> name of the case -> adapter."""


def answer(case: Case) -> Outputs:
    """What our functions give for a case. Raises KeyError for a case that nobody answers."""
    return ADAPTERS[case.family][case.name](case)
