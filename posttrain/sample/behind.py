"""A sampler that lags behind the learner, or whose weights are rounded: a mismatch made on purpose, to study it.

In large systems both come for free: engines sample in another precision, and generate while the learner goes on. Here
they are set, so that their price and the corrections (`objectives.mismatch`) can be measured. Section 24 of the book
tells the story.
"""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from posttrain import dist
from posttrain.errors import ConfigError
from posttrain.models.decoder import Decoder
from posttrain.sample.base import Completion, SamplingParams
from posttrain.sample.torch import TorchSampler

Rounding = Literal["none", "bfloat16", "int8", "int4"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
_LEVELS = {"int8": 127, "int4": 7}


class BehindSampler:
    """Samples from the weights of `lag` updates ago, rounded.

    It holds a copy of the model and the last lag + 1 states of what is trained; a checkpoint keeps these, since later
    samples come from them.
    """

    def __init__(self, model: Decoder, *, slots: int = 128, lag: int = 0, rounding: Rounding = "none"):
        """lag: how often `update` is called before weights are used. rounding: of the matrices in the layers."""
        if lag < 0 or rounding not in ROUNDINGS:
            raise ConfigError(f'lag = {lag}, rounding = "{rounding}": a lag is 0 or more, a rounding one of '
                              f'{", ".join(ROUNDINGS)}.')  # fmt: skip
        if dist.world() > 1:
            raise ConfigError(
                f"lag = {lag}, rounding = {rounding} with {dist.world()} processes: a mismatch for study is made in "
                "one process. Start the run without torchrun, or leave both out."
            )
        self.own, self.rounding = copy.deepcopy(model).requires_grad_(False), rounding
        self._take(dict(model.named_parameters()))  # what is never trained is rounded once
        self.sampler = TorchSampler(self.own, slots=slots)
        self.context = self.sampler.context
        self.past: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=lag + 1)

    @property
    def version(self) -> int:
        """Of the weights in use."""
        return self.past[0][0]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """One completion per prompt, in order."""
        return self.sampler.generate(prompts, params, seeds)

    @torch.no_grad()
    def update(self, policy: Any) -> None:
        """Remember the learner's weights; go over to the oldest that are remembered. Nothing if they are known."""
        if self.past and self.past[-1][0] == policy.version:
            return
        now = {name: p.detach().clone() for name, p in policy.model.named_parameters() if p.requires_grad}
        self.past.append((policy.version, now))
        self._take(self.past[0][1])

    def state(self) -> dict[str, Any]:
        """The weights that are still to be sampled from."""
        return {"past": list(self.past)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.past.clear()
        self.past.extend((version, weights) for version, weights in state["past"])
        self._take(self.past[0][1])

    @torch.no_grad()
    def _take(self, weights: Mapping[str, Tensor]) -> None:
        own = dict(self.own.named_parameters())
        for name, weight in weights.items():
            inner = name.startswith("layers.") and weight.dim() == 2
            own[name].copy_(rounded(weight, self.rounding) if inner else weight)


def rounded(weight: Tensor, rounding: Rounding) -> Tensor:
    """A matrix [out, in] as it would be after storing it in fewer bits.

        bfloat16: 8 bits of mantissa        int8, int4: s_i · round(w_ij / s_i), s_i = max_j |w_ij| / (127 or 7)

    Symmetric, one scale per row, to the nearest: the plainest quantisation there is. A row (1, -0.6, 0.1) in int4 is
    (1, -0.571, 0.143).
    """
    if rounding == "none":
        return weight
    if rounding == "bfloat16":
        return weight.to(torch.bfloat16).to(weight.dtype)
    scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / _LEVELS[rounding]
    return scale * (weight / scale).round()
