"""The policy loss of the whole PPO and GRPO family, as one formula over a record of choices.

`Objective` is the menu: how an advantage is made, over what the ratio is taken, how it is clipped, how losses are
averaged, where the KL leash sits, which groups are kept, what corrects a mismatched sampler. `policy_loss` reads the
choices and knows no method by name; the names are rows of `presets`. Combinations without a meaning are refused when
they are made; unusual ones are allowed and described by `notes`. Sections 13, 14 and 24 of the explainer tell it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.advantages import ADVANTAGES, NEEDS_GROUP, Advantage
from posttrain.objectives.average import Average
from posttrain.objectives.kl import ESTIMATORS, Estimator, adaptive_beta, k3, kl_estimate
from posttrain.objectives.surrogate import (
    RATIOS,
    Clip,
    Mismatch,
    Ratio,
    clipped_gain,
    clipped_tokens,
    importance,
    mismatch_weight,
)
from posttrain.objectives.tokens import check_shapes, masked

Sums = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Kl:
    """The leash to the reference policy."""

    where: Literal["none", "reward", "loss"] = "none"
    """reward: charged per token inside the reward, as RLHF does. loss: a term of the loss, as GRPO does. none: no
    leash, and no reference model is needed."""
    estimator: Estimator = "k3"
    """How kl(policy ‖ reference) is estimated at a sampled token; see `kl`."""
    beta: float = 0.0
    """Weight of the leash; the first value, where `target` is set."""
    corrected: bool = False
    """Multiply the estimate by the token's importance ratio, with the gradient through both factors (DeepSeek-V3.2).
    Only in the loss."""
    target: float | None = None
    """KL per answer, in nats summed over its tokens, that beta is steered to (Ziegler et al.). None: beta stays."""
    horizon: int = 10_000
    """Answers over which a KL off by 20% or more moves beta by about 20%. Only with `target`."""

    def __post_init__(self):
        if self.where not in ("none", "reward", "loss"):
            raise ConfigError(f'kl.where = "{self.where}" is not one of none, reward, loss.')
        if self.estimator not in ESTIMATORS:
            raise ConfigError(f'kl.estimator = "{self.estimator}" is not one of {", ".join(ESTIMATORS)}.')
        if self.where == "none" and (self.beta or self.corrected or self.target is not None):
            raise ConfigError(
                f'kl.where = "none" with beta = {self.beta}, corrected = {self.corrected}, target = {self.target}: '
                'without a leash these change nothing. Set kl.where to "reward" or "loss", or leave them out.'
            )
        if self.where != "none" and not self.beta > 0:
            raise ConfigError(
                f'kl.where = "{self.where}" with beta = {self.beta}: a leash of weight 0 costs a reference pass and '
                'changes nothing. Set beta (GRPO 0.04, RLHF 0.02 to 0.1), or kl.where = "none".'
            )
        if self.where == "loss" and self.estimator == "k1":
            raise ConfigError(
                'kl.estimator = "k1" in the loss has gradient 0 in expectation: it restrains nothing. Use "k2" (the '
                'gradient of kl(policy ‖ reference)), "k3" (GRPO), or kl.where = "reward".'
            )
        if self.where == "reward" and (self.corrected or self.estimator.endswith("+")):
            raise ConfigError(
                f'kl.where = "reward" with estimator = "{self.estimator}", corrected = {self.corrected}: a reward has '
                'no gradient to correct. Use "k1", or put the leash into the loss.'
            )
        if self.target is not None and self.target <= 0:
            raise ConfigError(f"kl.target = {self.target}: the KL steered to must be positive (Ziegler et al. use 6).")
        if self.horizon <= 0:
            raise ConfigError(f"kl.horizon = {self.horizon}: must be a positive number of answers (10,000 is usual).")
        if self.target is None and self.horizon != 10_000:
            raise ConfigError(f"kl.horizon = {self.horizon} changes nothing without kl.target.")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a policy-gradient step maximises: one choice on each of eight axes. A method is a row of values."""

    advantage: Advantage = "zscore"
    """What is made of the rewards; see `advantages` (and `gae`, for a critic)."""
    ratio: Ratio = "token"
    """Over what the importance ratio is taken; see `importance`."""
    clip: Clip = Clip()
    """How far the ratio may move."""
    average: Average = Average("sequence")
    """How the losses of tokens are averaged over a step."""
    kl: Kl = Kl()
    """The leash to the reference."""
    keep: Literal["all", "mixed"] = "all"
    """mixed: only groups whose rewards differ (DAPO's dynamic sampling, without the refill)."""
    mismatch: Mismatch = Mismatch()
    """Correction where the sampler's probabilities differ from the learner's."""
    entropy: float = 0.0
    """Weight of an entropy bonus."""

    def __post_init__(self):
        if self.advantage not in ADVANTAGES:
            raise ConfigError(f'objective.advantage = "{self.advantage}" is not one of {", ".join(ADVANTAGES)}.')
        if self.ratio not in RATIOS:
            raise ConfigError(f'objective.ratio = "{self.ratio}" is not one of {", ".join(RATIOS)}.')
        if self.keep not in ("all", "mixed"):
            raise ConfigError(f'objective.keep = "{self.keep}" is not one of all, mixed.')
        if self.average.kind == "pair":
            raise ConfigError('objective.average = "pair" is for preference losses; a policy loss has one per token.')
        if self.entropy < 0:
            raise ConfigError(f"objective.entropy = {self.entropy}: a negative bonus rewards collapse; use 0 or more.")
        if self.ratio == "none" and self.clip.kind != "none":
            raise ConfigError(
                f'objective.clip.kind = "{self.clip.kind}" with objective.ratio = "none": without a ratio there is '
                'nothing to clip. Set clip.kind to "none", or ratio to "token".'
            )
        if self.ratio != "token" and self.kl.corrected:
            raise ConfigError(
                f'objective.kl.corrected with objective.ratio = "{self.ratio}": the correction is each token\'s own '
                'ratio. Set ratio to "token", or corrected to false.'
            )

    @property
    def needs_group(self) -> bool:
        """Whether one answer per prompt would teach nothing."""
        return self.advantage in NEEDS_GROUP or self.keep == "mixed"

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a frozen reference are needed."""
        return self.kl.where != "none"

    @property
    def needs_critic(self) -> bool:
        """Whether values are needed."""
        return self.advantage == "gae"

    def notes(self) -> list[str]:
        """What is legal but unusual about this combination, one sentence each, for the log."""
        found = []
        whole = self.ratio in ("sequence", "sequence_sum")
        if self.ratio in ("sequence", "sequence_token") and self.clip.kind == "min" and self.clip.high > 0.05:
            found.append(
                f"clip.high = {self.clip.high} with a length-normalised sequence ratio hardly clips; GSPO has 4e-4."
            )
        if whole and self.average.kind in ("token", "sum", "constant"):
            found.append(f'ratio = "{self.ratio}" with average = "{self.average.kind}" weighs answers by their length.')
        if self.clip.kind == "weight" and (self.clip.low or 1) < 1:
            found.append(f"clip.low = {self.clip.low} gives CISPO a lower edge, which its paper does not have.")
        if self.ratio == "none":
            found.append("without a ratio, samples must be fresh: make one optimizer step per batch of samples.")
        if self.kl.where == "reward" and self.kl.estimator in ("k2", "abs"):
            found.append(f'estimator = "{self.kl.estimator}" in the reward is biased; "k1" is not.')
        return found


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    objective: Objective,
    *,
    ref_logp: Tensor | None = None,
    sampled_logp: Tensor | None = None,
    beta: float | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, Sums]:
    """Loss of every token for any objective of the family, unaveraged.

        L_t = -w_t · gain_t(ρ, A) + β · kl_t · [kl.where = loss] - entropy · H_t

    PPO: Schulman et al. 2017 (arXiv 1707.06347), eq. 7. GRPO: Shao et al. 2024 (arXiv 2402.03300), eq. 3.

    logp: [N, T] of the learner now, with gradient. old_logp: [N, T] of the learner when the step began.
    advantage: [N, T]. mask: [N, T], true where the policy chose the token. What stands elsewhere is never read.
    ref_logp: [N, T] of the reference; needed where the leash is in the loss, else only measured.
    sampled_logp: [N, T] as the sampler reported; needed by a mismatch correction, else only measured.
    beta: the leash's present weight, where a controller moves it; None: `objective.kl.beta`.
    entropy: [N, T] in nats, with gradient; needed where `objective.entropy` is not 0, else only measured.

    Returns the loss [N, T], 0 outside the mask, and metrics as (sum, count) under the names of the metrics glossary.
    Raises ConfigError if something that the objective needs is missing, or a beta is given that it would not use.

    At logp = old_logp, without leash and bonus, the gradient is REINFORCE's, -A ∇log π, for every ratio but the
    sequence ones, which spread it evenly over the answer.
    """
    check_shapes("NT", logp, old_logp, advantage, mask)
    beta = _check_inputs(objective, ref_logp, sampled_logp, beta, entropy)
    logp, old_logp = masked(logp, mask), masked(old_logp, mask).detach()
    advantage = masked(advantage, mask).detach()
    log_ratio = importance(logp, old_logp, mask, objective.ratio)
    gain = clipped_gain(log_ratio, logp, advantage, objective.clip)
    metrics = _metrics(log_ratio, logp - old_logp, advantage, mask, objective.clip)
    if sampled_logp is not None:
        weight, cut = mismatch_weight(old_logp, sampled_logp, mask, objective.mismatch)
        gain = weight * gain
        gap = masked(old_logp - sampled_logp, mask).abs()
        metrics |= {"sampler_gap_mean": _sum(gap, mask), "sampler_gap_max": (gap.max(), torch.ones(()))}
        if objective.mismatch.kind != "off":
            metrics["mismatch_cut_share"] = _sum(cut, mask)
    loss = -gain
    if ref_logp is not None:
        ref_ratio = logp - masked(ref_logp, mask).detach()
        for name in ("k1", "k2", "k3"):
            metrics[f"kl_ref_{name}"] = _sum(kl_estimate(ref_ratio.detach(), name), mask)
        if objective.kl.where == "loss":
            kl = kl_estimate(ref_ratio, objective.kl.estimator)
            loss = loss + beta * (kl * log_ratio.exp() if objective.kl.corrected else kl)
    if entropy is not None:
        bonus = masked(entropy, mask)
        metrics["entropy"] = _sum(bonus.detach(), mask)
        loss = loss - objective.entropy * bonus if objective.entropy else loss
    return masked(loss, mask), metrics


def value_loss(
    values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor, *, clip: float | None = None
) -> tuple[Tensor, Sums]:
    """Squared error of a critic, with PPO's optional clipping around the values it had when the step began.

        L_t = ½ max( (V - R)², (V_old + clamp(V - V_old, -ε, ε) - R)² )

    Schulman et al. 2017's released code; Engstrom et al. 2020 (arXiv 2005.12729), section 3.

    values: [N, T] now, with gradient. old_values, targets: [N, T], fixed for all passes over the batch. mask: [N, T].
    clip: ε, in units of reward; None: plain ½ (V - R)².

    Returns the loss [N, T], 0 outside the mask, and metrics. V_old = 0.2, V = 1, R = 0.9, ε = 0.2 has loss 0.125 and
    gradient 0, though V is almost right: a small ε freezes a critic.
    """
    check_shapes("NT", values, old_values, targets, mask)
    values, old_values = masked(values, mask), masked(old_values, mask).detach()
    targets = masked(targets, mask).detach()
    error = (values - targets).square()
    metrics = {"value_mean": _sum(values.detach(), mask), "return_mean": _sum(targets, mask)}
    if clip is not None:
        if clip <= 0:
            raise ConfigError(f"value clip = {clip}: it must be positive, in units of reward; None turns clipping off.")
        near = old_values + (values - old_values).clamp(-clip, clip)
        held = (near - targets).square()
        metrics["value_clip_share"] = _sum((held > error).detach(), mask)
        error = torch.maximum(error, held)
    loss = error / 2
    return loss, metrics | {"value_loss": _sum(loss.detach(), mask)}


def next_beta(kl: Kl, beta: float, measured: float, samples: int) -> float:
    """The leash's weight for the next step: unchanged without a target, else moved by Ziegler's controller.

    beta: of this step. measured: KL per answer in this step, in nats summed over its tokens. samples: answers in it.
    """
    if kl.target is None:
        return beta
    return adaptive_beta(beta, measured, target=kl.target, samples=samples, horizon=kl.horizon)


def _check_inputs(
    objective: Objective,
    ref_logp: Tensor | None,
    sampled_logp: Tensor | None,
    beta: float | None,
    entropy: Tensor | None,
) -> float:
    """The leash's weight, after a look at whether everything needed is there."""
    if objective.kl.where == "loss" and ref_logp is None:
        raise ConfigError('kl.where = "loss" needs ref_logp: compute the reference\'s log-probabilities for the batch.')
    if objective.mismatch.kind != "off" and sampled_logp is None:
        raise ConfigError(f'mismatch.kind = "{objective.mismatch.kind}" needs sampled_logp, which the sampler reports.')
    if objective.entropy and entropy is None:
        raise ConfigError(f"objective.entropy = {objective.entropy} needs entropy per token: ask the learner for it.")
    if beta is not None and objective.kl.where != "loss":
        raise ConfigError(f'beta = {beta} was given, but kl.where = "{objective.kl.where}": this loss has no KL term.')
    return objective.kl.beta if beta is None else beta


def _metrics(log_ratio: Tensor, moved: Tensor, advantage: Tensor, mask: Tensor, clip: Clip) -> Sums:
    """What to watch in a step. moved: token log-ratio to the policy that began the step, whatever the ratio is."""
    log_ratio, moved = log_ratio.detach(), moved.detach()
    ratio = masked(log_ratio.exp(), mask)
    low, high = clipped_tokens(log_ratio, advantage, clip)
    return {
        "ratio_mean": _sum(ratio, mask),
        "ratio_max": (ratio.max(), torch.ones(())),
        "kl_old": _sum(k3(-moved), mask),
        "clip_share": _sum((low | high) & mask, mask),
        "clip_low_share": _sum(low & mask, mask),
        "clip_high_share": _sum(high & mask, mask),
        "advantage_abs": _sum(advantage.abs(), mask),
        "advantage_mean": _sum(advantage, mask),
    }


def _sum(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(), mask.sum()
