"""Sampling in this process, with the learner's own weights and a key-value cache.

Continuous batching: finished sequences leave, the rest move together, and waiting requests take the free slots. Equal
prompts of one refill (a group) are computed once and their cache is copied. Draws are counter-based: the token at
position t of a request is chosen by uniform(seed, t), so neither the slot nor the company of a request changes its
draws. (In float32 a matrix product's last bits depend on the batch's shape, so that a draw which falls on the edge
between two tokens, about one in a million, can still come out differently. float64 shows the identity exactly.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from posttrain import dist, rng
from posttrain.errors import ConfigError, DataError, InvariantError, NonFiniteError
from posttrain.heap import keep_freed
from posttrain.models.attention import Cache, pack_lengths, prefill_attention
from posttrain.models.decoder import Decoder
from posttrain.models.decoding import Decoding
from posttrain.records import Stop
from posttrain.sample.base import Completion, SamplingParams, per_request

_PREFILL_TOKENS = 16384  # prompts computed in one pass hold at most this many tokens (or are one prompt)


class TorchSampler:
    """Samples from a Decoder that it shares with the learner.

    slots: sequences decoded side by side. max_len: longest prompt with completion; default: the model's context.
    dtype: of the products in decoding, such as torch.bfloat16; default: the model's own.
    """

    def __init__(
        self, model: Decoder, *, slots: int = 128, max_len: int | None = None, dtype: torch.dtype | None = None
    ):
        if slots < 1:
            raise ConfigError(f"slots = {slots}: the sampler decodes at least one sequence at a time")
        keep_freed()
        self.learner_model = self.model = model
        if dist.world() > 1:
            from posttrain.scale.distributed import whole_copy

            self.model = whole_copy(model)
        self.slots = slots
        self.context = min(max_len or model.cfg.max_position_embeddings, model.cfg.max_position_embeddings)
        self.version = 0
        self.decoding = Decoding(self.model, dtype)

    def update(self, policy: Any) -> None:
        """Moves no weights: sampler and learner hold the same module. Takes over the version.

        Of a sharded model the sampler holds a whole copy in each process, which is brought up to date here.

        Raises InvariantError if `policy.model` is another module, whose training would never reach this sampler.
        """
        if policy.model is not self.learner_model:
            raise InvariantError(
                "the sampler holds another module than the learner, so it would go on sampling from untrained weights. "
                "Build TorchSampler from learner.model."
            )
        if self.model is not policy.model:
            from posttrain.scale.distributed import refresh

            refresh(self.model, policy.model)
        self.version = policy.version

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """One completion per prompt, in order. params: one for all, or one per prompt.

        Raises DataError for a prompt that is empty or leaves no room in the context, NonFiniteError for logits that are
        no numbers.
        """
        if not prompts:
            return []
        params = per_request(params, len(prompts))
        limits = self._limits(prompts, params, seeds)
        laws = _Laws(params, self.model.head_weight)
        longest = max(len(p) + n for p, n in zip(prompts, limits, strict=True))
        cache = self._begin(min(self.slots, len(prompts)), longest)  # of this call: training gets its memory back
        record = _Record(len(prompts), max(limits), self.model.head_weight)
        draws = _draws(prompts, seeds, record.width).to(self.model.head_weight.device)
        nobody = live = _Live.none(draws.device)
        begun = 0
        while begun < len(prompts) or len(live):
            free, waiting = self.slots - len(live), len(prompts) - begun
            if waiting and free >= min(waiting, max(1, self.slots // 8)):  # a pass for one new row would be dear
                fresh = self._next(prompts, begun, free)
                logits = self._prefill(cache, [prompts[r] for r in fresh], first_slot=len(live))
                new = _Live.start(fresh, prompts, limits, record.width, logits.device)
                begun += len(fresh)
            else:
                logits = self._decode(cache, live.token, live.place - 1)
                live, new = nobody, live
            new.token, logp, kept = laws.choose(logits, new, draws.index_select(0, new.cell))
            record.write(new.cell, new.token, logp, kept)
            live = live.join(new.advance())
            live = self._retire(cache, live, laws, record)
        return record.completions(params)

    def _limits(self, prompts, params: Sequence[SamplingParams], seeds) -> list[int]:
        """Tokens that each completion may have."""
        if len(seeds) != len(prompts):
            raise DataError(f"{len(prompts)} prompts came with {len(seeds)} seeds; every request needs its own seed")
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.context:
                start = " ".join(map(str, prompt[:8]))
                raise DataError(
                    f"prompt {i} has {len(prompt)} tokens (it starts with ids {start or '-'}), but the context holds "
                    f"{self.context}, one of them for an answer. Shorten or drop it; an empty one needs a first token."
                )
        return [min(s.max_tokens, self.context - len(p)) for s, p in zip(params, prompts, strict=True)]

    def _next(self, prompts, begun: int, free: int) -> list[int]:
        """The requests of the next refill: as many as slots are free, or as the pass may hold tokens."""
        fresh, tokens, seen = [], 0, set()
        for r in range(begun, min(begun + free, len(prompts))):
            key = tuple(prompts[r])
            tokens += 0 if key in seen else len(key)
            if fresh and tokens > _PREFILL_TOKENS:
                break
            seen.add(key)
            fresh.append(r)
        return fresh

    def _begin(self, rows: int, longest: int) -> Cache:
        """An empty cache, and weights as they are now."""
        self.decoding.refresh()
        return Cache(self.model, rows, longest)

    def _decode(self, cache: Cache, token: Tensor, place: Tensor) -> Tensor:
        """Logits [M, V] after one more token of each of the first M slots."""
        return self.decoding(token, place, cache)

    def _prefill(self, cache: Cache, prompts, first_slot: int) -> Tensor:
        """Logits [N, V] after each prompt; keys and values of prompt i land in slot first_slot + i."""
        device = self.model.head_weight.device
        rows: dict[tuple[int, ...], int] = {}
        row = torch.tensor([rows.setdefault(tuple(p), len(rows)) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in rows], device=device)
        slot = torch.arange(len(prompts), device=device) + first_slot
        first = torch.full_like(lengths, len(prompts)).scatter_reduce(0, row, slot, "amin", include_self=False)
        tokens = torch.tensor([t for p in rows for t in p], device=device)
        ends = lengths.cumsum(0)
        packing = pack_lengths(lengths)
        attention = prefill_attention(cache, first, packing)
        hidden = self.model.flat(tokens, packing.positions, attention, self.decoding.dtype)
        copies = slot != first[row]
        if copies.any():
            cache.copy(first[row][copies], slot[copies], int(lengths.max()))
        return self.model.logits(hidden[ends - 1])[row]

    def _retire(self, cache: Cache, live: "_Live", laws: "_Laws", record: "_Record") -> "_Live":
        """Drop finished sequences; the last live ones move into their slots, so that the live stay the first M."""
        done = laws.stopped(live) | (live.cell >= live.end)
        if not done.any():
            return live
        record.length[live.request[done]] = live.cell[done] - live.request[done] * record.width
        m = int((~done).sum())
        order = torch.arange(m, device=done.device)
        holes, movers = done[:m].nonzero()[:, 0], (~done[m:]).nonzero()[:, 0] + m
        if len(holes):
            cache.copy(movers, holes, int(live.place[movers].max()))
            order[holes] = movers
        return live.take(order)


@dataclass
class _Live:
    """The sequences being written, one entry per used slot; int64 [M] each."""

    request: Tensor
    token: Tensor
    """The last token chosen, whose keys are not yet in the cache."""
    place: Tensor
    """Position of the next token: 0 is the prompt's first."""
    cell: Tensor
    """Where the next token stands in the flat record."""
    end: Tensor
    """The cell at which the request has used up its limit."""

    @classmethod
    def none(cls, device: torch.device) -> "_Live":
        return cls(*(torch.zeros(0, dtype=torch.long, device=device) for _ in fields(cls)))

    @classmethod
    def start(cls, fresh: list[int], prompts, limits, width: int, device: torch.device) -> "_Live":
        columns = [(r, 0, len(prompts[r]), r * width, r * width + limits[r]) for r in fresh]
        return cls(*torch.tensor(columns, device=device).T.contiguous())

    def __len__(self) -> int:
        return len(self.request)

    def take(self, order: Tensor) -> "_Live":
        return _Live(*(getattr(self, f.name)[order] for f in fields(self)))

    def join(self, other: "_Live") -> "_Live":
        if not len(self):
            return other
        return _Live(*(torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(self)))

    def advance(self) -> "_Live":
        """One token further, in place."""
        self.place += 1
        self.cell += 1
        return self


def _draws(prompts, seeds: Sequence[int], width: int) -> Tensor:
    """uniform(seed, position) of every cell of the record, made at once: [requests * width] float64."""
    place = torch.tensor([len(p) for p in prompts])[:, None] + torch.arange(width)
    return rng.uniform(torch.tensor(seeds)[:, None].expand_as(place), place).flatten()


class _Laws:
    """How each request chooses and where it stops: usually one way for all, else rows of a step are sorted by it."""

    def __init__(self, params: Sequence[SamplingParams], weight: Tensor):
        ways: dict[tuple, int] = {}
        of = [ways.setdefault((p.temperature, p.top_p, p.top_k, p.stop_ids), len(ways)) for p in params]
        self.ways = [params[of.index(i)] for i in range(len(ways))]
        self.of = torch.tensor(of, device=weight.device)
        self.stops = torch.zeros(len(ways), len(weight), dtype=torch.bool, device=weight.device)
        for row, way in zip(self.stops, self.ways, strict=True):
            if way.stop_ids and max(way.stop_ids) >= len(weight):
                raise DataError(f"stop id {max(way.stop_ids)} is outside of the vocabulary of {len(weight)} tokens")
            row[list(way.stop_ids)] = True

    def choose(self, logits: Tensor, new: _Live, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if len(self.ways) == 1:
            return choose(logits, self.ways[0], u)
        way = self.of[new.request]
        token = torch.zeros_like(new.request)
        logp = torch.zeros(len(token), dtype=_precision(logits), device=logits.device)
        kept = torch.zeros_like(logp)
        for i in way.unique().tolist():
            rows = (way == i).nonzero()[:, 0]
            token[rows], logp[rows], cut = choose(logits[rows], self.ways[i], u[rows])
            if cut is not None:
                kept[rows] = cut
        return token, logp, kept

    def stopped(self, live: _Live) -> Tensor:
        if len(self.ways) == 1:
            return self.stops[0].index_select(0, live.token)
        return self.stops[self.of[live.request], live.token]


class _Record:
    """All completions of a call in flat tensors of `width` cells per request."""

    def __init__(self, requests: int, width: int, like: Tensor):
        dtype = _precision(like)
        self.width = width
        self.tokens = torch.zeros(requests * width, dtype=torch.long, device=like.device)
        self.logp = torch.zeros(requests * width, dtype=dtype, device=like.device)
        self.kept = torch.zeros(requests * width, dtype=dtype, device=like.device)
        self.length = torch.zeros(requests, dtype=torch.long, device=like.device)

    def write(self, cell: Tensor, token: Tensor, logp: Tensor, kept: Tensor | None) -> None:
        self.tokens.index_copy_(0, cell, token)
        self.logp.index_copy_(0, cell, logp)
        if kept is not None:
            self.kept.index_copy_(0, cell, kept)

    def completions(self, params: Sequence[SamplingParams]) -> list[Completion]:
        if not self.logp.isfinite().all():
            bad = int((~self.logp.isfinite()).nonzero()[0, 0])
            raise NonFiniteError(
                f"token {bad % self.width} of completion {bad // self.width} has the log-probability {self.logp[bad]}: "
                "the model's logits are no numbers. Its weights have diverged; go back to an earlier checkpoint."
            )
        columns = [x.unflatten(0, (-1, self.width)).tolist() for x in (self.tokens, self.logp, self.kept)]
        out = []
        for asked, n, tokens, logp, kept in zip(params, self.length.tolist(), *columns, strict=True):
            stop = Stop.END if tokens[n - 1] in asked.stop_ids else Stop.LENGTH
            out.append(Completion(tuple(tokens[:n]), tuple(logp[:n]), tuple(kept[:n]), stop))
        return out


def choose(logits: Tensor, params: SamplingParams, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens [M] for logits [M, V], by inverting the cumulative distribution at u [M] in [0, 1).

        token = min { i : Σ_{j ≤ i} p_j > u · Σ_j p_j },   p = softmax(logits / T), zero outside of the kept set

    Returns tokens, log softmax(logits / T) over the whole vocabulary at them, and the log of the kept mass (None
    without a cut). Sums run in float64, so that a vocabulary of any size is sampled exactly. T = 0 takes the
    largest logit.
    """
    logits = logits.to(_precision(logits))
    p = (logits if params.recorded_temperature == 1 else logits / params.temperature).softmax(-1)
    if params.temperature == 0:
        token = logits.argmax(-1)
        return token, _at(p, token).log(), None
    cdf = (truncate(p, params.top_k, params.top_p) if params.cuts else p).cumsum(-1, dtype=torch.float64)
    mass = cdf[:, -1]
    token = torch.searchsorted(cdf, (u * mass)[:, None], right=True)[:, 0].clamp_(max=cdf.shape[1] - 1)
    return token, _at(p, token).log(), mass.log().clamp_(max=0.0).to(p.dtype) if params.cuts else None


def truncate(p: Tensor, top_k: int, top_p: float) -> Tensor:
    """p [M, V], zero outside of the kept set.

    First the `top_k` most probable (0: all); of these the smallest set of most probable tokens that holds at least
    `top_p` of their mass: a token stays while what stands before it is less. One token always stays.
    """
    top, index = p.topk(min(top_k, p.shape[1])) if top_k else p.sort(descending=True, stable=True)
    if top_p < 1:
        mass = top.cumsum(-1, dtype=torch.float64)
        before = torch.cat((torch.zeros_like(mass[:, :1]), mass[:, :-1]), -1)
        top = top.masked_fill(before >= top_p * mass[:, -1:], 0.0)
    return torch.zeros_like(p).scatter_(1, index, top)


def _precision(x: Tensor) -> torch.dtype:
    """Probabilities are float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _at(p: Tensor, token: Tensor) -> Tensor:
    return p.gather(1, token[:, None])[:, 0]


@dataclass(frozen=True)
class Gap:
    """How far the sampler's and the learner's log-probabilities of the same tokens lie apart."""

    mean: float
    """Mean |sampled - learned|."""
    p99: float
    """What 99 % of the tokens stay below."""
    largest: float
    ess: float
    """Effective share of the tokens under the ratio π_learner / π_sampler: (Σ r)² / (n Σ r²); 1 where the two agree."""


def gap(sampled_logp: Tensor, learner_logp: Tensor, mask: Tensor | None = None) -> Gap:
    """Compare log-probabilities of equal shape, where `mask` is true (default: everywhere).

    With shared float32 weights the largest gap is rounding (below 1e-4). More means that the two sides run other
    weights, another template, temperature or cut; reinforcement learning on such data drifts, and the fault is then
    sought elsewhere.
    """
    if sampled_logp.shape != learner_logp.shape:
        raise DataError(f"log-probabilities of shapes {list(sampled_logp.shape)} and {list(learner_logp.shape)} differ")
    keep = torch.ones_like(sampled_logp, dtype=torch.bool) if mask is None else mask.bool()
    difference = (learner_logp[keep] - sampled_logp[keep]).detach().double()
    if not difference.numel():
        raise DataError("the mask holds no token that the policy chose: there is nothing to compare")
    size, ratio = difference.abs(), (difference - difference.max()).exp()  # a common factor drops out of ess
    ess = ratio.sum().square() / (len(ratio) * ratio.square().sum())
    p99 = size.kthvalue(max(1, -(-99 * len(size) // 100))).values
    return Gap(size.mean().item(), p99.item(), size.max().item(), ess.item())
