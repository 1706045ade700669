"""Displayed formulas against the library: reads them from the pages' source, draws inputs, evaluates both sides.

Needs no Sphinx, so the test of all formulas takes as long as the formulas themselves.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = re.compile(r"^(:{3,}|`{3,})\{formula\}\s*\n(.*?)^\1\s*$", re.M | re.S)
_OPTION = re.compile(r"^:(\w+):\s*(.*)$", re.M)


@dataclass(frozen=True)
class Bound:
    """A formula of a page and its function."""

    page: str
    label: str
    function: str
    inputs: str
    check: str
    call: str


def bound(folder: Path) -> Iterator[Bound]:
    """All formulas of all pages below a folder that name a function."""
    for path in sorted(folder.rglob("*.md")):
        for _, text in _BLOCK.findall(path.read_text()):
            options = dict(_OPTION.findall(text))
            if "function" in options:
                words = (options.get(key, "") for key in ("label", "function", "inputs", "check", "call"))
                yield Bound(str(path.relative_to(folder)), *words)


def draw(kind: str, rng: np.random.Generator) -> Any:
    """An input: "real 3 5", "positive 4", "probs 5" (last axis sums to one), "mask 2 6", "whole 9" (below it), or a number."""
    word, *sizes = kind.split()
    shape = tuple(map(int, sizes))
    match word:
        case "real":
            return rng.normal(size=shape)
        case "positive":
            return rng.exponential(size=shape) + 0.05
        case "probs":
            made = rng.exponential(size=shape)
            return made / made.sum(-1, keepdims=True)
        case "mask":
            return rng.random(shape) < 0.7
        case "whole":
            return int(rng.integers(1, shape[0]))
        case _:
            return float(word)


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return np.log(softmax(x))


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def both(formula: Bound, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(what the page's expression gives, what the library gives) on inputs drawn with a seed."""
    import torch

    rng = np.random.default_rng(seed)
    pairs = [part.split(":") for part in formula.inputs.split(",") if part.strip()]
    given = {name.strip(): draw(kind, rng) for name, kind in pairs}
    names = {"sum": np.sum, "mean": np.mean, "exp": np.exp, "log": np.log, "minimum": np.minimum, "sqrt": np.sqrt,
             "maximum": np.maximum, "clip": np.clip, "where": np.where, "std": np.std, "cumsum": np.cumsum,
             "softmax": softmax, "log_softmax": log_softmax, "sigmoid": sigmoid}  # fmt: skip
    page = eval(formula.check, names | given)
    module, _, name = formula.function.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    tensors = {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    call = formula.call or f"f({', '.join(tensors)})"
    result = eval(call, {"f": function, "torch": torch} | tensors)
    library = result.detach().numpy() if torch.is_tensor(result) else result
    return np.asarray(page, dtype=float), np.asarray(library, dtype=float)
