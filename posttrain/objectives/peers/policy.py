"""Policy losses and their averages, as TRL and verl spell them.

Most of what these libraries call a loss is one of our objectives with an average of its own; the functions here say
which weights an average of theirs amounts to, and translate the few inputs that they take in another form.
"""

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.tokens import check_shapes, masked


def trl_policy_weights(
    mask: Tensor,
    loss_type: str,
    *,
    max_completion_length: int | None = None,
    num_items_in_batch: float | None = None,
    gradient_accumulation_steps: int = 1,
    steps_per_generation: int = 1,
) -> Tensor:
    """The weights that TRL's GRPO trainer gives the tokens of one micro-batch.

        grpo, sapo          w = 1 / (K · N · tokens of the answer)                         per-answer mean
        bnpo                w = 1 / (K · tokens of the micro-batch)
        dr_grpo             w = 1 / (K · N · max_completion_length)
        luspo               w = 1 / (K · N)
        dapo, cispo, vespo  w = S / (K · tokens of the whole generation batch)

    TRL 1.x, `GRPOTrainer._compute_loss`; K micro-batches are accumulated, S micro-batches make a generation batch.

    mask: [N, T]. loss_type: TRL's name. max_completion_length: for dr_grpo. num_items_in_batch: tokens of the
    generation batch, over all processes; None: the mask's. gradient_accumulation_steps: K. steps_per_generation: S.

    Returns [N, T] in float64. Answers without any token count in N, and "bnpo" averages averages, so K micro-batches of
    one answer and one of K answers differ: that is why not to. With K = S = 1 and no empty answer, grpo is our
    "sequence", dapo and bnpo "token", luspo "sum". Section 24.
    """
    check_shapes("NT", mask)
    rows, steps = mask.shape[0], gradient_accumulation_steps
    match loss_type:
        case "grpo" | "sapo":
            average, total = Average("sequence"), rows * steps
        case "bnpo":
            average, total = Average("token"), mask.sum() * steps
        case "dr_grpo":
            average, total = Average("constant", max_completion_length), rows * steps
        case "luspo":
            average, total = Average("sum"), rows * steps
        case "dapo" | "cispo" | "vespo":
            items = mask.sum() if num_items_in_batch is None else num_items_in_batch
            average, total = Average("token"), items * steps / steps_per_generation
        case _:
            raise ConfigError(
                f'"{loss_type}" is no loss_type of TRL that is known here: grpo, dapo, dr_grpo and so on.'
            )
    return token_weights(mask, average, total=total, dtype=torch.float64)


def verl_weights(
    mask: Tensor,
    loss_agg_mode: str,
    *,
    batch_num_tokens: float | None = None,
    global_batch_size: float | None = None,
    dp_size: int = 1,
    loss_scale_factor: float | None = None,
) -> Tensor:
    """The weights of verl's `agg_loss`.

        token-mean               w = R / tokens
        token-sum                w = R
        seq-mean-token-mean      w = R / (B · tokens of the answer)
        seq-mean-token-sum       w = R / B
        seq-mean-token-sum-norm  w = R / (B · loss_scale_factor)

    verl 2026, `core_algos.agg_loss`. R ranks average their gradients afterwards, so each is R times too large.

    mask: [N, T] of this rank. loss_agg_mode: verl's name. batch_num_tokens, global_batch_size: tokens, and answers B
    with any token, of all ranks; None: the mask's. dp_size: R. loss_scale_factor: None is the padded width T, which
    makes the loss depend on the longest answer in the batch: that is why not to.

    Returns [N, T] in float64. With one rank these are our "token", "sequence", "sum" and "constant". Section 24.
    """
    check_shapes("NT", mask)
    answers, tokens = global_batch_size, batch_num_tokens
    match loss_agg_mode:
        case "token-mean":
            average, total = Average("token"), tokens
        case "token-sum":
            average, total = Average("token"), 1.0
        case "seq-mean-token-mean":
            average, total = Average("sequence"), answers
        case "seq-mean-token-sum":
            average, total = Average("sum"), answers
        case "seq-mean-token-sum-norm":
            average, total = Average("constant", loss_scale_factor or mask.shape[1]), answers
        case _:
            raise ConfigError(
                f'"{loss_agg_mode}" is no loss_agg_mode of verl: token-mean, seq-mean-token-mean and so on.'
            )
    return dp_size * token_weights(mask, average, total=total, dtype=torch.float64)


def capped_weight(cap: float) -> Clip:
    """CISPO's rule with the largest weight itself as the number, as TRL's `epsilon_high` and verl's DPPO have it.

        sg[min(ρ, cap)] · A · log π

    TRL 1.x (`loss_type="cispo"`), verl 2026 (`truncated_ratio_cap`). Our `Clip.high` is the distance from 1 for every
    rule: a default of 0.2 for one and of 5 for the other under one name has cost people CISPO's whole idea.

    cap: the largest weight, a number above 1. Returns a `Clip`.

    A cap of 5 is `Clip(kind="weight", low=None, high=4)`. Section 24.
    """
    return Clip(kind="weight", low=None, high=cap - 1)


def trl_top_entropy(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """TRL's high-entropy tokens: the quantile is taken in float32, and compared with entropies as they are.

        chosen_t = [H_t ≥ float32(τ)]

    TRL 1.x, `get_high_entropy_mask`. Where the quantile falls on one of the entropies, rounding decides whether that
    token is chosen; ours always is.

    entropy, mask: [N, T]. share: of the tokens to choose. Returns [N, T], boolean. In float32 this is our
    `top_entropy`. Section 24.
    """
    check_shapes("NT", entropy, mask)
    if not bool(mask.any()):
        return mask
    return (entropy >= torch.quantile(entropy[mask].float(), 1 - share)) & mask


def sampler_of(old_logp: Tensor, weight: Tensor) -> Tensor:
    """The sampler's log-probabilities that would lead to given mismatch weights.

        log μ = log π_old - log w

    TRL and verl hand their losses weights made beforehand (`importance_sampling_ratio`, `rollout_is_weights`), in which
    what was cut can no longer be told from what was small; ours take the sampler's own numbers.

    old_logp: [N, T]. weight: [N, T], not negative. Returns [N, T]; infinite where the weight is 0.

    A weight of 1 gives old_logp. Section 24.
    """
    check_shapes("NT", old_logp, weight)
    return old_logp - weight.log()


def spread_over_tokens(logp: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities of whole answers, in equal parts on their tokens.

        log π_t = log π(y) / |y|

    TRL's RLOO trainer keeps the old log-probability of an answer only, [N]. For ratios of whole answers nothing else is
    needed; for metrics per token it is too little.

    logp: [N] summed over the answer. mask: [N, T]. Returns [N, T], 0 outside the mask, with logp as the row sums.

    An answer of -6 and three tokens gets -2 on each. Section 11.
    """
    check_shapes("NT N", mask, logp)
    return masked((logp / mask.sum(1).clamp(min=1))[:, None].expand(mask.shape), mask)
