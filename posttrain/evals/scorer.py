"""How good a reward model is on comparisons that it has not seen: in all, among answers of one length, and how sure."""

import torch
from torch import Tensor

from posttrain.objectives.reward import calibration_error
from posttrain.train.metrics import Metrics

NEAR = 0.1
"""Two answers are of one length if they differ by at most this share of the longer one."""
BINS = 5


def scorer_metrics(gap: Tensor, better: Tensor, worse: Tensor) -> Metrics:
    """What the gaps between scores say: metrics named eval_*.

    gap: [M] score of the better answer less that of the worse. better, worse: [M] their lengths in tokens.

    Accuracy among answers of one length cannot come from counting words, nor can that on pairs whose better answer is
    the shorter one; `eval_longer_share` is how often the scorer prefers the longer of two, whatever people said.
    """
    right, apart = gap > 0, (better - worse).abs()
    near = apart <= NEAR * torch.maximum(better, worse)
    shorter, unequal = better < worse, apart > 0
    return {
        "eval_accuracy": (right.sum(), len(gap)),
        "eval_margin": (gap.sum(), len(gap)),
        "eval_accuracy_matched": (right[near].sum(), near.sum()),
        "eval_accuracy_shorter": (right[shorter].sum(), shorter.sum()),
        "eval_longer_share": ((right != shorter)[unequal].sum(), unequal.sum()),
        "eval_calibration_error": (calibration_error(gap, bins=BINS)[0], 1),
    }


def reliability(gap: Tensor, bins: int = BINS) -> dict[str, list[float]]:
    """The calibration curve: per bin of confidence its pairs, the mean confidence, and the share that is right."""
    table = calibration_error(gap, bins=bins)[1]
    return dict(zip(("pairs", "confidence", "right"), table.T.tolist(), strict=True))


def drawn(curve: dict[str, list[float]], width: int = 40) -> str:
    """The curve for a terminal: a bar for the share that is right, a mark where it would end if all were calibrated."""
    lines = ["how sure the scorer is, and how often it is right (| marks where the bar should end):"]
    for n, sure, right in zip(*curve.values(), strict=True):
        if n:
            bar = ["█" if i < round(right * width) else " " for i in range(width + 1)]
            bar[min(width, round(sure * width))] = "|"
            lines.append(f"  sure {sure:4.0%}  {''.join(bar)} right {right:4.0%} of {n:.0f}")
    return "\n".join(lines)
