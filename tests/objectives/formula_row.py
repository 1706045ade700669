"""A row of the table in `formulas`: how a formula is called on generated inputs, and what may be asked of it.

A row names the function, its tensors with their shapes, and its numbers. Letters of a shape: N rows, which may be cut
into micro-batches and come in any order; T columns that a mask covers and padding adds; others are as they are. What a
tensor holds follows from its name (`KIND_OF`), or stands behind a slash.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor

SIZES = {"N": 6, "T": 5, "V": 4, "K": 3, "D": 2, "E": 7}
"""All different, so that the shape of a result tells its letters."""


@dataclass(frozen=True)
class Kind:
    """What a tensor holds."""

    make: Callable[[list[int]], Tensor]
    extremes: tuple[float, ...] = ()
    """Values far out that it may still take. None: it is left as it is."""
    slopes: bool = False
    """Whether a formula has to say what its gradient in this is: right, or none (`Formula.stopped`)."""


def _mask(size: list[int]) -> Tensor:
    mask = torch.rand(size) < 0.7
    mask.select(-1, 0).fill_(False)
    mask.select(-1, min(1, size[-1] - 1)).fill_(True)
    return mask


def _prefix(size: list[int]) -> Tensor:
    return torch.arange(size[1]) < torch.randint(1, size[1] + 1, (size[0], 1))


def _top(size: list[int]) -> Tensor:
    """Log-probabilities of some tokens of a vocabulary."""
    return torch.randn(*size[:-1], size[-1] + 1).log_softmax(-1)[..., :-1]


def _final(size: list[int]) -> Tensor:
    """Rewards 0 or 1, on one token under the mask."""
    reward = torch.zeros(size)
    reward[:, min(1, size[1] - 1)] = torch.randint(0, 2, size[:1]).to(reward.dtype)
    return reward


def _whole(low: int, high: int) -> Callable[[list[int]], Tensor]:
    return lambda size: torch.randint(low, high + 1, size).to(torch.get_default_dtype())


KINDS = {
    "logp": Kind(lambda size: -0.2 - 3 * torch.rand(size), (-1e4, -5e3, 0.0), slopes=True),
    "collision": Kind(lambda size: -0.2 - 3 * torch.rand(size), (-12.0, 0.0), slopes=True),
    "ratio": Kind(lambda size: 0.7 * torch.randn(size), (-1e4, 1e4), slopes=True),
    "logits": Kind(lambda size: 1.5 * torch.randn(size), (-1e4, 1e4), slopes=True),
    "hidden": Kind(torch.randn, (-1e2, 1e2), slopes=True),
    "score": Kind(torch.randn, (-1e6, 1e6), slopes=True),
    "reward": Kind(torch.randn, (-1e6, 1e6), slopes=True),
    "positive": Kind(lambda size: 0.2 + 2 * torch.rand(size), (1e-3, 1e6), slopes=True),
    "law": Kind(lambda size: 0.2 + torch.rand(size), slopes=True),
    "share": Kind(lambda size: 0.05 + 0.9 * torch.rand(size), (0.0, 1.0)),
    "simplex": Kind(lambda size: torch.randn(size).softmax(-1), (), slopes=True),
    "odds": Kind(lambda size: 0.05 + 0.9 * torch.rand(size), (1e-6, 1 - 1e-6), slopes=True),
    "top": Kind(_top, slopes=True),
    "final": Kind(_final),
    "length": Kind(_whole(1, 5), (1.0, 1e4)),
    "verdict": Kind(_whole(0, 1)),
    "outcome": Kind(lambda size: torch.randint(0, 3, size) / 2),
    "ids": Kind(lambda size: torch.randint(0, SIZES["V"], size)),
    "few": Kind(lambda size: torch.randint(0, 3, size)),
    "group": Kind(lambda size: torch.tensor([7, 3, 7, 5, 3, 7, 5, 3])[: size[0]]),
    "first": Kind(lambda size: torch.ones(size, dtype=torch.long)),
    "mask": Kind(_mask),
    "prefix": Kind(_prefix),
}
KIND_OF = {
    name: kind
    for kind, names in {
        "logp": "logp old_logp ref_logp sampled_logp teacher_logp student_logp start_logp mean_logp other "
        "chosen rejected ref_chosen ref_rejected gold best_logp drawn_by_reference logp_first logp_second quantile",
        "collision": "log_sum_sq",
        "ratio": "log_ratio drift moved slope",
        "logits": "logits ref_logits student_logits teacher_logits",
        "hidden": "hidden student_hidden student_head teacher_hidden teacher_head",
        "score": "score scores values old_values targets x first second value log_tie gap gap_swapped kl start",
        "reward": "reward rewards token_reward advantage references anchor_reward proxy margin offset last_value parts "
        "greedy",
        "positive": "score_gap distance entropy",
        "law": "alpha beta exponent midpoint",
        "share": "win_rate probability sum_sq draws label right good",
        "length": "length chosen_length rejected_length gold_length other_length",
        "verdict": "desirable first_wins won",
        "outcome": "outcome",
        "ids": "tokens targets_ids answers truth ids",
        "group": "group",
        "mask": "mask prompt completion",
    }.items()
    for name in names.split()
}  # fmt: skip


@dataclass(frozen=True)
class Formula:
    """A row of the table."""

    function: Callable
    inputs: str
    """Tensors by name: "logp, mask: NT; group: N". A kind that the name does not tell follows a slash."""
    settings: dict = field(default_factory=dict)
    stopped: str = ""
    """Inputs, of those that could have a gradient, to which none flows: as the docstring says, or because the result is
    a choice."""
    coupled: str = ""
    """Whether rows depend on each other: "" not, "group" within a prompt, "all" over the whole step."""
    kinks: Callable[[SimpleNamespace], Tensor] | None = None
    """Distances of the inputs from places without a derivative."""
    slope: Callable[[SimpleNamespace, SimpleNamespace], Tensor] | None = None
    """Of a surrogate, whose value means nothing: what has the gradient that it should have. The second argument holds
    the same numbers without a graph."""
    pads: str = "both"
    """Where columns may be added: "both" sides, "right" (the result counts places from the left), "" nowhere."""
    exposed: str = ""
    """Inputs that are read where the mask is false, as the docstring says."""
    bare: bool = False
    """What the result holds where the mask is false means nothing."""
    infinite: str = ""
    """Where the docstring promises no finite number."""
    call: Callable | None = None

    @cached_property
    def shapes(self) -> dict[str, str]:
        return {name.split("/")[0]: word for name, word in _read(self.inputs)}

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        return {name.split("/")[0]: KINDS[name.split("/")[1] if "/" in name else KIND_OF[name]]
                for name, _ in _read(self.inputs)}  # fmt: skip

    @cached_property
    def sloped(self) -> list[str]:
        """Inputs in which the formula has a gradient."""
        return [name for name, kind in self.kinds.items() if kind.slopes and name not in self.stopped.split()]

    @cached_property
    def covered(self) -> list[str]:
        """Inputs of which the mask hides a part."""
        if "mask" not in self.shapes:
            return []
        seen = {*self.masks, *self.exposed.split()}
        return [name for name, word in self.shapes.items() if word.startswith(self.shapes["mask"]) and name not in seen]

    @cached_property
    def masks(self) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind.make in (_mask, _prefix)]

    def make(self, seed: int = 0) -> dict[str, Tensor]:
        """Ordinary inputs, away from the kinks."""
        for attempt in range(100):
            torch.default_generator.manual_seed(1000 * seed + attempt)  # torch.manual_seed costs 5 ms in a deep stack
            found = {n: self.kinds[n].make([SIZES[letter] for letter in w]) for n, w in self.shapes.items()}
            if self.kinks is None or bool((self.kinks(SimpleNamespace(**found)).abs() > 1e-3).all()):
                return found
        raise AssertionError(f"{self}: no inputs away from the kinks")

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors that come back, by name: "0" and so on for results, "name" or "name 0" for metrics."""
        return dict(_flat((self.call or self.function)(**inputs, **self.settings), ""))

    def __str__(self) -> str:
        told = [str(v) for v in self.settings.values() if isinstance(v, str)]
        return "-".join([self.function.__name__, *told])


def _read(text: str):
    for part in text.split(";"):
        names, word = part.split(":")
        yield from ((name.strip(), word.strip()) for name in names.split(","))


def _flat(result, name: str):
    if isinstance(result, dict):
        for key, value in result.items():
            yield from _flat(value, key)
    elif isinstance(result, tuple):
        for key, value in enumerate(result):
            yield from _flat(value, f"{name} {key}".strip())
    elif isinstance(result, Tensor):
        yield name or "0", result
