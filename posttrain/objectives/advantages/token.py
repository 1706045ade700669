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
    returns = rewards_to_go(token_reward, mask)
    energy = masked(1 - 2 * old_logp.detach().exp() + sum_sq.detach(), mask).cumsum(1)
    key, count = _places(mask, group)
    weight, value = energy[mask], returns[mask]
    least = value.new_full((len(count),), torch.inf).scatter_reduce(0, key, value, "amin")
    above = value - least[key]  # so that equal returns, and a lone one, give exact zeros
    total, scale = (value.new_zeros(len(count)).index_add(0, key, x) for x in (weight * above, weight))
    return torch.zeros_like(returns).masked_scatter(mask, above - (total / (scale + eps))[key])


def still_running(mask: Tensor, group: Tensor) -> Tensor:
    """How many answers of the group have a token at this place: 1 where an answer has outlived the others.

        n_{i,t} = |{ j in the group of i : |y_j| ≥ t }|,    t counting the policy's own tokens from 1

    The number of samples behind the baseline of `optimal_token` (Li et al. 2026, arXiv 2602.07078).

    mask: [N, T]. group: [N] ids of prompts. Returns [N, T], whole numbers, 0 outside the mask.

    Answers of 1 and 2 tokens in one group give (2) and (2, 1). Section 24.
    """
    key, count = _places(mask, group)
    return torch.zeros_like(mask, dtype=torch.long).masked_scatter(mask, count[key])


def _places(mask: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """For the masked tokens in order: a dense id of (group, place), [M]; and how many tokens share each id."""
    check_shapes("NT N", mask, group)
    ids = torch.unique(group, return_inverse=True)[1]
    pairs = ids[:, None] * mask.numel() + mask.cumsum(1)
    _, key, count = torch.unique(pairs[mask], return_inverse=True, return_counts=True)
    return key, count
