"""The studies of preference learning: what they make of figures, and that each runs on a tiny setting."""

import importlib
import json

import pytest

from posttrain.lab.golden.unpaired import halves
from posttrain.lab.preference_runs import rise
from posttrain.lab.studies.length_confounded import confounded

GOLDEN = ("online_preference", "preference", "reward_model", "rrhf", "unpaired")
STUDIES = ("ipo_margin", "kto_half", "length_confounded", "likelihood", "online_rounds", "scorers")
TINY = {
    "steps": 2, "prompts": 16, "pairs": 14, "updates": 2, "ranked": 24, "held": 24, "members": 2,
}  # fmt: skip
EQUAL = ("ipo: end over target", "ipo: second half", "calibration error", "share of the gain")
"""Figures that claim no difference."""
OWN = {"online_rounds": {"prompts": 4}, "scorers": {"prompts": 40}, "reward_model": {"pairs": 40}}


def study(name: str):
    return importlib.import_module(f"posttrain.lab.{'golden' if name in GOLDEN else 'studies'}.{name}").STUDY


def figures(name: str, value: float) -> dict:
    """Made-up cells of a study, every figure the same: what `read` asks for without running anything."""

    class Any(dict):
        def __missing__(self, key):
            return value

    return {arm: {seed: Any() for seed in study(name).seeds} for arm in study(name).arms}


@pytest.mark.parametrize("name", [*GOLDEN, *STUDIES])
def test_what_does_not_differ_is_not_seen(name):
    found = study(name).read(figures(name, 0.5))
    rises = [f for f in found if f.what not in EQUAL]
    assert rises and not any(f.seen for f in rises)
    assert len({f.what for f in found}) == len(found)


def test_a_rise_is_seen_where_its_interval_leaves_out_zero():
    up = rise("x", [0.0, 0.1, 0.2], [1.0, 1.2, 1.1])
    assert up.seen and up.low > 0 and not rise("x", [0.0, 0.1, 0.2], [1.0, 1.2, 1.1], down=True).seen
    assert not rise("x", [0.0, 0.1, 0.2], [0.2, 0.0, 0.1]).seen
    assert rise("x", [1.0, 1.2, 1.1], [0.0, 0.1, 0.2], down=True).seen


def test_verdicts_are_half_of_the_pairs(tmp_path):
    rows = [{"prompt": str(i), "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [json.loads(line) for line in halves(path, tmp_path / "v.jsonl").read_text().splitlines()]
    assert [(r["completion"], r["label"]) for r in found] == [
        ("good 0", True), ("bad 1", False), ("good 2", True), ("bad 3", False)
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_winners_are_longer_as_often_as_asked(tmp_path, share):
    rows = [{"prompt": "", "chosen": "x" * (3 + i % 2), "rejected": "y" * (4 - i % 2)} for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [json.loads(line) for line in confounded(path, tmp_path / "c.jsonl", share, 0).read_text().splitlines()]
    longer = sum(len(r["chosen"]) > len(r["rejected"]) for r in found)
    assert longer / len(found) == pytest.approx(share, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GOLDEN, *STUDIES])
def test_it_runs_on_a_tiny_setting(tmp_path, name):
    given = dict(next(iter(study(name).arms.values())))
    given |= {k: v for k, v in (TINY | OWN.get(name, {})).items() if k in given}
    found = study(name).measure(given, 0, tmp_path)
    assert found and all(isinstance(x, float | int) for x in found.values())
    json.dumps(found)
