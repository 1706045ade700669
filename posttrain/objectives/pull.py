"""What an objective does to each token of one step: the gradient of its averaged loss by every log-probability.

Two objectives that look alike on paper are compared best by what they do to the same answers. `token_pull` goes the
whole way that a training loop goes, from rewards to advantages to the loss to its average, and differentiates. Section
24 of the explainer shows the result for the best known methods.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.objectives.advantages import NEEDS, estimate, mixed, whiten
from posttrain.objectives.average import token_weights
from posttrain.objectives.kl import kl_estimate
from posttrain.objectives.objective import Objective
from posttrain.objectives.policy import chosen_tokens, policy_loss
from posttrain.objectives.regularizers import Kl, Proximal
from posttrain.objectives.returns import gae, token_rewards
from posttrain.objectives.tokens import check_shapes


@dataclass(frozen=True, kw_only=True)
class Step:
    """The answers of one optimizer step, with everything that any objective reads. Log-probabilities are in nats."""

    mask: Tensor
    """[N, T], true where the policy chose the token."""
    group: Tensor
    """[N] ids of the prompts."""
    reward: Tensor
    """[N] of the whole answer."""
    logp: Tensor
    """[N, T] of the learner now."""
    old_logp: Tensor
    """[N, T] of the learner when the step began."""
    sampled_logp: Tensor
    """[N, T] as the sampler reported."""
    ref_logp: Tensor
    """[N, T] of the frozen reference."""
    entropy: Tensor
    """[N, T] in nats, of the distribution that the token was drawn from."""
    sum_sq: Tensor
    """[N, T] Σ_v π_v² of the same."""
    value: Tensor
    """[N, T] of a critic, entry t before token t is known."""
    greedy: Tensor
    """[N] reward of the greedy answer to the row's prompt."""
    parts: Tensor
    """[N, K] several rewards of an answer, for objectives that scale each by itself."""
    draws: Tensor
    """[N, T] uniform numbers, for objectives that drop tokens at random."""
    baseline: float
    """The running mean of earlier rewards."""


class Pull(NamedTuple):
    """What a step does to each token, [N, T], 0 outside the mask and in the groups that the objective leaves out."""

    whole: Tensor
    """-∂L/∂log π: a gradient step makes the token likelier where it is positive."""
    gain: Tensor
    """The part of it that comes from the advantage, without leash and penalty; 0 where a clip or gate stops the
    token."""
    advantage: Tensor
    weight: Tensor
    """Of the token in the average."""


def token_pull(objective: Objective, step: Step, *, lam: float = 0.95) -> Pull:
    """How hard one step of an objective pulls at the log-probability of every token.

        pull_t = -∂L / ∂log π_t        L = Σ_t w_t · L_t, over the rows of the groups that the objective keeps

    The loss L_t is `policy_loss`, e.g. Schulman et al. 2017 (arXiv 1707.06347), eq. 7; on-policy and without a leash
    the pull is w_t · A_t, Williams 1992.

    objective: the choices. step: all answers of the step, since advantages and averages look at all of them. lam: λ of
    generalised advantage estimation, for objectives with a critic, whose advantages are whitened as `posttrain train
    ppo` does.

    Returns a `Pull` of four [N, T]. Entropy is not a function of the token's log-probability, so a bonus adds nothing.
    Raises ShapeError if the shapes differ.

    Two answers of 1 and 3 tokens with rewards 1 and 0: "center" with the average "sequence" pulls at them by 1/4, and
    by -1/12 each; with "token" by 1/8, and by -1/8 each. Section 24.
    """
    check_shapes("NT NT NT NT NT N N", step.mask, step.logp, step.old_logp, step.sampled_logp, step.ref_logp,
                 step.group, step.reward)  # fmt: skip
    kept = mixed(step.reward, step.group) if objective.keep == "mixed" else torch.ones_like(step.reward) > 0
    if not bool(kept.any()):
        return Pull(*(torch.zeros_like(step.logp) for _ in Pull._fields))
    rows = _rows(step, kept)
    advantage = _advantage(objective, rows, lam)
    weight = token_weights(rows.mask, objective.average, group=rows.group, dtype=rows.logp.dtype)
    chosen = chosen_tokens(objective, rows.logp, advantage, rows.mask, entropy=rows.entropy, draws=rows.draws)

    def gradient(which: Objective) -> Tensor:
        leaf = rows.logp.clone().requires_grad_()
        loss, _ = policy_loss(leaf, rows.old_logp, advantage, rows.mask, which, ref_logp=rows.ref_logp,
                              sampled_logp=rows.sampled_logp, entropy=rows.entropy, chosen=chosen)  # fmt: skip
        return -torch.autograd.grad((weight * loss).sum(), leaf)[0]

    alone = replace(objective, kl=Kl(), proximal=Proximal())
    found = gradient(objective), gradient(alone), advantage, weight
    return Pull(*(torch.zeros_like(step.logp).index_put((kept,), x + 0.0) for x in found))  # + 0.0: no negative zeros


def _rows(step: Step, kept: Tensor) -> Step:
    return replace(step, **{f.name: value[kept] for f in fields(step)
                            if isinstance(value := getattr(step, f.name), Tensor)})  # fmt: skip


def _advantage(objective: Objective, step: Step, lam: float) -> Tensor:
    """[N, T] as the loops of `group` and `ppo` make it, the KL charge of a reward included."""
    kl, beta = None, 0.0
    if objective.kl.where == "reward":
        start = step.old_logp if objective.needs_critic else step.sampled_logp
        kl, beta = kl_estimate(start - step.ref_logp, objective.kl.estimator), objective.kl.beta
    rewards = token_rewards(step.reward, step.mask, kl=kl, beta=beta)
    if objective.needs_critic:
        return whiten(gae(rewards, step.value, step.mask, lam=lam)[0], step.mask)
    wanted = NEEDS.get(objective.advantage, frozenset())
    extra = {name: objective.k if name == "k" else getattr(step, name) for name in wanted}
    return estimate(objective.advantage, rewards, step.mask, step.group, **extra)
