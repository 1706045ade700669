"""Sampling from two policies at once: the geometric mixture that Nash-MD plays against."""

from typing import NamedTuple

from torch import Tensor

from posttrain.models.attention import Cache
from posttrain.models.decoder import Decoder
from posttrain.objectives.preference import mixture_logits
from posttrain.sample.torch import TorchSampler


class MixtureSampler(TorchSampler):
    """Samples from π^(1-c) · π_ref^c, token by token: a `TorchSampler` whose logits are those of two models."""

    def __init__(self, model: Decoder, reference: Decoder, *, share: float, slots: int = 128):
        """share: c, what the reference counts. slots: sequences written side by side."""
        super().__init__(model, slots=slots)
        self.other, self.share = TorchSampler(reference, slots=slots), share

    def _begin(self, rows: int, longest: int) -> "_Caches":
        return _Caches(super()._begin(rows, longest), self.other._begin(rows, longest))

    def _prefill(self, cache: "_Caches", prompts, first_slot: int) -> Tensor:
        ours = super()._prefill(cache.policy, prompts, first_slot)
        return mixture_logits(ours, self.other._prefill(cache.reference, prompts, first_slot), share=self.share)

    def _decode(self, cache: "_Caches", token: Tensor, place: Tensor) -> Tensor:
        ours = super()._decode(cache.policy, token, place)
        return mixture_logits(ours, self.other._decode(cache.reference, token, place), share=self.share)


class _Caches(NamedTuple):
    """Keys and values of both models, the same sequence in the same slot."""

    policy: Cache
    reference: Cache

    def copy(self, *slots) -> None:
        """As `Cache.copy`."""
        self.policy.copy(*slots)
        self.reference.copy(*slots)
