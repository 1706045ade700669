"""A baseline for every token: what the group still had to gain when the token was chosen, weighted by its noise.

One baseline per answer is best only if all tokens are equally noisy. The weight here is the squared gradient of an
answer's log-probability so far, with respect to the logits, which the forward pass knows without a backward one.
Section 24 of the book tells the story.
"""

import torch
from torch import Tensor

from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.tokens import check_shapes, masked


def optimal_token(
    token_reward: Tensor, mask: Tensor, group: Tensor, old_logp: Tensor, sum_sq: Tensor, *, eps: float = 1e-8
) -> Tensor:
    """Return from each token on, minus the baseline of least variance at that place in the group's answers.

        A_{i,t} = G_{i,t} - B_t        B_t = Σ_j W_{j,t} G_{j,t} / Σ_j W_{j,t}        G_t = Σ_{k≥t} r_k
        W_{i,t} = Σ_{s≤t} (1 - 2 π_s + Σ_v π_v²)

    The optimal token baseline: Li et al. 2026 (arXiv 2602.07078). The bracket is the squared length of the gradient of
    log π(y_s) in the logits. Sums run over the answers of the group that have a token at place t, where places count
    the policy's own tokens.

    token_reward, mask: [N, T]. group: [N] ids of prompts.
    old_logp: [N, T] log-probability of each token when it was sampled. sum_sq: [N, T], Σ_v π_v² of the distribution it
        was sampled from. eps: keeps the division finite where all tokens so far were certain.

    Returns [N, T], 0 outside the mask; 0 where an answer is the only one of its group still running, as there is
    nothing to compare it with.

    Where all answers have equal weights this is `center` of the returns: one token each of probability 1/2 out of two,
    rewards 1 and 0, gives 0.5 and -0.5. Section 24.
    """
    check_shapes("NT NT N NT NT", token_reward, mask, group, old_logp, sum_sq)
    ids, order = torch.unique(group, return_inverse=True)[1], _policy_first(mask)
    energy = masked(1 - 2 * old_logp.detach().exp() + sum_sq.detach(), mask).cumsum(1)
    alive, weight, value = (x.gather(1, order) for x in (mask, masked(energy, mask), rewards_to_go(token_reward, mask)))
    value = torch.where(alive, value, torch.inf)
    least = torch.full_like(value, torch.inf).scatter_reduce(0, ids[:, None].expand_as(value), value, "amin")
    above = masked(value - least[ids], alive)  # so that equal returns, and a lone one, give exact zeros
    baseline = _in_group(weight * above, ids) / (_in_group(weight, ids) + eps)
    return torch.empty_like(value).scatter(1, order, masked(above - baseline, alive))


def still_running(mask: Tensor, group: Tensor) -> Tensor:
    """How many answers of the group have a token at this place: 1 where an answer has outlived the others.

        n_{i,t} = |{ j in the group of i : |y_j| ≥ t }|,    t counting the policy's own tokens from 1

    The number of samples behind the baseline of `optimal_token` (Li et al. 2026, arXiv 2602.07078).

    mask: [N, T]. group: [N] ids of prompts. Returns [N, T], whole numbers, 0 outside the mask.

    Answers of 1 and 2 tokens in one group give (2) and (2, 1). Section 24.
    """
    check_shapes("NT N", mask, group)
    ids, order = torch.unique(group, return_inverse=True)[1], _policy_first(mask)
    alive = mask.gather(1, order).long()
    return torch.empty_like(alive).scatter(1, order, alive * _in_group(alive, ids))


def _policy_first(mask: Tensor) -> Tensor:
    """[N, T] columns of each row, those of the masked tokens first and in order."""
    width = mask.shape[1]
    return torch.where(mask, torch.arange(width, device=mask.device), width).argsort(1)


def _in_group(x: Tensor, ids: Tensor) -> Tensor:
    """[N, T]: for each row, the sum over the rows of its group."""
    return torch.zeros_like(x).index_add(0, ids, x)[ids]
