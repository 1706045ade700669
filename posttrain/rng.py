"""Counter-based randomness: a draw is a hash of (seed, position), and no generator state exists.

Whoever needs a random number says *which* one: step 12, prompt 3, token 40. Resuming a run, refilling a slot of the
sampler or changing a micro-batch can then not change a draw. The generator is SplitMix64 (Steele, Lea and Flood 2014)
applied to seed and position; `fold` names streams ("data order", "sampler") through a stable hash.
"""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def fold(seed: int, *parts: int | str) -> int:
    """A new 63-bit seed for the stream named by `parts`: fold(7, "rollout", step, row). Stable across machines."""
    text = repr((int(seed), *parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def python(seed: int, *parts: int | str) -> random.Random:
    """A `random.Random` for the stream named by `parts`; for text and data, where a few draws are made in order."""
    return random.Random(fold(seed, *parts))


def permutation(n: int, seed: int, *parts: int | str) -> list[int]:
    """A random order of range(n), a pure function of its arguments."""
    order = list(range(n))
    python(seed, *parts).shuffle(order)
    return order


def epoch_item(cursor: int, n: int, seed: int, *parts: int | str) -> int:
    """Index of the item at `cursor` in an endless sequence of freshly shuffled epochs of n items."""
    epoch, place = divmod(cursor, n)
    return _epoch(n, seed, epoch, parts)[place]


_epochs: dict[tuple, list[int]] = {}


def _epoch(n: int, seed: int, epoch: int, parts: tuple) -> list[int]:
    key = (n, seed, epoch, parts)
    if key not in _epochs:
        if len(_epochs) > 8:
            _epochs.clear()
        _epochs[key] = permutation(n, seed, "epoch", epoch, *parts)
    return _epochs[key]


def uniform(seeds: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
    """Uniform draws in [0, 1), one per row: u = mix(seed + golden * (position + 1)) / 2^53.

    seeds, positions: int64 [B]. Returns float64 [B]. Integer arithmetic wraps around, so CPU and GPU agree bit for bit.
    """
    golden = _GOLDEN - (1 << 64)  # as a signed 64-bit number
    x = seeds + golden * (positions + 1)
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    x = x ^ _shift(x, 31)
    return _shift(x, 11).double() * 2.0**-53


def _shift(x: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Logical right shift of int64: torch's >> copies the sign bit, which is masked away here."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
