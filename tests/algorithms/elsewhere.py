"""A GPU that is not there: torch with tensors that believe to be on one, and refuse to meet those on the CPU.

Values are computed on the CPU, so whole runs go through it and can be compared bit for bit. What it knows is where each
tensor lives: `.to("cuda")`, `device="cuda"` in a factory and `.device` are answered accordingly; an operation on
tensors of both kinds raises, but for what torch allows (a number of no dimension, indices from the CPU, copies).
"""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_places = WeakTensorKeyDictionary()
FREE = {"copy_", "_has_compatible_shallow_copy_type", "__getitem__", "__setitem__", "__get__", "__set__", "type_as"}


class Meeting(AssertionError):
    """Tensors of both devices in one operation."""


class Elsewhere(TorchFunctionMode):
    """Within it there is a GPU. `moved`: how many tensors have been put on it."""

    def __init__(self):
        super().__init__()
        self.moved = 0

    def __enter__(self):
        self._plain = torch.Tensor._make_subclass
        torch.Tensor._make_subclass = staticmethod(self._parameter)
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor._make_subclass = self._plain
        return super().__exit__(*error)

    def _parameter(self, cls, data, *more):
        """`nn.Parameter` goes past the functions that a mode sees."""
        made = self._plain(cls, data, *more)
        mark(made, is_there(data))
        return made

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner is Tensor.device:
            return CUDA if is_there(args[0]) else CPU
        there = wanted(name, args, kwargs)
        if there is not None:
            args, kwargs = without_device(name, args, kwargs)
        mine = list(tensors(args[0] if name == "__deepcopy__" else (args, kwargs)))  # a copy's memo holds anything
        found = {is_there(x) for x in mine if x.dim()}
        if len(found) > 1 and name not in FREE and there is None:
            raise Meeting(f"{name} of tensors on both devices: {[(is_there(x), tuple(x.shape)) for x in mine]}")
        result = func(*args, **kwargs)
        if name in ("cpu", "tolist", "item", "numpy"):
            there = False
        elif there is None:
            there = is_there(mine[0]) if name in FREE and mine else any(map(is_there, mine))
        for x in tensors(result):
            if there and not is_there(x):
                self.moved += 1
            if name in ("to", "cpu") and is_there(x) != there and any(x is y for y in mine):
                x = result = x.view_as(x) if x.requires_grad else x.detach().clone()
            if not (name == "__get__" and owner is Tensor.grad and is_there(args[0])):
                mark(x, there)
            else:
                mark(x, True)
        if name == "__set__" and owner is Tensor.data:
            mark(args[0], is_there(args[1]))
        return result


def is_there(x: Tensor) -> bool:
    """Whether a tensor is on the GPU."""
    return _places.get(x, False)


def mark(x: Tensor, there: bool) -> None:
    """Say where a tensor is."""
    _places[x] = there


def tensors(tree):
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors(value)


def wanted(name: str, args: tuple, kwargs: dict) -> bool | None:
    """Where a call wants its result; None where it does not say."""
    said = kwargs.get("device")
    if name == "to" and said is None:
        said = next((a for a in args[1:] if isinstance(a, (str, torch.device, Tensor))), None)
    if isinstance(said, Tensor):
        return is_there(said)
    if said is None or "meta" in str(said):
        return None
    return torch.device(said).type == "cuda"


def without_device(name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The call without its device; of `x.to(other)` the type stays."""
    kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    if name != "to":
        return args, kwargs
    types = [a.dtype if isinstance(a, Tensor) else a for a in args[1:] if isinstance(a, (Tensor, torch.dtype))]
    return (args[0], kwargs.get("dtype") or (types or [args[0].dtype])[0]), {}


def all_there(model: nn.Module) -> bool:
    """Whether every weight of a model is on the GPU."""
    return all(is_there(p) for p in model.parameters())
