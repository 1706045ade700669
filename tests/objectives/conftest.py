"""Makes `oracle` importable from these tests, and lets them build float64 weights."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def double_precision():
    """Formulas are compared in float64, so that a tolerance speaks about the formula and not about rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
