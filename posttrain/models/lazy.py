"""Tensors by name that are made only when they are asked for, so that a second whole model need not fit in memory."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """Makes a tensor anew at each access: name -> how."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers
