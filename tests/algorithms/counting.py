"""What torch holds while something runs: bytes that are alive, and tensors with a number for every token and word.

Both watch every operation (TorchDispatchMode), those of the backward pass included, so the counts are exact and the
same everywhere. What one operation allocates and frees inside itself they do not see; `benchmarks/memory.py` does.
"""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of all storage that was made inside and is not freed yet: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type != "meta":
                self._add(x.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_) -> None:
            self.now -= size
            del self._alive[key]

        self.now += size
        self._alive[key] = weakref.ref(storage, gone)


class Widest(TorchDispatchMode):
    """The most rows that any tensor of numbers had in which each row holds one for every word.

    The embedding, the head and their gradients, V x D in any shape, are no logits.
    """

    def __init__(self, vocab: int, hidden: int):
        super().__init__()
        self.vocab, self.weight = vocab, vocab * hidden
        self.rows = 0
        self.seen = 0
        """How many tensors had such rows."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel() and not x.numel() % self.vocab:
                self.seen += x.numel() != self.weight
                self.rows = max(self.rows, x.numel() // self.vocab * (x.numel() != self.weight))
        return out
