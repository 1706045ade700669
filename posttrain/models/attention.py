"""Which tokens see which: attention for padded rows, for packed rows, and for one new token against a cache.

Each is a function (layer, q, k, v) -> heads' outputs that a `Decoder` calls in every layer; what does not change from
layer to layer is worked out once, when the function is made. The padded one is the oracle of the others.

Packed rows cost no product for padding, and tokens that rows of one group have in common (a prompt under its answers)
are computed once. Only the attention product itself works on grids, one for each set of rows of similar length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from posttrain.models.decoder import Decoder

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer index, q [M, H, d], k [M, K, d], v [M, K, d]) -> [M, H * d]; H query heads share K key-value heads."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of padded rows [N, T] stand among the M that are computed."""

    own: Tensor
    """[N, T] true at the cell a token is computed for: `tokens[own]` are the M ids."""
    place: Tensor
    """[N, T] which of the M tokens a cell holds; 0 at padding."""
    lengths: Tensor
    """[N] tokens of each row."""

    @property
    def positions(self) -> Tensor:
        """[M] place of each computed token in its row."""
        return torch.arange(self.own.shape[1], device=self.own.device).expand_as(self.own)[self.own]


def pack(attend: Tensor, tokens: Tensor | None = None, group: Tensor | None = None) -> Packing:
    """The packing of rows, padded on the right.

    attend: [N, T] true at real tokens. tokens: [N, T] and group: [N] let the tokens with which a row begins as the
    first row of its group does be computed once, for that row; without them nothing is shared.
    """
    attend = attend.bool()
    first = own = None
    if group is not None and len(group) > 1:
        _, index = torch.unique(group, return_inverse=True)
        row = torch.arange(len(group), device=group.device)
        first = torch.full_like(row, len(row)).scatter_reduce(0, index, row, "amin")[index]
        same = (tokens == tokens[first]) & attend & attend[first] & (first != row)[:, None]
        own = attend & ~same.cumprod(1).bool()
    own = attend if own is None else own
    place = own.flatten().cumsum(0).view_as(own) - 1
    if first is not None:
        place = torch.where(own, place, place[first])
    return Packing(own, place.masked_fill(~attend, 0), attend.sum(1))


def pack_lengths(lengths: Tensor) -> Packing:
    """The packing of rows of given lengths [N] that stand one after the other and share nothing."""
    return pack(torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None])


def padded_attention(n: int, t: int, mask: Tensor | None) -> Attention:
    """Attention over [N, T] rows laid out flat; plain causal where mask is None, else mask [N, 1, T, T]."""

    def attention(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (n, t)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return out.transpose(1, 2).reshape(n * t, -1)

    return attention


def packed_attention(packing: Packing) -> Attention:
    """Causal attention within each packed row.

    Rows of similar length make a grid with their padding on the right, so that a causal mask is exact: no real token
    sees what stands after it. A token that rows share stands in the grid of each of them.
    """
    grids, cells = [], []
    for rows, longest in similar_lengths(packing.lengths.tolist()):
        rows = torch.tensor(rows, device=packing.own.device)
        grids.append((packing.place[rows, :longest].flatten(), len(rows), longest))
        cells.append(torch.where(packing.own[rows, :longest].flatten(), grids[-1][0], -1))
    owner = torch.cat(cells)  # [cells of all grids] the token that is read there, or -1
    read = (owner >= 0).nonzero()[:, 0]
    home = torch.empty_like(read).index_copy_(0, owner[read], read)  # [M] the cell of each token

    def attention(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, kind = [], q.device.type
        if kind == "cpu":  # whose kernel takes longer in bfloat16, and is then less exact for nothing
            q, k, v = (x.float() if x.dtype == torch.bfloat16 else x for x in (q, k, v))
        for place, n, t in grids:
            q_, k_, v_ = (x.index_select(0, place).unflatten(0, (n, t)).transpose(1, 2) for x in (q, k, v))
            with torch.autocast(kind, enabled=kind != "cpu" and torch.is_autocast_enabled(kind)):
                o = F.scaled_dot_product_attention(q_, k_, v_, is_causal=True, enable_gqa=True)
            out.append(o.transpose(1, 2).reshape(n * t, -1))
        return torch.cat(out).index_select(0, home)

    return attention


def similar_lengths(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Rows whose lengths differ little, and the longest length of each set.

    A row joins while it fills three quarters of the grid, or lacks a few tokens: then the padding costs less than a
    grid of its own would.
    """
    sets: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not sets or lengths[row] + 8 < 0.75 * sets[-1][1]:
            sets.append(([], lengths[row]))
        sets[-1][0].append(row)
    return sets


class Cache:
    """Keys and values of S slots of up to L tokens, allocated once: [layers, 2, S, K, L, d], keys before values."""

    def __init__(self, model: "Decoder", slots: int, length: int):
        cfg, w = model.cfg, model.embed_tokens.weight
        shape = (cfg.num_hidden_layers, 2, slots, cfg.num_key_value_heads, length, cfg.head_dim)
        self.memory = torch.zeros(shape, dtype=w.dtype, device=w.device)
        self.length = length
        self._flat = self.memory.flatten(1, -2).unbind()  # of each layer [2 * S * K * L, d]
        starts = torch.arange(2 * slots * cfg.num_key_value_heads, device=w.device) * length
        self._starts = torch.cat(starts.view(2, slots, -1).unbind(), 1)  # [S, 2K] where heads of a slot begin there

    def places(self, slots: Tensor | slice, positions: Tensor) -> Tensor:
        """[M * 2K] where keys and values of token m of slot `slots[m]` stand in a layer's flat [2 * S * K * L, d]."""
        return (self._starts[slots] + positions[:, None]).flatten()

    def write(self, layer: int, places: Tensor, kv: Tensor) -> None:
        """Store keys and values [M, 2K, d] of new tokens. One flat index copy: a three-way index is far slower."""
        self._flat[layer].index_copy_(0, places, kv.reshape(-1, kv.shape[-1]).to(self.memory.dtype))

    def read(self, slots: int, length: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of every layer the keys, transposed, [slots * K, d, length] and the values [slots * K, length, d].

        Of the first slots; views, of which a batched product needs no copy.
        """
        held = self.memory[:, :, :slots, :, :length].flatten(2, 3)
        return held[:, 0].transpose(2, 3).unbind(), held[:, 1].unbind()

    def copy(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` tokens of the slots `source` [n] to the slots `target` [n], which must differ."""
        self.memory[:, :, target, :, :length] = self.memory[:, :, source, :, :length]


def prefill_attention(cache: Cache, slots: Tensor, packing: Packing) -> Attention:
    """Packed attention that also writes keys and values of fresh rows into their cache slots [N]."""
    inner = packed_attention(packing)
    places = cache.places(torch.repeat_interleave(slots, packing.lengths), packing.positions)

    def attention(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(i, places, torch.cat((k, v), 1))
        return inner(i, q, k, v)

    return attention


def decode_attention(cache: Cache, positions: Tensor) -> Attention:
    """One new token in each of the first M slots, at positions [M], attending to its slot's cache up to itself.

    The plain way, which `decoding.py` is held against.
    """
    m, longest = len(positions), int(positions.max()) + 1
    places = cache.places(slice(m), positions)
    keys, values = cache.read(m, longest)
    behind = torch.arange(longest, device=positions.device) > positions[:, None]
    bias = cache.memory.new_zeros(m, longest).masked_fill_(behind, -torch.inf)[:, None, None]  # [M, 1, 1, longest]

    def attention(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(i, places, torch.cat((k, v), 1))
        q = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))  # [M, K, H/K, d]: queries that share a key
        scores = q @ keys[i].unflatten(0, (m, -1)) + bias
        return (scores.softmax(-1) @ values[i].unflatten(0, (m, -1))).flatten(1)

    return attention


def row_lengths(positions: Tensor) -> Tensor:
    """Lengths [N] of packed rows from their positions [M], which begin again at 0 in each: what `Decoder.rows` wants.

    This is how other libraries hand packed rows around. Positions 0 1 2 0 1 give lengths 3 and 2.
    """
    starts = (positions == 0).nonzero().flatten()
    return torch.diff(starts, append=starts.new_tensor([len(positions)]))
