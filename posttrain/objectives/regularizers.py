"""What holds against the reward: the leash to the reference, the tie to the old policy, the bonus for entropy.

Three terms that a policy loss may have besides its gain, each a record of choices and, where its weight moves, a
controller that is a pure function of the old weight and what was measured. Section 14 of the explainer tells the leash,
section 13 the tie (PPO's penalised form), section 24 the bonus.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.kl import ESTIMATORS, Estimator, adaptive_beta, doubling_beta
from posttrain.objectives.surrogate import MAX_LOG_RATIO
from posttrain.objectives.tokens import check_shapes, masked

_TIES = ("none", "k2", "k3", "abs")


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
class Proximal:
    """A penalty for leaving the policy that began the step; PPO's other form, and what mirror descent leaves of it."""

    estimator: Literal["none", "k2", "k3", "abs"] = "none"
    """k2: ½ (log ρ)² (DRO, Kimi k1.5). k3: ρ - 1 - log ρ, which estimates kl(old ‖ policy) (PPO's penalty). abs:
    |log ρ| (KL-Cov). none: no penalty."""
    level: Literal["token", "sequence"] = "token"
    """token: of each token's ratio. sequence: of the answer's whole ratio, spread evenly over its tokens, so that the
    sum over the answer is the penalty of the answer (Kimi k1.5)."""
    weight: float = 0.0
    """Weight of the penalty; the first value, where `target` is set."""
    share: float | None = None
    """Only this share of all tokens pays, those with the largest covariance of log-probability and advantage
    (KL-Cov). None: every token."""
    target: float | None = None
    """kl(old ‖ policy) per token that the weight is doubled or halved to hold (PPO). None: the weight stays."""

    def __post_init__(self):
        if self.estimator not in _TIES:
            raise ConfigError(f'proximal.estimator = "{self.estimator}" is not one of {", ".join(_TIES)}.')
        if self.level not in ("token", "sequence"):
            raise ConfigError(f'proximal.level = "{self.level}" is not one of token, sequence.')
        told = (self.level, self.weight, self.share, self.target)
        if self.estimator == "none" and told != ("token", 0.0, None, None):
            raise ConfigError(
                f'proximal.level = "{self.level}", weight = {self.weight}, share = {self.share}, target = '
                f'{self.target} change nothing with proximal.estimator = "none". Set it to "k2", "k3" or "abs", or '
                "leave them out."
            )
        if self.estimator != "none" and not self.weight > 0:
            raise ConfigError(
                f'proximal.weight = {self.weight} with estimator = "{self.estimator}": the penalty needs a positive '
                "weight (KL-Cov 1, DRO 0.1)."
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(
                f"proximal.share = {self.share}: a share of the tokens lies between 0 and 1 (KL-Cov 2e-3)."
            )
        if self.share is not None and self.level == "sequence":
            raise ConfigError(
                f'proximal.share = {self.share} with level = "sequence": tokens are picked one by one, and a penalty '
                'of whole answers cannot be charged to a few of them. Set level to "token".'
            )
        if self.target is not None and self.target <= 0:
            raise ConfigError(f"proximal.target = {self.target}: the KL to hold must be positive (PPO uses 0.01).")


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """A bonus for being undecided."""

    weight: float = 0.0
    """Weight of the bonus; the first value, where `target` is set."""
    target: float | None = None
    """Mean entropy per token, in nats, below which the bonus acts and its weight grows (Skywork-OR1 uses 0.2). None:
    the weight stays and always acts."""
    delta: float = 0.005
    """What the weight grows or shrinks by per step. Only with `target`."""
    highest: float = 1.0
    """The weight stays between 0 and this. Only with `target`."""

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"entropy.weight = {self.weight}: a negative bonus rewards collapse; use 0 or more.")
        if self.target is None and (self.delta, self.highest) != (0.005, 1.0):
            raise ConfigError(
                f"entropy.delta = {self.delta}, highest = {self.highest} change nothing without entropy.target. Set "
                "the entropy to hold (0.2 nats), or leave them out."
            )
        if self.target is not None and not (self.target > 0 and self.delta > 0 and self.highest >= self.weight):
            raise ConfigError(
                f"entropy.target = {self.target}, delta = {self.delta}, weight = {self.weight}, highest = "
                f"{self.highest}: target and delta must be positive, and the weight starts at no more than highest."
            )


def proximal_penalty(moved: Tensor, mask: Tensor, estimator: str, level: str = "token") -> Tensor:
    """The penalty of every token for leaving the policy that began the step, before its weight.

        k2   ½ (log ρ)²        Richemond et al. 2024, DRO (arXiv 2405.19107); Kimi k1.5 (arXiv 2501.12599)
        k3   ρ - 1 - log ρ     estimates kl(old ‖ policy) on samples of the old one; PPO (arXiv 1707.06347), eq. 8
        abs  |log ρ|           KL-Cov (arXiv 2505.22617)

    moved: [N, T], log ρ = log π - log π_old of every token, with gradient. mask: [N, T].
    estimator: one of these. level: "sequence" takes log ρ of the whole answer and gives each of its tokens 1/|y| of the
        penalty, so that an average that sums an answer's tokens charges it once.

    Returns [N, T] in nats, 0 outside the mask. Raises ConfigError for another estimator, ShapeError for other shapes.

    Two tokens with log ρ = 0.1 and 0.3: k2 gives 0.005 and 0.045 by token, and twice 0.04 (½ · 0.4² / 2) by sequence.
    Sections 13 and 25.
    """
    check_shapes("NT", moved, mask)
    moved = masked(moved, mask)
    if level == "sequence":
        moved = moved.sum(1, keepdim=True).expand_as(moved)
    match estimator:
        case "k2":
            penalty = moved.square() / 2
        case "k3":
            penalty = torch.expm1(moved.clamp(max=MAX_LOG_RATIO)) - moved
        case "abs":
            penalty = moved.abs()
        case _:
            raise ConfigError(f'proximal.estimator = "{estimator}" is not one of {", ".join(_TIES[1:])}.')
    return masked(penalty / mask.sum(1, keepdim=True).clamp(min=1) if level == "sequence" else penalty, mask)


def next_beta(kl: Kl, beta: float, measured: float, samples: int) -> float:
    """The leash's weight for the next step: unchanged without a target, else moved by Ziegler's controller.

        β ← adaptive_beta(β, KL) if kl.target else β

    Ziegler et al. 2019 (arXiv 1909.08593).

    kl: the leash. beta: of this step, a number. measured: KL per answer in this step, in nats summed over its tokens.
    samples: answers in it.

    Returns a number. β = 0.15, target 6, 512 answers, a KL of 20: 0.151536. Section 14.
    """
    if kl.target is None:
        return beta
    return adaptive_beta(beta, measured, target=kl.target, samples=samples, horizon=kl.horizon)


def next_proximal(proximal: Proximal, weight: float, measured: float) -> float:
    """The tie's weight for the next step: unchanged without a target, else doubled or halved.

        w ← doubling_beta(w, KL) if proximal.target else w

    Schulman et al. 2017 (arXiv 1707.06347), section 4.

    proximal: the tie. weight: of this step, a number. measured: kl(old ‖ policy) per token after it, in nats.

    Returns a number. Weight 1, target 0.01: a KL of 0.02 gives 2, of 0.005 gives 0.5. Section 13.
    """
    return weight if proximal.target is None else doubling_beta(weight, measured, target=proximal.target)


def next_entropy(entropy: Entropy, weight: float, measured: float) -> tuple[float, float]:
    """The bonus's weight after a step, and what of it acts in the next one.

        c ← clip(c + δ if H ≤ target else c - δ, 0, highest)        acts: c · [H ≤ target]

    He et al. 2025, Skywork-OR1 (arXiv 2505.22312); the bounds are those of its code.

    entropy: the bonus. weight: c of this step, a number. measured: mean entropy per token in this step, in nats.

    Returns (c, what acts), two numbers; both are `weight` without a target. The paper starts at c = 0 with target 0.2
    and δ = 0.005: an entropy of 0.1 gives (0.005, 0.005), one of 0.3 gives (0, 0). Section 24.
    """
    if entropy.target is None:
        return weight, weight
    low = measured <= entropy.target
    weight = min(max(weight + (entropy.delta if low else -entropy.delta), 0.0), entropy.highest)
    return weight, weight if low else 0.0
