"""How other libraries play Nash-MD. Section 17 of the book."""

from torch import Tensor

from posttrain.objectives.tokens import check_shapes, detached, masked


def trl_nash_md(
    logp: Tensor, ref_logp: Tensor, mask: Tensor, win_rate: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """TRL's Nash-MD: every token is charged for its own log-ratio alone.

        L = -(P(y ≻ y') - ½) log π(y) + β Σ_t sg[log π_t - log π_ref,t] log π_t

    Munos et al. 2023 (arXiv 2312.00886), section 7, where the leash is the KL of whole answers: the choice of a token
    changes the log-ratios of all that follow, so its gradient should be charged for them too, as `nash_md` does.
    Without them the leash is too weak on early tokens, and its gradient is not that of a KL.

    logp, ref_logp, mask: [N, T]. win_rate: [N], P(y ≻ y'). beta: strength of the leash.

    Returns the surrogate [N] and per answer `win_rate` and `kl`. For answers of one token it is `nash_md`. Section 17.
    """
    check_shapes("NT NT NT N", logp, ref_logp, mask, win_rate)
    kept, ratio = masked(logp, mask), masked(logp - ref_logp, mask).detach()
    loss = beta * (ratio * kept).sum(1) - (win_rate.detach() - 0.5) * kept.sum(1)
    return loss, detached(win_rate=win_rate, kl=ratio.sum(1))
