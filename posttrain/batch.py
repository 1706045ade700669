"""TokenBatch: the tensors of one optimizer step, padded on the right to [N, T], and how they are cut into pieces.

Nothing here has a model dimension, so padding costs a few bytes and no arithmetic: the learner packs rows before the
forward pass. Averages are weight matrices made once from the whole step (`weigh`) and kept by every later cut, so
minibatches, micro-batches and ranks add up to exactly the same gradient.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

from posttrain import dist, rng
from posttrain.errors import DataError
from posttrain.objectives.average import Average, row_weights, token_weights
from posttrain.records import Group, Segment

Together = Literal["row", "trajectory", "group"]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """N rows of up to T tokens; entry t of every [N, T] array is about token t."""

    tokens: Tensor
    """[N, T] ids."""
    attend: Tensor
    """[N, T] true at real tokens; they stand left, padding right."""
    mask: Tensor
    """[N, T] true where the policy chose the token (in SFT: where it is learned). Entry 0 is false."""
    trajectory: Tensor
    """[N] ids: a trajectory in two segments counts once."""
    group: Tensor
    """[N] ids: samples of one prompt, or the two rows of a pair."""
    temperature: Tensor
    """[N] at which the row was sampled; log-probabilities of the row are taken at it."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Named averages over the whole optimizer step: [N, T] per token or [N] per row."""
    advantage: Tensor | None = None
    """[N, T]"""
    sampled_logp: Tensor | None = None
    """[N, T] said the sampler when it chose the token."""
    old_logp: Tensor | None = None
    """[N, T] said the learner when the step began."""
    ref_logp: Tensor | None = None
    """[N, T] said the frozen reference."""
    old_value: Tensor | None = None
    """[N, T] said the critic when the step began."""
    value_target: Tensor | None = None
    """[N, T]"""
    label: Tensor | None = None
    """[N] sign of the row: +1 chosen or good, -1 rejected or bad."""
    margin: Tensor | None = None
    """[N] how much better the chosen row is, where annotators said so, else 0; in rankings, what the row is worth."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """[N] real tokens per row."""
        return self.attend.sum(1)

    def with_(self, **changes: Tensor | None) -> "TokenBatch":
        """A copy with some tensors replaced."""
        return replace(self, **changes)

    def to(self, device: torch.device) -> "TokenBatch":
        """The batch on a device; itself where it is there."""
        if self.tokens.device == device:
            return self
        new = {f.name: x.to(device) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **new, weights={name: w.to(device) for name, w in self.weights.items()})

    def select(self, rows: Tensor) -> "TokenBatch":
        """The given rows, their padding cut to the longest of them."""
        keep = int(self.attend[rows].sum(1).max()) if len(rows) else 0

        def cut(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return x[rows, :keep] if x.dim() == 2 else x[rows]

        new = {f.name: cut(getattr(self, f.name)) for f in fields(self) if f.name != "weights"}
        return TokenBatch(**new, weights={name: cut(w) for name, w in self.weights.items()})

    def minibatches(self, n: int, seed: int) -> Iterator["TokenBatch"]:
        """n parts of a random order of groups, for several optimizer steps on one rollout; `weigh` each."""
        if n == 1:
            yield self
            return
        ids = self.group.unique()
        if n > len(ids):
            raise DataError(f"{n} minibatches were asked of a step with {len(ids)} groups; use at most {len(ids)}")
        order = ids[torch.tensor(rng.permutation(len(ids), seed, "minibatch"))]
        for part in torch.tensor_split(order, n):
            yield self.select(torch.isin(self.group, part).nonzero().flatten())

    def split(self, max_tokens: int | None, together: Together = "row") -> Iterator[Tensor]:
        """Row indices [n] of micro-batches of at most `max_tokens` real tokens, longest first.

        What is `together` (a trajectory, a group) stays in one micro-batch, even if it alone exceeds the budget.
        Longest first: a step that does not fit in memory fails at once, not after an hour.
        """
        if max_tokens is None or not len(self):
            yield torch.arange(len(self))
            return
        lengths = self.lengths.tolist()
        part: list[int] = []
        used = 0
        for rows in self._units(together):
            size = sum(lengths[r] for r in rows)
            if part and used + size > max_tokens:
                yield torch.tensor(part)
                part, used = [], 0
            part, used = part + rows, used + size
        yield torch.tensor(part)

    def pieces(self, max_tokens: int | None, together: Together = "row") -> list[tuple[Tensor, bool]]:
        """Row indices of the micro-batches of this process, each with whether it counts.

        Alone they are those of `split`. Several processes split a share each, and all get equally many pieces: who has
        fewer repeats a short one that does not count, since a backward pass is something they do together.
        """
        if dist.world() == 1:
            return [(rows, True) for rows in self.split(max_tokens, together)]
        cut = [
            [share[rows] for rows in self.select(share).split(max_tokens, together)] if len(share) else []
            for share in self.shares(dist.world(), together)
        ]
        mine = cut[dist.rank()]
        short = min((rows for parts in cut for rows in parts), key=lambda rows: int(self.lengths[rows].sum()))
        missing = max(map(len, cut)) - len(mine)
        return [(rows, True) for rows in mine] + [(short, False)] * missing

    def shares(self, n: int, together: Together = "row") -> list[Tensor]:
        """Row indices of n parts with about equally many tokens; what is `together` stays so. Some may be empty.

        Groups stay whole where there are two for each part, since a shared prompt is computed once where they meet.
        """
        together = "group" if len(self.group.unique()) >= 2 * n else together
        lengths = self.lengths.tolist()
        parts: list[list[int]] = [[] for _ in range(n)]
        load = [0] * n
        for rows in self._units(together):  # the longest first, each to whom has least
            lightest = load.index(min(load))
            parts[lightest] += rows
            load[lightest] += sum(lengths[r] for r in rows)
        return [torch.tensor(sorted(part), dtype=torch.long) for part in parts]

    def _units(self, together: Together) -> list[list[int]]:
        """Rows that must not be parted, those with the longest row first."""
        lengths = self.lengths.tolist()
        key = list(range(len(self))) if together == "row" else getattr(self, together).tolist()
        units: dict[int, list[int]] = {}
        for row, k in enumerate(key):
            units.setdefault(k, []).append(row)
        return sorted(units.values(), key=lambda rows: -max(lengths[r] for r in rows))


def collate(
    segments: Sequence[Segment],
    *,
    group: Sequence[int] | None = None,
    trajectory: Sequence[int] | None = None,
    temperature: Sequence[float] | None = None,
    pad_id: int = 0,
) -> TokenBatch:
    """Rows [N, T] of segments. Where the policy chose a token its log-probability must not be NaN (DataError).

    group, trajectory: ids per segment; default: each its own. temperature: per segment; default 1.
    """
    if not segments:
        raise DataError("a batch of no rows: nothing is left to train on in this step")
    n, t = len(segments), max(len(s.tokens) for s in segments)
    tokens = torch.full((n, t), pad_id)
    attend = torch.zeros(n, t, dtype=torch.bool)
    mask = torch.zeros(n, t, dtype=torch.bool)
    logp = torch.zeros(n, t) if any(s.logp for s in segments) else None
    for i, s in enumerate(segments):
        size = len(s.tokens)
        tokens[i, :size] = torch.tensor(s.tokens)
        attend[i, :size] = True
        mask[i, :size] = torch.tensor(s.mask)
        if s.logp:
            row = torch.tensor(s.logp)
            if row[mask[i, :size]].isnan().any():
                at = int((row.isnan() & mask[i, :size]).nonzero()[0])
                raise DataError(f"row {i}: token {at} is marked as chosen by the policy but has no log-probability")
            logp[i, :size] = row
    mask[:, 0] = False  # nothing predicts the first token
    if logp is not None:
        logp = logp.masked_fill(~mask, 0.0)
    ids = torch.arange(n)
    return TokenBatch(
        tokens=tokens,
        attend=attend,
        mask=mask,
        trajectory=ids if trajectory is None else torch.tensor(trajectory),
        group=ids if group is None else torch.tensor(group),
        temperature=torch.ones(n) if temperature is None else torch.tensor(temperature, dtype=torch.float32),
        sampled_logp=logp,
    )


def cut_at_stop(tokens: Tensor, stop_ids: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor]:
    """Answers that were generated to a fixed length, padded after their first stop token, which stays.

    tokens: [N, T] ids of answers alone. stop_ids: what ends one. pad_id: what replaces the rest.
    Returns (tokens [N, T], place of the first stop token [N], or T where there is none).

    Stop 3 and pad 0 turn 5 3 7 3 into 5 3 0 0, with place 1.
    """
    stops = torch.isin(tokens, torch.tensor(stop_ids, dtype=tokens.dtype, device=tokens.device))
    after = stops.cumsum(1) - stops.long()  # stop tokens before this one
    return tokens.masked_fill(after > 0, pad_id), (stops.cumsum(1) == 0).sum(1)


def collate_groups(groups: Sequence[Group], pad_id: int = 0) -> tuple[TokenBatch, Tensor]:
    """Rows of all scored trajectories, and their rewards [number of trajectories].

    Trajectories without a score are left out, never counted as zero; `TokenBatch.trajectory` indexes the rewards.
    """
    segments, group, trajectory, temperature, rewards = [], [], [], [], []
    for g, members in enumerate(groups):
        for member in members.members:
            if member.score is None or member.score.value is None or not member.segments:
                continue
            for s in member.segments:
                segments.append(s)
                group.append(g)
                trajectory.append(len(rewards))
                temperature.append(member.temperature or 1.0)
            rewards.append(member.score.value)
    batch = collate(segments, group=group, trajectory=trajectory, temperature=temperature, pad_id=pad_id)
    return batch, torch.tensor(rewards)


def collate_pairs(
    pairs: Sequence[tuple[Segment, Segment]], margins: Sequence[float | None] | None = None, pad_id: int = 0
) -> TokenBatch:
    """Rows chosen, rejected, chosen, rejected, ...; each pair is one group, `label` is +1 and -1."""
    segments = [s for pair in pairs for s in pair]
    batch = collate(segments, group=[i // 2 for i in range(len(segments))], pad_id=pad_id)
    label = torch.tensor([1.0, -1.0]).repeat(len(pairs))
    margin = None
    if margins is not None and any(m is not None for m in margins):
        margin = torch.tensor([m if m is not None else math.nan for m in margins]).nan_to_num(0.0).repeat_interleave(2)
    return batch.with_(label=label, margin=margin)


def weigh(batch: TokenBatch, average: Average, name: str = "token") -> TokenBatch:
    """The batch with the weights of an average over all its rows: call it once per step, before `split`."""
    w = token_weights(batch.mask, average, group=batch.group, trajectory=batch.trajectory)
    return batch.with_(weights={**batch.weights, name: w})


def weigh_rows(batch: TokenBatch, average: Average, name: str) -> TokenBatch:
    """The batch with the weights [N] of an average over answers ("sequence") or pairs ("pair"), under `name`."""
    w = row_weights(batch.mask, average, group=batch.group)
    return batch.with_(weights={**batch.weights, name: w})
