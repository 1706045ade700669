"""Scores of reasoning steps: how a process reward model learns them, and what is made of them.

A step is judged at one token, the last of the separator that ends it; there its mask is true. Scores are logits at that
token (a value head's output, or the difference of two classes), labels are probabilities that the step is right, and
both come as [N, T] like every array about tokens. Section 20 of the explainer tells the story; where the separators lie
is `posttrain.chat.steps`' business.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.returns import last_token
from posttrain.objectives.tokens import check_shapes, detached, masked

Reduction = Literal["min", "product", "last", "mean", "odds"]
REDUCTIONS = ("min", "product", "last", "mean", "odds")


def process(score: Tensor, label: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Process reward model: binary cross-entropy of the verdict on each step.

        L_k = -ℓ_k log σ(s_k) - (1 - ℓ_k) log σ(-s_k)

    Uesato et al. 2022 (arXiv 2211.14275); Lightman et al. 2023 (arXiv 2305.20050). With soft labels: Math-Shepherd,
    Wang et al. 2023 (arXiv 2312.08935).

    score: [N, T] logits. label: [N, T], the probability that the step is right: 0, 1 or between. mask: [N, T], true
        where a step ends; what stands elsewhere is not read.

    Returns the loss [N, T], 0 outside the mask, and per step `accuracy` (of the sign) and `good_share`.

    Score 0 costs log 2 whatever the label. Section 20.
    """
    check_shapes("NT", score, label, mask)
    score = masked(score, mask)
    target = masked(label.to(score.dtype), mask)
    loss = masked(F.binary_cross_entropy_with_logits(score, target, reduction="none"), mask)
    right = ((score > 0) == (target > 0.5)) & mask
    return loss, detached(accuracy=right.to(score.dtype), good_share=target)


def two_class_score(logits: Tensor, *, good: int = 1, bad: int = 0) -> Tensor:
    """The log-odds of "good" where a model gives each verdict a logit of its own.

        s = z_good - z_bad,   so that σ(s) = exp(z_good) / (exp(z_good) + exp(z_bad))

    A head of two classes trained with cross-entropy (TRL's PRMTrainer) is `process` on this score, and so is a language
    model that answers with one of two tokens, as in Lightman et al. 2023 (arXiv 2305.20050): the rest of the vocabulary
    is left out.

    logits: [..., V]. good, bad: their indices in the last dimension. Returns [...], differentiable.

    Logits (0, log 3) have the score log 3 and the probability 3/4. Section 20.
    """
    if good == bad:
        raise ConfigError(f"good = bad = {good}: a verdict needs two different classes.")
    return logits[..., good] - logits[..., bad]


def answer_score(score: Tensor, mask: Tensor, how: Reduction = "min") -> Tensor:
    """One score for a solution, from the scores of its steps.

        min      min_k p_k              Math-Shepherd (arXiv 2312.08935): as good as its worst step
        product  Π_k p_k                Lightman et al. (arXiv 2305.20050): all steps right; falls with every step
        last     p_K                    Snell et al. (arXiv 2408.03314): nearly an outcome model
        mean     (1/K) Σ_k p_k          rises with easy steps put in
        odds     σ(Σ_k s_k)             log-odds added up, as if steps were independent witnesses

    score: [N, T] logits at step ends, p = σ(s). mask: [N, T], true there. how: which.

    Returns [N], a probability from 0 to 1; 0 for an answer without steps, which is not to be chosen. Raises ConfigError
    for another word.

    Steps of probability (0.9, 0.5, 0.8) give min 0.5, product 0.36, last 0.8, mean 0.7333, odds 0.972973. Section 20.
    """
    check_shapes("NT", score, mask)
    some = mask.any(1)
    score = masked(score, mask)
    match how:
        case "min":
            found = torch.sigmoid(torch.where(mask, score, torch.inf).amin(1))
        case "product":
            found = masked(F.logsigmoid(score), mask).sum(1).exp()
        case "last":
            found = torch.sigmoid(masked(score, last_token(mask)).sum(1))
        case "mean":
            found = masked(torch.sigmoid(score), mask).sum(1) / mask.sum(1).clamp(min=1)
        case "odds":
            found = torch.sigmoid(score.sum(1))
        case _:
            raise ConfigError(f'how = "{how}" is not one of {", ".join(REDUCTIONS)}.')
    return masked(found, some)


def soft_estimate(right: Tensor, mask: Tensor) -> Tensor:
    """Label of a step from roll-outs: the share that still reaches the right answer.

        SE = (1/M) Σ_j [a_j = a*]

    Math-Shepherd: Wang et al. 2023 (arXiv 2312.08935). It is a value ("can one still succeed from here?"),
    not a judgement of the step: a wrong step that is easily mended keeps a high label.

    right: [S, M] verdicts on M roll-outs from each of S steps. mask: [S, M], true where a roll-out could be graded.

    Returns [S], from 0 to 1; 0 where nothing was graded (leave such steps out of the loss).

    Two right roll-outs of eight give 0.25, with standard error √(p(1-p)/M) = 0.153. Section 20.
    """
    check_shapes("SM", right, mask)
    share = ((right > 0.5) & mask).sum(1) / mask.sum(1).clamp(min=1)
    return share.to(torch.get_default_dtype())


def hard_estimate(right: Tensor, mask: Tensor) -> Tensor:
    """Label of a step from roll-outs: 1 where any of them reaches the right answer.

        HE = [∃ j: a_j = a*]

    Math-Shepherd: Wang et al. 2023 (arXiv 2312.08935). More roll-outs can only turn 0 into 1.

    right, mask: [S, M] as in `soft_estimate`. Returns [S], 0 or 1.

    One right roll-out of eight gives 1. Section 20.
    """
    check_shapes("SM", right, mask)
    return ((right > 0.5) & mask).any(1).to(torch.get_default_dtype())


def until_first_error(label: Tensor, mask: Tensor) -> Tensor:
    """The steps up to and including the first wrong one: beyond it right and wrong mean little.

        keep_k = mask_k · [no step before k is wrong]

    Lightman et al. 2023 (arXiv 2305.20050), section 2.6: PRM800K is labelled no further.

    label: [N, T], below 1/2 for a wrong step. mask: [N, T] step ends. Returns [N, T], a mask.

    Labels (1, 0, 1, 0) keep the first two. Section 20.
    """
    check_shapes("NT", label, mask)
    wrong = mask & (label < 0.5)
    return mask & (wrong.long().cumsum(1) - wrong.long() == 0)


def progress(value: Tensor, mask: Tensor, start: Tensor) -> Tensor:
    """Step rewards that pay for improvement alone, so that adding empty steps earns nothing.

        r_k = p_k - p_{k-1},   p_0 = start,   Σ_k r_k = p_K - p_0

    Potential-based shaping: Ng, Harada and Russell 1999. Paying p_k itself is hacked by taking more steps.

    value: [N, T] probability of success after each step. mask: [N, T] step ends. start: [N], that of the bare prompt.

    Returns [N, T], 0 outside the mask.

    Values (0.5, 0.5, 0.9) from 0.4 give (0.1, 0, 0.4). Section 20.
    """
    check_shapes("NT NT N", value, mask, start)
    gained, before = [], start
    for now, ends in zip(value.unbind(1), mask.unbind(1), strict=True):
        gained.append(masked(now - before, ends))
        before = torch.where(ends, now, before)
    return torch.stack(gained, 1)


def min_form(reward: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """Step rewards re-weighted so that their sum is nearly the worst of them.

        r'_k = w_k · r_k,   w = softmax over the steps of -r_k / τ;   τ → 0: Σ_k r'_k → min_k r_k

    PURE: Cheng et al. 2025 (arXiv 2504.15275). A return that is a sum makes more steps worth more; a minimum does not.

    reward: [N, T] step scores. mask: [N, T] step ends. temperature: τ > 0.

    Returns [N, T], 0 outside the mask. Raises ConfigError for τ ≤ 0.

    Rewards (1, 1) become (1/2, 1/2) at any τ. Section 20.
    """
    check_shapes("NT", reward, mask)
    if temperature <= 0:
        raise ConfigError(f"temperature = {temperature}: must be positive; the smaller, the nearer to the minimum.")
    reward = masked(reward, mask)
    weight = torch.softmax(torch.where(mask, -reward / temperature, torch.finfo(reward.dtype).min), 1)
    return weight * reward


def implicit_process_rewards(logp: Tensor, ref_logp: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Process rewards that a language model learns from outcomes alone.

        r_t = β · (log π(y_t | y_<t) - log π_ref(y_t | y_<t))

    Yuan et al. 2024 (arXiv 2412.01981); PRIME: Cui et al. 2025 (arXiv 2502.01456). Train π with `outcome` on the sum
    over the answer as the logit; the sum up to t is then a value of what is written so far.

    logp, ref_logp, mask: [N, T]. beta: scale of the log-ratio, positive.

    Returns [N, T], 0 outside the mask. A model that equals its reference gives 0. Section 20.
    """
    check_shapes("NT", logp, ref_logp, mask)
    return beta * (masked(logp, mask) - masked(ref_logp, mask))
