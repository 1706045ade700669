"""Every displayed formula of the book against the function that it is bound to, on random inputs in float64."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from book.engine.formulas import Bound, both, bound, draw  # noqa: E402

BOOK = Path(__file__).parents[2] / "book"
FORMULAS = list(bound(BOOK / "sections"))


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f"{Path(f.page).stem}:{f.label}")
def test_a_formula_is_what_its_function_computes(formula):
    for seed in range(5):
        page, library = both(formula, seed)
        assert page.shape == library.shape
        np.testing.assert_allclose(page, library, rtol=1e-9, atol=1e-12)


def test_there_are_formulas():
    assert len(FORMULAS) >= 2


def test_a_wrong_sign_is_seen():
    good = Bound("x.md", "k3", "posttrain.objectives.kl.k3", "r: real 8", "exp(-r) - 1 + r", "")
    np.testing.assert_allclose(*both(good, 0))
    page, library = both(replace(good, check="exp(r) - 1 - r"), 0)
    assert not np.allclose(page, library)


def test_inputs_are_of_their_kinds():
    rng = np.random.default_rng(0)
    assert draw("real 2 3", rng).shape == (2, 3) and draw("0.5", rng) == 0.5
    assert (draw("positive 9", rng) > 0).all() and draw("mask 4", rng).dtype == bool
    np.testing.assert_allclose(draw("probs 2 5", rng).sum(-1), 1)
    assert 1 <= draw("whole 9", rng) < 9
