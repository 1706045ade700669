"""The numbers of section 15's widget: its laws and fits against the library, and the reader's rule against Python."""

import random

import pytest
import torch

pytest.importorskip("py_mini_racer", reason="the page's code runs in mini-racer, which posttrain[book] brings")

from posttrain.objectives import scaling  # noqa: E402
from posttrain.objectives.selection import best_of_n_bound  # noqa: E402
from tests.book.pagecode import engine  # noqa: E402

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
LAWS = {
    "BestOfN": (scaling.gold_best_of_n, scaling.fit_best_of_n, scaling.peak_best_of_n),
    "Rl": (scaling.gold_rl, scaling.fit_rl, scaling.peak_rl),
}


def page(name, *arguments):
    return engine("pressure").call(name, *arguments)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def numbers(seed: int, n: int, scale: float = 1.0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, scale) for _ in range(n)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LAWS)
def test_laws_and_fits_are_the_librarys(name, seed):
    gold, fit, peak = LAWS[name]
    distance, y = [0.0, *map(abs, numbers(seed, 11, 3.0))], [0.0, *numbers(seed + 50, 11)]
    law = fit(double(distance), double(y))
    found = page(f"fit{name}", distance, y)
    torch.testing.assert_close(double([found["alpha"], found["beta"]]), torch.stack(list(law)), **TOLERANCE)
    values = [page(f"gold{name}", d, found) for d in distance]
    torch.testing.assert_close(double(values), gold(double(distance), law), **TOLERANCE)
    top = page(f"peak{name}", {"alpha": 1.1, "beta": 0.3})
    wanted = peak(scaling.Law(double(1.1), double(0.3)))
    torch.testing.assert_close(double([top["distance"], top["gold"]]), torch.stack(list(wanted)), **TOLERANCE)


def test_points_in_one_place_have_no_law_and_a_rising_law_no_peak():
    assert page("fitRl", [2.0, 2.0], [1.0, 1.0]) is None
    assert page("peakRl", {"alpha": 1, "beta": -1}) is None and page("peakBestOfN", {"alpha": 1, "beta": 0}) is None


def test_the_bound_of_best_of_n():
    for n in (1, 2, 17, 1024):
        assert page("bestOfNBound", n) == pytest.approx(best_of_n_bound(n), rel=1e-9, abs=1e-12)


def test_what_a_stop_keeps_and_what_a_curve_explains():
    gold = [1.0, 3.0, 5.0, 2.0, 0.0]
    assert [page("kept", gold, i) for i in range(5)] == [0, 0.5, 1, 0.25, -0.25]
    assert page("kept", [1.0, 0.0], 0) == 1 and page("peakOf", gold) == 2
    assert page("explained", gold, gold) == 1 and page("explained", gold, [2.2] * 5) == pytest.approx(0)


RULES = (
    "polite > 2 and tokens > 1.5 * tokens0", "not facts < 1 or repeats >= .5", "(proxy - proxy0) / 2 <= -distance + 1",
    "polite - facts - 1 > 0", "polite > 1 or facts > 1 and tokens < 0", "sentences",
)  # fmt: skip


@pytest.mark.parametrize("text", RULES)
def test_a_rule_means_what_it_means_in_python(text):
    draw = random.Random(text)
    names = ("proxy", "distance", "tokens", "sentences", "polite", "facts", "repeats")
    for _ in range(40):
        now, first = ({name: round(draw.uniform(-1, 4), 2) for name in names} for _ in range(2))
        known = now | {f"{name}0": value for name, value in first.items()}
        wanted = bool(eval(text, {"__builtins__": {}}, known))  # our own texts above
        assert engine("pressure").call("((text, now, first) => rule(text)(now, first))", text, now, first) == wanted


@pytest.mark.parametrize("text", ["", "polite >", "honest > 1", "(polite > 1", "polite > 1 polite", "polite ; 1"])
def test_a_rule_that_cannot_be_read_says_why(text):
    with pytest.raises(Exception, match="Error"):
        engine("pressure").call("((text) => rule(text))", text)


def test_a_detector_is_told_in_time_or_too_late():
    run = {"proxy": [0, 1, 2, 3], "distance": [0, 1, 2, 3], "gold": [0.0, 2.0, 1.0, -1.0],
           "traits": {"polite": [0, 1, 2, 3]}}  # fmt: skip
    ask = "((run, text) => detect(run, rule(text)))"
    found = [engine("pressure").call(ask, run, text) for text in ("polite >= 1", "polite > 1", "polite > 9")]
    assert [(f["at"], f["fired"], f["inTime"], f["kept"]) for f in found] == [
        (1, True, True, 1), (2, True, False, 0.5), (3, False, False, -0.5),
    ]  # fmt: skip
