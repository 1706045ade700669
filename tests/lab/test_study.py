"""Intervals over few seeds, against tables and by hand; and what a study and the menu refuse."""

import math
from pathlib import Path

import pytest

from posttrain.errors import UsageError
from posttrain.lab import menu
from posttrain.lab.study import Study, interval, paired, t_quantile

# Student's table, two-sided: degrees of freedom -> (95 %, 99 %); Fisher and Yates 1938, table III.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032),
         9: (2.262, 3.250), 10: (2.228, 3.169), 29: (2.045, 2.756), 30: (2.042, 2.750)}  # fmt: skip


@pytest.mark.parametrize("degrees", TABLE)
def test_the_table_of_t(degrees):
    found = t_quantile(degrees), t_quantile(degrees, 0.99)
    assert found == pytest.approx(TABLE[degrees], abs=5.1e-4)


def test_one_degree_is_cauchy():
    """P(|T| < t) = 2/π · atan t, so that half of it lies within 1."""
    assert t_quantile(1, 0.5) == pytest.approx(1.0)


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, s = 1, t = 4.3027, so ± 4.3027 / √3."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


def test_one_seed_says_nothing_about_others():
    assert interval([5.0]) == (5.0, -math.inf, math.inf)


def test_equal_values_leave_no_doubt():
    assert interval([0.5] * 3) == (0.5, 0.5, 0.5)


def test_pairs_drop_what_seeds_share():
    """Between seeds lies 10, between sides 1: unpaired nothing shows, paired everything."""
    ours, theirs = [1.0, 11.1, 20.9], [0.0, 10.0, 20.0]
    assert paired(ours, theirs)[1] > 0
    assert interval(ours)[1] < interval(theirs)[2]
    assert paired(ours, ours) == (0.0, 0.0, 0.0)


def test_what_intervals_refuse():
    with pytest.raises(ValueError, match="one value at least"):
        interval([])
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0)


def study(**changes) -> Study:
    base = {"name": "x", "claim": "c", "source": "s", "arms": {"a": {"n": 1}}, "seeds": (0, 1)}
    return Study(**(base | {"measure": lambda *_: {}, "read": lambda _: []} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "two words"}, "a file's name"),
        ({"arms": {}}, "one of each"),
        ({"seeds": (0, 0)}, "one of each"),
        ({"arms": {"a": {"n": (1, 2)}}}, "plain JSON"),
    ],
)
def test_what_a_study_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


# --- the menu ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", menu.FOLDERS)
def test_every_file_is_on_the_menu(kind):
    folder = Path(menu.__file__).parent / kind
    assert sorted(menu.FOLDERS[kind]) == sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def test_every_study_is_whole():
    found = [e for kind in menu.FOLDERS for e in menu.entries(kind)]
    names = [e.study.name for e in found]
    assert len(set(names)) == len(names), "two studies of one name would share a digest"
    for e in found:
        assert e.study.claim and e.study.source
        assert len(e.study.seeds) >= 3, f"{e.study.name}: an interval needs three seeds at least"


def test_a_file_of_several_studies_is_asked_for_by_its_name():
    assert [e.study.name for e in menu.entries("studies", ["beside-trl"])] == ["dpo_beside_trl", "grpo_beside_trl"]
    assert [e.study.name for e in menu.entries("studies", ["dpo_beside_trl"])] == ["dpo_beside_trl"]


def test_an_unknown_study():
    with pytest.raises(UsageError, match='there is no study "grop" in golden. Did you mean "group"'):
        menu.entries("golden", ["grop"])
    with pytest.raises(UsageError, match="It is one of golden"):
        menu.entries("studies", ["sft"])
