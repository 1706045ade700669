"""One thread and a fixed seed for every test here."""

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def alone():
    """The matrices are tiny: a second thread costs more than it saves, most of all where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(before)
