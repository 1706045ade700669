"""Golden numbers of other libraries, from ../shared/oracles: formulas are compared with what peers compute.

`cases(family, name, ...)` gives parameters for `pytest.mark.parametrize`; where the folder is absent the test is
skipped with the reason. Each case carries tensors in and out, the hyper-parameters, and its own tolerance.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / ".." / "shared" / "oracles"


@dataclass(frozen=True)
class Case:
    """One fixture: inputs `case["logps"]`, hyper-parameters `case.hyper`, expectations through `check`."""

    id: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    hyper: Mapping[str, object]
    atol: float
    rtol: float

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def leaf(self, name: str) -> Tensor:
        """An input to differentiate by."""
        return self.inputs[name].clone().requires_grad_()

    def check(self, name: str, value: Tensor) -> None:
        """Assert that value equals the output of this name, within the case's tolerance."""
        expected = self.outputs[name]
        torch.testing.assert_close(value.detach().to(expected.dtype), expected, atol=self.atol, rtol=self.rtol)


@cache
def _manifest() -> tuple[dict, ...]:
    path = FOLDER / "manifest.json"
    return tuple(json.loads(path.read_text())["cases"]) if path.is_file() else ()


def cases(family: str, *names: str) -> list:
    """Parameters for the cases of a family, loaded now (a few kilobytes each)."""
    if not _manifest():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{FOLDER} is absent: no golden numbers to compare"))]
    found = [c for c in _manifest() if c["family"] == family and c["name"] in names]
    missing = set(names) - {c["name"] for c in found}
    assert not missing, f"no oracle named {sorted(missing)} in family {family}"
    return [pytest.param(_load(c), id=c["id"]) for c in found]


def _load(entry: dict) -> Case:
    with np.load(FOLDER / entry["file"]) as arrays:
        parts = {kind: {k.removeprefix(f"{kind}__"): torch.as_tensor(np.array(arrays[k])) for k in arrays.files
                        if k.startswith(f"{kind}__")} for kind in ("in", "out")}  # fmt: skip
    return Case(entry["id"], parts["in"], parts["out"], entry["hyperparameters"], **entry["tolerance"])
