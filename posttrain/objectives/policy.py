"""The policy loss of the whole PPO and GRPO family, as one formula over a record of choices.

`policy_loss` reads an `Objective` and knows no method by name. Where the choices compare all tokens of a step,
`chosen_tokens` makes the comparison and the loss is handed its result. Sections 13, 14 and 24 of the explainer tell it.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.gates import gate_keep
from posttrain.objectives.kl import k3, kl_estimate
from posttrain.objectives.mismatch import Mismatch, mismatch_weight
from posttrain.objectives.objective import Objective
from posttrain.objectives.regularizers import proximal_penalty
from posttrain.objectives.surrogate import Clip, bounded_exp, clipped_gain, clipped_tokens, importance
from posttrain.objectives.token_masks import Chosen, drawn_covariance, top_covariance, top_entropy
from posttrain.objectives.tokens import check_shapes, masked

Sums = dict[str, tuple[Tensor, Tensor]]


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    objective: Objective,
    *,
    ref_logp: Tensor | None = None,
    sampled_logp: Tensor | None = None,
    entropy: Tensor | None = None,
    chosen: Chosen | None = None,
    beta: float | None = None,
    tie: float | None = None,
    bonus: float | None = None,
) -> tuple[Tensor, Sums]:
    """Loss of every token for any objective of the family, unaveraged.

        L_t = w_t · ( -keep_t · gain_t(ρ, A) + tie · proximal_t ) + β · kl_t · [kl.where = loss] - bonus · H_t

    PPO: Schulman et al. 2017 (arXiv 1707.06347), eq. 7. GRPO: Shao et al. 2024 (arXiv 2402.03300), eq. 3.

    logp: [N, T] of the learner now, with gradient. old_logp: [N, T] of the learner when the step began.
    advantage: [N, T]. mask: [N, T], true where the policy chose the token. What stands elsewhere is never read.
    ref_logp: [N, T] of the reference; needed where the leash is in the loss, else only measured.
    sampled_logp: [N, T] as the sampler reported; needed where `objective.needs_sampler`, else only measured.
    entropy: [N, T] in nats, with gradient; needed by a bonus, else only measured.
    chosen: the tokens picked over the whole step, from `chosen_tokens`; needed where `objective.coupled`.
    beta, tie, bonus: present weights of leash, penalty and bonus, where a controller moves them; None: the objective's.

    Returns the loss [N, T], 0 outside the mask, and metrics as (sum, count) under the names of the metrics glossary.
    Raises ConfigError if something that the objective needs is missing, or a weight is given that it would not use.

    At logp = old_logp, without leash and bonus, the gradient is REINFORCE's, -A ∇log π, for every ratio but the
    sequence ones, which spread it evenly over the answer. Sections 13 and 24.
    """
    check_shapes("NT", logp, old_logp, advantage, mask)
    beta, tie, bonus = _weights(objective, ref_logp, sampled_logp, entropy, chosen, beta, tie, bonus)
    logp, old_logp = masked(logp, mask), masked(old_logp, mask).detach()
    sampled = None if sampled_logp is None else masked(sampled_logp, mask).detach()
    advantage = masked(advantage, mask).detach()
    start = sampled if objective.old == "sampler" else old_logp
    log_ratio = importance(logp, start, mask, objective.ratio)
    gain = clipped_gain(log_ratio, logp, advantage, mask, objective.clip)
    metrics = _metrics(log_ratio, logp - start, advantage, mask, objective.clip)
    if objective.gate.kind != "none":
        keep = gate_keep(
            logp, sampled if objective.gate.against == "sampler" else start, advantage, mask, objective.gate
        )
        gain = masked(gain, keep)
        metrics["gate_cut_share"] = _sum(~keep & mask, mask)
    if objective.focus.kind != "all":
        gain = masked(gain, chosen.gain)
        metrics["focus_share"] = _sum(chosen.gain & mask, mask)
    loss = -gain
    if objective.proximal.estimator != "none":
        penalty = proximal_penalty(logp - start, mask, objective.proximal.estimator, objective.proximal.level)
        penalty = penalty if objective.proximal.share is None else masked(penalty, chosen.penalty)
        metrics["proximal"] = _sum(penalty.detach(), mask)
        loss = loss + tie * penalty
    if sampled is not None:
        loss, found = _mismatched(loss, old_logp, sampled, mask, objective.mismatch)
        metrics |= found
    if ref_logp is not None:
        ref_ratio = logp - masked(ref_logp, mask).detach()
        for name in ("k1", "k2", "k3"):
            metrics[f"kl_ref_{name}"] = _sum(kl_estimate(ref_ratio.detach(), name), mask)
        if objective.kl.where == "loss":
            kl = kl_estimate(ref_ratio, objective.kl.estimator)
            loss = loss + beta * (kl * bounded_exp(log_ratio) if objective.kl.corrected else kl)
    if entropy is not None:
        undecided = masked(entropy, mask)
        metrics["entropy"] = _sum(undecided.detach(), mask)
        loss = loss - bonus * undecided if bonus else loss
    return masked(loss, mask), metrics


def chosen_tokens(
    objective: Objective,
    logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    entropy: Tensor | None = None,
    draws: Tensor | None = None,
) -> Chosen:
    """The tokens that an objective picks among all of a step. Coupled: give it every row of the optimizer step.

        focus "entropy"      gain = top_entropy(H)               80/20
        focus "covariance"   gain = not drawn_covariance(…)      Clip-Cov
        proximal.share       penalty = top_covariance(…)         KL-Cov

    Wang et al. 2025 (arXiv 2506.01939); Cui et al. 2025 (arXiv 2505.22617).

    objective: the choices. logp, advantage, mask: [N, T]. entropy: [N, T] in nats, needed by the first.
    draws: [N, T] uniform numbers, needed by the second.

    Returns two boolean masks [N, T], for `policy_loss`; what the objective does not pick is the whole mask. Raises
    ConfigError if entropy or draws are missing.

    An objective that is not coupled gets (mask, mask). Section 24.
    """
    check_shapes("NT", logp, advantage, mask)
    focus, gain, penalty = objective.focus, mask, mask
    if focus.kind == "entropy":
        if entropy is None:
            raise ConfigError('focus.kind = "entropy" needs the entropy of every token: ask the learner for it.')
        gain = top_entropy(entropy, mask, focus.share)
    if focus.kind == "covariance":
        if draws is None:
            raise ConfigError('focus.kind = "covariance" draws tokens at random and needs a uniform number for each.')
        gain = mask & ~drawn_covariance(logp, advantage, mask, draws, share=focus.share, low=focus.low, high=focus.high)
    if objective.proximal.share is not None:
        penalty = top_covariance(logp, advantage, mask, objective.proximal.share)
    return Chosen(gain, penalty)


def _weights(
    objective: Objective,
    ref_logp: Tensor | None,
    sampled_logp: Tensor | None,
    entropy: Tensor | None,
    chosen: Chosen | None,
    beta: float | None,
    tie: float | None,
    bonus: float | None,
) -> tuple[float, float, float]:
    """The present weights of leash, penalty and bonus, after a look at whether everything needed is there."""
    if objective.kl.where == "loss" and ref_logp is None:
        raise ConfigError('kl.where = "loss" needs ref_logp: compute the reference\'s log-probabilities for the batch.')
    if objective.needs_sampler and sampled_logp is None:
        raise ConfigError(
            f'mismatch.kind = "{objective.mismatch.kind}", old = "{objective.old}", gate.against = '
            f'"{objective.gate.against}" needs sampled_logp, which the sampler reports.'
        )
    if (objective.entropy.weight or bonus) and entropy is None:
        raise ConfigError(
            f"entropy.weight = {bonus or objective.entropy.weight} needs entropy per token: ask the learner for it."
        )
    if objective.coupled and chosen is None:
        raise ConfigError(
            f'focus.kind = "{objective.focus.kind}", proximal.share = {objective.proximal.share} needs the tokens that '
            "were picked among all of the step: make them with chosen_tokens, and hand them over as `chosen`."
        )
    if beta is not None and objective.kl.where != "loss":
        raise ConfigError(f'beta = {beta} was given, but kl.where = "{objective.kl.where}": this loss has no KL term.')
    if tie is not None and objective.proximal.estimator == "none":
        raise ConfigError(f'tie = {tie} was given, but proximal.estimator = "none": this loss has no penalty.')
    return (
        objective.kl.beta if beta is None else beta,
        objective.proximal.weight if tie is None else tie,
        objective.entropy.weight if bonus is None else bonus,
    )


def _mismatched(
    loss: Tensor, old_logp: Tensor, sampled: Tensor, mask: Tensor, mismatch: Mismatch
) -> tuple[Tensor, Sums]:
    """The loss times the weight for the sampler's mismatch, and how large the mismatch is."""
    gap = (old_logp - sampled).abs()
    metrics = {"sampler_gap_mean": _sum(gap, mask), "sampler_gap_max": (gap.max(), torch.ones(()))}
    if mismatch.kind == "off":
        return loss, metrics
    weight, cut = mismatch_weight(old_logp, sampled, mask, mismatch)
    return weight * loss, metrics | {"mismatch_cut_share": _sum(cut, mask)}


def _metrics(log_ratio: Tensor, moved: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Sums:
    """What to watch in a step. moved: token log-ratio to the policy that began the step, whatever the ratio is."""
    log_ratio, moved = log_ratio.detach(), moved.detach()
    ratio = masked(bounded_exp(log_ratio), mask)
    low, high, cap = clipped_tokens(log_ratio, advantage, clip)
    return {
        "ratio_mean": _sum(ratio, mask),
        "ratio_max": (ratio.max(), torch.ones(())),
        "kl_old": _sum(k3(-moved), mask),
        "clip_share": _sum((low | high | cap) & mask, mask),
        "clip_low_share": _sum(low & mask, mask),
        "clip_high_share": _sum(high & mask, mask),
        "clip_cap_share": _sum(cap & mask, mask),
        "advantage_abs": _sum(advantage.abs(), mask),
        "advantage_mean": _sum(advantage, mask),
    }


def _sum(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), mask.sum()
