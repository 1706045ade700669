"""Learning rate as a pure function of the step: nothing to save, nothing to resume.

The names are those of Hugging Face's schedulers where one exists. Unlike there, the first step of a warm-up is not
zero: a step that changes no weight would waste a batch and look like a broken optimizer.
"""

import math
from dataclasses import dataclass
from typing import Literal

from posttrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves between the first step and the last."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """constant; linear or cosine from the peak to `final`; wsd: warm up, stay, decay linearly at the very end."""
    warmup: float = 0.0
    """Steps of linear warm-up when 1 or more, a share of all steps when below 1."""
    decay: float = 0.2
    """wsd only: share of all steps that the final decay takes."""
    final: float = 0.0
    """Where the decay ends, as a share of the peak."""

    def __post_init__(self):
        if self.warmup < 0:
            raise ConfigError(f"warmup = {self.warmup}: use a share below 1, or a number of steps (0 switches it off)")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay = {self.decay}: the share of steps spent decaying lies in (0, 1]; 0.2 is usual")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"final = {self.final}: the last learning rate is a share of the peak, between 0 and 1")


def warmup_steps(schedule: Schedule, steps: int) -> int:
    """Number of warm-up steps in a run of `steps`: a share is rounded up, as Hugging Face rounds `warmup_ratio`."""
    return math.ceil(schedule.warmup * steps) if schedule.warmup < 1 else int(schedule.warmup)


def lr(step: int, schedule: Schedule, *, peak: float, steps: int) -> float:
    """The learning rate of step 0 <= `step` < `steps`.

        warm-up   peak · (step + 1) / w                       step < w
        linear    peak · (f + (1 - f) · (1 - p))              p = (step - w) / (steps - w)
        cosine    peak · (f + (1 - f) · (1 + cos(π p)) / 2)
        wsd       peak until step steps · (1 - decay), then linear to f · peak (Hu et al. 2024, arXiv 2404.06395)

    Past the end (a run made longer) the value of the last moment stays. With f = 0 the last step is small, not zero.
    """
    warm = warmup_steps(schedule, steps)
    if step < warm:
        return peak * (step + 1) / warm
    match schedule.kind:
        case "constant":
            return peak
        case "linear":
            left = 1 - _progress(step, warm, steps)
        case "cosine":
            left = (1 + math.cos(math.pi * _progress(step, warm, steps))) / 2
        case "wsd":
            left = 1 - _progress(step, max(warm, steps - math.ceil(schedule.decay * steps)), steps)
        case other:
            raise ConfigError(f'schedule.kind = "{other}" is not one of "constant", "linear", "cosine", "wsd"')
    return peak * (schedule.final + (1 - schedule.final) * left)


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
