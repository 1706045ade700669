"""Golden numbers that other libraries computed: which cases there are, and how one is compared.

A folder of cases holds `manifest.json` and one `.npz` per case with arrays `in__NAME` and `out__NAME`. A copy lies in
`cases.tar.xz` beside this file, so that every clone can check itself; POSTTRAIN_ORACLES names another folder of the
same form. `adapter.py` says which of our functions answers a case.
"""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PACKED = Path(__file__).with_name("cases.tar.xz")


@dataclass(frozen=True)
class Case:
    """One case: inputs as `case["logps"]`, numbers as `case.hyper["beta"]`, what to return in `case.outputs`."""

    id: str
    family: str
    name: str
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

    def error(self, name: str, value: Tensor) -> float:
        """How far value is from the expected output, in units of the tolerance: above 1 is a failure."""
        expected = self.outputs[name]
        value = torch.as_tensor(value).detach().to(expected.dtype)
        if value.shape != expected.shape:
            return float("inf")
        if not expected.is_floating_point():
            return 0.0 if torch.equal(value, expected) else float("inf")
        gap = torch.where(expected.isnan() & value.isnan(), 0.0, (value - expected).abs())
        gap = torch.where(value == expected, 0.0, gap)  # infinities of one sign
        share = gap / (self.atol + self.rtol * expected.abs())
        return float(share.nan_to_num(nan=float("inf")).max()) if share.numel() else 0.0


@cache
def _files() -> Mapping[str, bytes] | Path:
    """The folder that was asked for, or the packed files by name."""
    if folder := os.environ.get("POSTTRAIN_ORACLES"):
        return Path(folder)
    with tarfile.open(PACKED) as tar:
        return {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar if m.isfile()}


def _read(name: str) -> bytes:
    files = _files()
    return (files / name).read_bytes() if isinstance(files, Path) else files[name]


@cache
def entries() -> tuple[dict, ...]:
    """The manifest's description of every case, in its order."""
    return tuple(json.loads(_read("manifest.json"))["cases"])


def load(entry: dict) -> Case:
    """A case with its arrays as tensors, and its texts as lists."""
    with np.load(io.BytesIO(_read(entry["file"]))) as arrays:
        parts = {kind: {k.removeprefix(f"{kind}__"): _value(arrays[k]) for k in arrays.files
                        if k.startswith(f"{kind}__")} for kind in ("in", "out")}  # fmt: skip
    return Case(
        entry["id"], entry["family"], entry["name"], parts["in"], parts["out"], entry["hyperparameters"],
        **entry["tolerance"],
    )  # fmt: skip


def _value(array: np.ndarray) -> Tensor | list[str]:
    return array.tolist() if array.dtype.kind == "U" else torch.as_tensor(np.array(array))
