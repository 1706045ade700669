"""f-DPO: other divergences than the reverse KL as the leash to the reference.

With a leash D_f(π ‖ π_ref) the reward that a policy implies is β f'(π / π_ref) instead of β log(π / π_ref). So every
loss on log-ratios has a sister for every divergence: put `divergence_link` of the log-ratios in their place. Section 16
of the explainer shows what each does to unlikely answers.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.objectives.preference._pair import EXPONENT_CAP, PerPair
from posttrain.objectives.preference.pairs import dpo
from posttrain.objectives.tokens import check_shapes

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def divergence_link(log_ratio: Tensor, divergence: Divergence, *, alpha: float | None = None) -> Tensor:
    """The implied reward of a log-ratio, in units of β and up to a constant: f' at the ratio π / π_ref = e^u.

        reverse_kl: u        forward_kl: -e^{-u}        js: log σ(u)        alpha: (e^{(α-1) u} - 1) / (α - 1)

    Wang et al. 2023 (arXiv 2309.16240). Its α is 1 - α here; this is TRL's order of the family.

    log_ratio: u = log π - log π_ref, any shape. alpha: set with "alpha" and with no other, else ConfigError; 1 gives
    reverse KL and 0 forward KL (up to the constant).

    Returns the shape of log_ratio. Exponents are cut at 80. Every link rises with slope e^{-u}, σ(-u) or e^{(α-1) u}:
    at u = 0 the slopes are 1, 1, ½ and 1. Section 16.
    """
    if (alpha is None) == (divergence == "alpha"):
        raise ConfigError(
            f'alpha = {alpha} with divergence = "{divergence}": "alpha" needs it, the others do not read it.'
        )
    match divergence:
        case "reverse_kl":
            return log_ratio
        case "forward_kl":
            return -torch.exp((-log_ratio).clamp(max=EXPONENT_CAP))
        case "js":
            return F.logsigmoid(log_ratio)
        case "alpha" if alpha == 1:
            return log_ratio
        case "alpha":
            return torch.expm1(((alpha - 1) * log_ratio).clamp(max=EXPONENT_CAP)) / (alpha - 1)
        case _:
            raise ConfigError(f'divergence = "{divergence}" is not one of reverse_kl, forward_kl, js, alpha.')


def f_dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    divergence: Divergence,
    alpha: float | None = None,
) -> tuple[Tensor, PerPair]:
    """DPO for a leash by another divergence.

        L = -log σ( β [ f'(e^{u_w}) - f'(e^{u_l}) ] )        u = log π - log π_ref

    Wang et al. 2023 (arXiv 2309.16240).

    chosen, rejected, ref_chosen, ref_rejected: [B], beta and results as `dpo`, the rewards being β f'. divergence,
    alpha: as `divergence_link`, with its ConfigErrors.

    With "reverse_kl" it is `dpo`. At the reference the loss is log 2 for each, and the slope in u_w is -β/2 times that
    of the link. Section 16.
    """
    check_shapes("B", chosen, rejected, ref_chosen, ref_rejected)
    nothing = torch.zeros_like(chosen)
    good = divergence_link(chosen - ref_chosen, divergence, alpha=alpha)
    bad = divergence_link(rejected - ref_rejected, divergence, alpha=alpha)
    return dpo(good, bad, nothing, nothing, beta=beta)
