"""The menu of the PPO and GRPO family: one record of choices, of which a method is a row.

How an advantage is made, over what the ratio is taken, how it is clipped, which tokens are dropped, how losses are
averaged, where the KL leash sits, which groups are kept, what corrects a mismatched sampler. Combinations without a
meaning are refused when they are made; unusual ones are allowed and described by `notes`. What the choices do is in
`policy`; methods by name are in `presets`. Section 24 of the explainer takes the axes one by one.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import ConfigError
from posttrain.objectives.advantages import ADVANTAGES, NEEDS, NEEDS_GROUP, Advantage
from posttrain.objectives.average import Average
from posttrain.objectives.gates import Gate
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.regularizers import Entropy, Kl, Proximal
from posttrain.objectives.surrogate import RATIOS, Clip, Ratio
from posttrain.objectives.token_masks import Focus


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a policy-gradient step maximises: one choice on each axis. A method is a row of values."""

    advantage: Advantage = "zscore"
    """What is made of the rewards; see `advantages` (and `gae`, for a critic)."""
    k: int | None = None
    """Size of a set for the pass@k advantages; nothing for the others."""
    ratio: Ratio = "token"
    """Over what the importance ratio is taken; see `importance`."""
    old: Literal["learner", "sampler"] = "learner"
    """The policy under the ratio: the learner when the step began, or the sampler as it reported (bypass mode: no pass
    to recompute, and clipping looks after the mismatch as well)."""
    clip: Clip = Clip()
    """How far the ratio may move."""
    gate: Gate = Gate()
    """Tokens or answers dropped because the policy has moved too far."""
    focus: Focus = Focus()
    """Which tokens learn."""
    average: Average = Average("sequence")
    """How the losses of tokens are averaged over a step."""
    kl: Kl = Kl()
    """The leash to the reference."""
    proximal: Proximal = Proximal()
    """A penalty for leaving the policy that began the step."""
    keep: Literal["all", "mixed"] = "all"
    """mixed: only groups whose rewards differ (DAPO's dynamic sampling; the loop draws others for the rest)."""
    mismatch: Mismatch = Mismatch()
    """Correction where the sampler's probabilities differ from the learner's."""
    entropy: Entropy = Entropy()
    """A bonus for entropy."""

    def __post_init__(self):
        for name, known in (("advantage", ADVANTAGES), ("ratio", RATIOS), ("keep", ("all", "mixed")),
                            ("old", ("learner", "sampler"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(f'objective.{name} = "{getattr(self, name)}" is not one of {", ".join(known)}.')
        if ("k" in NEEDS.get(self.advantage, ())) != (self.k is not None):
            raise ConfigError(
                f'objective.k = {self.k} with advantage = "{self.advantage}": the pass@k advantages need the size of '
                "their sets, and no other advantage has sets. Set k with pass_at_k (4 is usual), else leave it out."
            )
        if self.average.kind == "pair":
            raise ConfigError('objective.average = "pair" is for preference losses; a policy loss has one per token.')
        if self.ratio == "none" and self.clip.kind not in ("none", "log"):
            raise ConfigError(
                f'objective.clip.kind = "{self.clip.kind}" with objective.ratio = "none": without a ratio there is '
                'nothing to clip. Set clip.kind to "none" or "log", or ratio to "token".'
            )
        if self.ratio != "none" and self.clip.kind == "log":
            raise ConfigError(
                f'objective.clip.kind = "log" with objective.ratio = "{self.ratio}": A · log π reads no ratio. Set '
                'ratio to "none", or clip.kind to "weight" (a ratio in front of log π).'
            )
        if self.clip.kind == "geometric" and self.ratio != "token":
            raise ConfigError(
                f'objective.clip.kind = "geometric" with objective.ratio = "{self.ratio}": the geometric mean is made '
                'of the clipped ratios of tokens. Set ratio to "token".'
            )
        if self.ratio != "token" and self.kl.corrected:
            raise ConfigError(
                f'objective.kl.corrected with objective.ratio = "{self.ratio}": the correction is each token\'s own '
                'ratio. Set ratio to "token", or corrected to false.'
            )
        if self.old == "sampler" and self.mismatch.kind != "off":
            raise ConfigError(
                f'objective.old = "sampler" with mismatch.kind = "{self.mismatch.kind}": the ratio already starts from '
                'the sampler, so a weight for the mismatch would count it twice. Set one of them to "learner" or "off".'
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

    @property
    def needs_sampler(self) -> bool:
        """Whether the log-probabilities that the sampler reported are needed."""
        return self.mismatch.kind != "off" or self.old == "sampler" or self.gate.against == "sampler"

    @property
    def needs_entropy(self) -> bool:
        """Whether the entropy of every token's distribution is needed."""
        return bool(self.entropy.weight) or self.entropy.target is not None or self.focus.kind == "entropy"

    @property
    def coupled(self) -> bool:
        """Whether tokens are picked among all of a step, so that `policy_loss` needs `chosen_tokens`."""
        return self.focus.kind != "all" or self.proximal.share is not None

    @property
    def corrects_stale(self) -> bool:
        """Whether anything holds a second optimizer step on the same samples."""
        return self.ratio != "none" or self.proximal.estimator != "none"

    def notes(self) -> list[str]:
        """What is legal but unusual about this combination, one sentence each, for the log."""
        found = []
        whole = self.ratio in ("sequence", "sequence_sum")
        if self.ratio in ("sequence", "sequence_token") and self.clip.kind == "min" and self.clip.high > 0.05:
            found.append(
                f"clip.high = {self.clip.high} with a length-normalised sequence ratio hardly clips; GSPO has 4e-4."
            )
        if whole and self.clip.kind != "gamma" and self.average.kind in ("token", "sum", "constant"):
            found.append(f'ratio = "{self.ratio}" with average = "{self.average.kind}" weighs answers by their length.')
        if self.clip.kind == "weight" and self.clip.low is not None and self.clip.low < 1:
            found.append(f"clip.low = {self.clip.low} gives CISPO a lower edge, which its paper does not have.")
        if self.clip.kind == "geometric" and self.average.kind != "sequence":
            found.append(f'average = "{self.average.kind}" with GMPO\'s geometric mean counts the length twice.')
        if self.clip.kind == "gamma" and self.ratio != "sequence_sum":
            found.append(f'ratio = "{self.ratio}" with clip.kind = "gamma": VESPO takes the ratio of the whole answer.')
        if not self.corrects_stale:
            found.append("without a ratio, samples must be fresh: make one optimizer step per batch of samples.")
        if self.clip.kind == "none" and self.ratio != "none" and self.gate.kind == self.proximal.estimator == "none":
            found.append("a ratio without clip, gate or penalty has no trust region: keep the steps small.")
        if self.old == "sampler" and whole:
            found.append('old = "sampler" with a ratio of whole answers adds up the mismatch of all tokens.')
        if self.kl.where == "reward" and self.kl.estimator in ("k2", "abs"):
            found.append(f'estimator = "{self.kl.estimator}" in the reward is biased; "k1" is not.')
        return found
