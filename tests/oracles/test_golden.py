"""Every golden case of the peers, through the adapter, at the tolerance of its manifest."""

import pytest
import torch
from adapter import answer
from golden import entries, load


@pytest.mark.parametrize("entry", entries(), ids=lambda e: e["id"])
def test_equals_the_peer(entry):
    case = load(entry)
    torch.manual_seed(0)
    found = answer(case)
    missing = set(case.outputs) - set(found)
    assert not missing, f"the adapter gives no {sorted(missing)}"
    wrong = {name: e for name in case.outputs if not (e := case.error(name, found[name])) <= 1}
    assert not wrong, f"outside the tolerance ({case.atol:g}, {case.rtol:g}), in units of it: {wrong}; {case.hyper}"
