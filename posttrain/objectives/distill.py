"""Losses on a teacher's probabilities: the student learns the distribution at every position, not one token of it.

Three questions make a method. *Whose text?* A file's, the teacher's or the student's own samples: that is the batch,
and no formula here knows it. On the student's own text (on-policy: GKD, MiniLLM) the teacher corrects mistakes that the
student really makes; gradients never flow through the sampling. *Which divergence?* Forward KL covers all that the
teacher says, reverse KL settles on what the student can say as well; `generalized_jsd` lies between. *How much of the
teacher is known?* Everything (logits, or `jsd_from_hidden`, which never holds them all), its top k, or the sampled
token alone (`sampled_reverse_kl`).

Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947) is none of these: it is supervised fine-tuning on
answers that the teacher wrote, so it is `supervised.cross_entropy`. A hard-label term beside a soft one is a second
term with its own weight. Losses are unaveraged, [N, T] or one per row; the teacher gets no gradient. Entry t of
every [N, T, V] array is the distribution token t was drawn from (`tokens.logits_before` moves a model's output there).
Section 06 of the book tells the story.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posttrain.errors import ConfigError
from posttrain.objectives.kl import forward_kl, jensen_shannon, reverse_kl
from posttrain.objectives.returns import rewards_to_go
from posttrain.objectives.tokens import check_shapes, masked


def logit_distillation(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Word-level knowledge distillation: forward KL to the teacher, both softened by a temperature.

        L_t = τ² · kl(softmax(z_T / τ) ‖ softmax(z_S / τ))

    Hinton et al. 2015 (arXiv 1503.02531), section 2; for every word of a text: Kim and Rush 2016 (arXiv 1606.07947).
    With a teacher that alone sees some context C it is context distillation: Askell et al. 2021 (arXiv 2112.00861).

    student_logits, teacher_logits: [N, T, V]. mask: [N, T].
    temperature: τ > 0, else ConfigError. τ² keeps the size of the gradient, which softening alone divides by τ².
    Returns the loss [N, T] in nats (times τ²), 0 outside the mask.

    Teacher (.7, .2, .1), student (.4, .4, .2), τ = 1: 0.183787. For large τ it is the squared distance of the centred
    logits over 2V. Section 06.
    """
    student, teacher = _softened(student_logits, teacher_logits, mask, temperature)
    return temperature**2 * forward_kl(student, teacher)


def generalized_jsd(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, beta: float, temperature: float = 1.0
) -> Tensor:
    """Generalised Jensen-Shannon divergence, between forward and reverse KL.

        L_t = β kl(T ‖ M) + (1 - β) kl(S ‖ M)        M = β T + (1 - β) S
        β = 0: kl(T ‖ S)        β = 1: kl(S ‖ T)

    GKD: Agarwal et al. 2024 (arXiv 2306.13649). Its formula is 0 at both ends; the two lines for β = 0 and 1 are the
    limits of L/β and L/(1 - β), as the codes that train with it have them.

    student_logits, teacher_logits: [N, T, V]. mask: [N, T]. beta: β in [0, 1], else ConfigError.
    temperature: τ > 0 divides both logits, and nothing else is scaled.
    Returns the loss [N, T] in nats, 0 outside the mask.

    β = 1 on the student's own samples is on-policy distillation with the exact reverse KL of every position, of which
    `sampled_reverse_kl` is the one-sample form. Teacher (.7, .2, .1), student (.4, .4, .2): β = 0.1 gives 0.016518,
    0.5 gives 0.046201, 0.9 gives 0.017100, 0 gives 0.183787 and 1 gives 0.192042. Section 06.
    """
    _check_beta(beta)
    return masked(_jsd(*_softened(student_logits, teacher_logits, mask, temperature), beta), mask)


def jsd_from_hidden(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Tensor:
    """`generalized_jsd` straight from hidden states and output matrices, without ever holding all the logits.

        z_i = W h_i        L_i = β kl(T_i ‖ M_i) + (1 - β) kl(S_i ‖ M_i)        for student and teacher

    Agarwal et al. 2024 (arXiv 2306.13649). Each chunk is made again in the backward, so that one chunk's logits exist
    at a time.

    student_hidden: [M, D], student_head: [V, D]; teacher_hidden: [M, E], teacher_head: [V, E]. Row i of both predicts
        the same token (`tokens.predicting` finds the rows).
    beta, temperature: as in `generalized_jsd`. chunk: rows at a time; up to sixteen matrices of chunk · V numbers
        are alive at the peak.
    Returns the loss [M] in nats, in float64 if student_hidden is, else in float32. Only the student gets gradients.

    Equal hidden states under equal heads give 0 for every β. Section 06.
    """
    check_shapes("MD VD ME VE", student_hidden, student_head, teacher_hidden, teacher_head)
    _check_beta(beta)
    _check_temperature(temperature)
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    student_head, teacher_head = student_head.to(wide), teacher_head.detach().to(wide)

    def divergence(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = student.to(wide) @ head.t(), teacher.to(wide) @ teacher_head.t()
        return _jsd(student / temperature, teacher / temperature, beta)

    return _by_chunks(divergence, chunk, student_head, student_hidden, teacher_hidden.detach())


def top_k_renormalised(student_logp: Tensor, teacher_logp: Tensor, mask: Tensor) -> Tensor:
    """Forward KL to the teacher's k best tokens, scaled up as if they were all it says.

        L_t = Σ_{v in top k} p̃_v (log p̃_v - log S_v)        p̃_v = T_v / Σ_{u in top k} T_u

    Discussed, with its bias, in Anshumann et al. 2025 (arXiv 2503.16870).

    student_logp, teacher_logp: [N, T, K], log-probabilities (over the whole vocabulary) of the teacher's K best tokens
        of every position. mask: [N, T].
    Returns the loss [N, T] in nats, 0 outside the mask.

    The student is not renormalised, so it learns to put all its mass on the K: too sure of them by 1 / Σ T. With K = 1
    it is cross-entropy on the teacher's choice. T = (.6, .2) and S = (.3, .3) give 0.641638. Section 06.
    """
    student, teacher = _top(student_logp, teacher_logp, mask)
    teacher = torch.log_softmax(teacher, -1)
    weight = teacher.exp()
    return masked((weight * masked(teacher - student, weight > 0)).sum(-1), mask)


def top_k_bucketed(student_logp: Tensor, teacher_logp: Tensor, mask: Tensor) -> Tensor:
    """Forward KL to the teacher's k best tokens and one bucket for the rest.

        L_t = Σ_{v in top k} T_v (log T_v - log S_v) + T_r (log T_r - log S_r)        T_r = 1 - Σ_{v in top k} T_v

    Data-processing inequality: never more than the KL over the whole vocabulary (Cover and Thomas 2006, section 2.8).

    student_logp, teacher_logp: [N, T, K] as in `top_k_renormalised`. mask: [N, T].
    Returns the loss [N, T] in nats, 0 outside the mask.

    The student learns how much the rest weighs, though not how it is shared out; where the K probabilities agree it is
    0. T = (.6, .2) and S = (.3, .3) give 0.196166. For another divergence give `with_rest(...)` of both to
    `generalized_jsd`, as log-probabilities are logits. Section 06.
    """
    student, teacher = _top(student_logp, teacher_logp, mask)
    return forward_kl(with_rest(student), with_rest(teacher))


def with_rest(logp: Tensor) -> Tensor:
    """The k best tokens and a bucket for all others, as a distribution.

        (log p_1, ..., log p_k, log(1 - Σ p))

    logp: [..., K], log-probabilities of K different tokens. Returns [..., K + 1], whose exponentials sum to 1. What
    rounding takes from the rest is given back: it counts as at least the machine's ε (without gradient there).

    (.5, .3) becomes (.5, .3, .2). Section 06.
    """
    total = logp.logsumexp(-1, keepdim=True).clamp(max=-torch.finfo(logp.dtype).eps)
    return torch.cat((logp, torch.log(-torch.expm1(total))), -1)


def sampled_reverse_kl(logp: Tensor, teacher_logp: Tensor, mask: Tensor, *, discount: float = 0.0) -> Tensor:
    """Reverse KL on the student's own samples as a policy gradient: the teacher criticises every token.

        L_t = -sg[A_t] · log S(y_t)        A_t from `teacher_advantage`

    MiniLLM: Gu et al. 2024 (arXiv 2306.08543); γ = 0 is the on-policy distillation of Lu 2025 (Thinking Machines).

    logp, teacher_logp: [N, T] of tokens that the student sampled. mask: [N, T]. discount: γ of `teacher_advantage`.
    Returns the loss [N, T], 0 outside the mask; its gradient counts, its value means nothing.

    It is REINFORCE; where samples serve more than one step give the advantage to `policy_loss`. The expected gradient
    is that of kl(S ‖ T) at every visited position for γ = 0, and of kl(S ‖ T) over whole answers for γ = 1.
    Section 06.
    """
    return -teacher_advantage(logp, teacher_logp, mask, discount=discount) * masked(logp, mask)


def teacher_advantage(logp: Tensor, teacher_logp: Tensor, mask: Tensor, *, discount: float = 0.0) -> Tensor:
    """How much better the teacher likes a sampled token than the student did, now and discounted later.

        A_t = Σ_{s ≥ t} γ^(s-t) (log T(y_s) - log S(y_s))

    γ = 1 is R_t of MiniLLM: Gu et al. 2024 (arXiv 2306.08543); γ = 0, each token for itself, is Lu 2025.

    logp: [N, T], of the student that sampled. teacher_logp, mask: [N, T]. discount: γ in [0, 1], else ConfigError; its
        power counts tokens under the mask.
    Returns [N, T] in nats without gradient, 0 outside the mask: the return of a reward of minus k1.

    Where teacher and student agree it is 0. Log-ratios (1, -2) give (1, -2) at γ = 0 and (-1, -2) at γ = 1. Section 06.
    """
    check_shapes("NT", logp, teacher_logp, mask)
    if not 0 <= discount <= 1:
        raise ConfigError(f"discount = {discount} must lie between 0 (this token alone) and 1 (all that follows).")
    return rewards_to_go((teacher_logp - logp).detach(), mask, gamma=discount)


def minillm_advantage(logp: Tensor, teacher_logp: Tensor, mask: Tensor) -> Tensor:
    """What a token does to the rest of the answer: the part of the reverse KL that no single position shows.

        A_t = 1/n_t Σ_{s > t} (log T(y_s) - log S(y_s))        n_t tokens follow t

    MiniLLM: Gu et al. 2024 (arXiv 2306.08543), section 2.2: single-step decomposition and length normalisation. Beside
    the policy-gradient term with this advantage stands the present token's share without sampling noise, which is
    `generalized_jsd` with β = 1. Samples from a mixture with the teacher are weighed back by `mismatch_weight`.

    logp, teacher_logp, mask: [N, T] as in `teacher_advantage`.
    Returns [N, T] in nats without gradient; 0 outside the mask and at the last token, which nothing follows.

    Log-ratios (1, -2, -4) give (-3, -4, 0): a mean, as a sum would favour short answers. Section 06.
    """
    total = teacher_advantage(logp, teacher_logp, mask, discount=1.0)
    own = teacher_advantage(logp, teacher_logp, mask)
    following = mask.flip(1).cumsum(1).flip(1) - 1
    return (total - own) / following.clamp(min=1)


def logprobs_of(hidden: Tensor, weight: Tensor, ids: Tensor, *, temperature: float = 1.0, chunk: int = 256) -> Tensor:
    """Log-probabilities of K tokens at every position, straight from hidden states: what top-k distillation reads.

        ℓ_ik = z_{i, v_ik} - logsumexp(z_i)        z_i = W h_i / τ

    The many-target form of `tokens.logprobs_from_hidden`; for stored top-k teachers as in Anshumann et al. 2025
    (arXiv 2503.16870).

    hidden: [M, D], row i predicts one token (`tokens.predicting` finds the rows). weight: [V, D]. ids: [M, K].
    temperature: τ > 0, else ConfigError. chunk: rows whose logits exist at one time; they are made again in the
        backward.
    Returns [M, K] in nats, in float64 if hidden is, else in float32.

    A zero weight matrix gives -log V everywhere. Section 06.
    """
    check_shapes("MD VD MK", hidden, weight, ids)
    _check_temperature(temperature)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    weight = weight.to(wide)

    def gathered(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        return torch.log_softmax(hidden.to(wide) @ weight.t() / temperature, -1).gather(1, ids)

    return _by_chunks(gathered, chunk, weight, hidden, ids)


def _by_chunks(function: Callable[..., Tensor], chunk: int, weight: Tensor, hidden: Tensor, other: Tensor) -> Tensor:
    """function(hidden, weight, other) for `chunk` rows at a time, forgetting everything but the result in between."""
    parts = [
        checkpoint(function, h, weight, o, use_reentrant=False)
        for h, o in zip(hidden.split(chunk), other.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The divergence over the last dimension of logits [..., V]."""
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    return jensen_shannon(student, teacher, beta)


def _softened(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both logits over the temperature, 0 outside the mask; the teacher's without gradient."""
    check_shapes("NTV NTV NT", student, teacher, mask)
    _check_temperature(temperature)
    student, teacher = masked(student, mask[..., None]), masked(teacher.detach(), mask[..., None])
    return student / temperature, teacher / temperature


def _top(student_logp: Tensor, teacher_logp: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both log-probabilities [N, T, K], equal outside the mask; the teacher's without gradient."""
    check_shapes("NTK NTK NT", student_logp, teacher_logp, mask)
    return masked(student_logp, mask[..., None]), masked(teacher_logp.detach(), mask[..., None])


def _check_beta(beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta = {beta} must lie between 0 (forward KL) and 1 (reverse KL); GKD's codes use 0.5.")


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ConfigError(f"temperature = {temperature}: logits are divided by it, so it must be positive; 1 is usual.")
