"""Sampling from two policies at once: the geometric mixture that Nash-MD plays against.

There is no cache: every token costs a pass of both models over all that was written so far. That is plain, and fast
enough for answers of some dozen tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain import rng
from posttrain.errors import DataError
from posttrain.models.attention import pack_lengths, packed_attention
from posttrain.models.decoder import Decoder
from posttrain.objectives.preference import mixture_logits
from posttrain.records import Stop
from posttrain.sample.base import Completion, SamplingParams, per_request
from posttrain.sample.torch import choose


class MixtureSampler:
    """Samples from π^(1-c) · π_ref^c, token by token; a draw is uniform(seed, position) as in `TorchSampler`."""

    def __init__(self, model: Decoder, reference: Decoder, *, share: float, slots: int = 128):
        """share: c, what the reference counts. slots: sequences written side by side."""
        self.model, self.reference, self.share, self.slots = model, reference, share, slots
        self.context = model.cfg.max_position_embeddings
        self.version = 0

    def update(self, policy: Any) -> None:
        """Takes over the version; the weights are the learner's own."""
        self.version = policy.version

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """One completion per prompt, in order. Raises DataError for a prompt that leaves no room in the context."""
        params = per_request(params, len(prompts))
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.context:
                raise DataError(f"prompt {i} has {len(prompt)} tokens, but the context holds {self.context}, one of "
                                "them for an answer. Shorten or drop it.")  # fmt: skip
        rows = [_Row(list(p), len(p), asked, seed) for p, asked, seed in zip(prompts, params, seeds, strict=True)]
        while live := [row for row in rows if row.stop is None][: self.slots]:
            logits = mixture_logits(self._after(self.model, live), self._after(self.reference, live), share=self.share)
            for way in dict.fromkeys(row.params for row in live):
                mine = [i for i, row in enumerate(live) if row.params == way]
                u = rng.uniform(*(torch.tensor(x) for x in zip(*((live[i].seed, live[i].place) for i in mine))))  # noqa: B905
                token, logp, kept = choose(logits[mine], way, u.to(logits.device))
                kept = torch.zeros_like(logp) if kept is None else kept
                for i, *said in zip(mine, token.tolist(), logp.tolist(), kept.tolist(), strict=True):
                    live[i].write(*said, self.context)
        return [Completion(tuple(r.tokens[r.prompt :]), tuple(r.logp), tuple(r.kept), r.stop) for r in rows]

    def _after(self, model: Decoder, rows: list["_Row"]) -> Tensor:
        """Logits [N, V] of the token that follows each row."""
        device = model.head_weight.device
        lengths = torch.tensor([row.place for row in rows], device=device)
        packing = pack_lengths(lengths)
        tokens = torch.tensor([t for row in rows for t in row.tokens], device=device)
        hidden = model.flat(tokens, packing.positions, packed_attention(packing))
        return model.logits(hidden[lengths.cumsum(0) - 1])


class _Row:
    """A sequence being written."""

    def __init__(self, tokens: list[int], prompt: int, params: SamplingParams, seed: int):
        self.tokens, self.prompt, self.params, self.seed = tokens, prompt, params, seed
        self.logp: list[float] = []
        self.kept: list[float] = []
        self.stop: Stop | None = None

    @property
    def place(self) -> int:
        """Position of the next token."""
        return len(self.tokens)

    def write(self, token: int, logp: float, kept: float, context: int) -> None:
        """Append a token, and notice the end."""
        self.tokens.append(token)
        self.logp.append(logp)
        self.kept.append(kept)
        if token in self.params.stop_ids:
            self.stop = Stop.END
        elif len(self.logp) == self.params.max_tokens or len(self.tokens) == context:
            self.stop = Stop.LENGTH
