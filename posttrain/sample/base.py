"""The sampler port: prompts of token ids in, completions of token ids out.

A sampler knows tokens, never text. It reports what it believed of each token it chose, so that the learner can compare
(`posttrain.sample.torch.gap`), and it takes one seed per request: what a request draws depends on nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.errors import ConfigError, DataError
from posttrain.records import Stop


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when to stop."""

    temperature: float = 1.0
    """Logits are divided by it. 0: greedy, the most probable token; log-probabilities are then recorded at 1."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens that holds this share of the mass. 1: all (what training wants)."""
    top_k: int = 0
    """Keep this many most probable tokens, before `top_p` is applied to what is left. 0: all (what training wants)."""
    max_tokens: int = 64
    """Length limit of one completion, its stop token included."""
    stop_ids: tuple[int, ...] = ()
    """A completion ends after any of these tokens."""

    def __post_init__(self):
        problems = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(
                f"temperature = {self.temperature}: must be 0 (greedy) or positive; 1 samples the model as it is"
            )
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p = {self.top_p}: must lie in (0, 1]; 1 keeps every token")
        if self.top_k < 0:
            problems.append(f"top_k = {self.top_k}: must be 0 (keep every token) or the number of tokens to keep")
        if self.max_tokens < 1:
            problems.append(f"max_tokens = {self.max_tokens}: a completion needs room for one token at least")
        if any(not isinstance(s, int) or s < 0 for s in self.stop_ids):
            problems.append(f"stop_ids = {self.stop_ids}: token ids are integers from 0")
        if problems:
            raise ConfigError("sampling: " + "; ".join(problems) + ".")

    @property
    def cuts(self) -> bool:
        """Whether tokens may be left out: then `Completion.kept` tells how much mass was kept."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)

    @property
    def recorded_temperature(self) -> float:
        """The temperature of the recorded log-probabilities, at which the learner must take its own: 1 for greedy."""
        return self.temperature or 1.0


def per_request(params: SamplingParams | Sequence[SamplingParams], n: int) -> list[SamplingParams]:
    """n params, from one for all or one per request. Raises DataError where their number is another."""
    if isinstance(params, SamplingParams):
        return [params] * n
    if len(params) != n:
        raise DataError(f"{n} prompts came with {len(params)} sampling params; give one for all, or one per prompt")
    return list(params)


@dataclass(frozen=True)
class Completion:
    """What one request got. Every tuple has one entry per token; the stop token, if any, is the last."""

    tokens: tuple[int, ...]
    logp: tuple[float, ...]
    """log softmax(logits / temperature) over the whole vocabulary."""
    kept: tuple[float, ...]
    """Log of the mass that top-k and top-p kept; 0 without a cut. `logp - kept` is the law really sampled from."""
    stop: Stop
    """END after a stop id, LENGTH where the limit came first."""


class Sampler(Protocol):
    """Writes completions."""

    version: int
    """The learner's version of the weights in use."""
    context: int
    """Longest prompt with completion, in tokens."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """One completion per prompt, in order. params: one for all, or one per prompt.

        Requests with the same prompt, params and seed get the same completion.
        """
        ...

    def update(self, policy: Any) -> None:
        """Take over the weights and version of a learner."""
        ...
