"""The studies of preference learning: what they make of figures, and that each runs on a tiny setting."""

import importlib
import json

import pytest

from posttrain.lab.golden.unpaired import halves
from posttrain.lab.preference_runs import rise
from posttrain.lab.studies.flipped_labels import flipped
from posttrain.lab.studies.length_confounded import confounded
from posttrain.lab.studies.one_loss import in_gold_order

GOLDEN = ("online_preference", "preference", "reward_model", "rrhf", "unpaired")
STUDIES = (
    "flipped_labels",
    "ipo_margin",
    "kto_half",
    "length_confounded",
    "likelihood",
    "one_loss",
    "online_rounds",
    "scorers",
)
TINY = {
    "steps": 2, "prompts": 16, "pairs": 14, "updates": 2, "ranked": 24, "held": 24, "members": 2,
}  # fmt: skip
EQUAL = (
    "loss of the first step",
    "tokens per answer, after - before",
    "ipo: end over target",
    "ipo: second half",
    "calibration error",
    "share of the gain",
)
"""Figures that claim no difference, or are one by themselves."""
CURVES = ("chosen", "rejected")
"""Figures that are lists."""
OWN = {
    "one_loss": {"scored": [0, 1, 2]},
    "flipped_labels": {"held": 12},
    "online_rounds": {"prompts": 4},
    "scorers": {"prompts": 40},
    "reward_model": {"pairs": 40},
}


def study(name: str):
    return importlib.import_module(f"posttrain.lab.{'golden' if name in GOLDEN else 'studies'}.{name}").STUDY


def figures(name: str, value: float) -> dict:
    """Made-up cells of a study, every figure the same: what `read` asks for without running anything."""

    class Any(dict):
        def __missing__(self, key):
            return [value] if key in CURVES else value

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


def test_a_share_of_labels_is_turned_around():
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(50)]
    found = flipped(rows, 0.2, 7)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert sum(row["chosen"] == "b" and row["rejected"] == "a" for row in found) == 10
    assert flipped(rows, 0.0, 7) == rows and flipped(rows, 0.2, 8) != found


def test_the_annotator_and_gold_agree_or_not():
    asked = "Tell me about Edgar."
    rude, silent = "Nobody cares. Look it up yourself.", ""
    assert in_gold_order({"prompt": asked, "chosen": silent, "rejected": silent}) == 0.5
    a, b = ({"prompt": asked, "chosen": x, "rejected": y} for x, y in ((silent, rude), (rude, silent)))
    assert {in_gold_order(a), in_gold_order(b)} == {0.0, 1.0}


def test_the_replay_adds_up_to_where_pairs_ended():
    lines = [{"prompt": "p", "chosen": "c", "rejected": "r"}]
    tokens = {"tokens": [[["c", "(end)"], ["r"]]], "worth": [[[-0.12, -0.08], [-0.75]]]}
    moved = [[[0.0], [0.0]], [[-1.26], [-3.14]], [[-2.0], [-7.5]]]
    shown = study("one_loss").page(
        {"β = 0.1": {0: {"pairs": lines, "start": [[-9.04], [-4.0]], "moved": moved, **tokens}}}
    )
    ((prompt, chosen, rejected, *before, up, down, good, bad),) = shown["pairs"]
    assert (prompt, chosen, rejected, before) == ("p", ["c", "(end)"], ["r"], [-90, -40])
    assert (good, bad) == ([-12, -8], [-75])
    assert up == [-13, -7] and down == [-31, -44] and sum(up) == -20 and sum(down) == -75


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
    found = dict(study(name).measure(given, 0, tmp_path))
    shown = found.pop("page", None)
    assert found and all(isinstance(x, float | int) for x in found.values() if not isinstance(x, list))
    assert (study(name).page is None) == (shown is None)
    json.dumps(found)
