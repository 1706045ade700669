"""Cells run apart, fail apart, resume, and are kept; digests remember, and notice what moved."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest

from posttrain.cli import lab
from posttrain.errors import UsageError
from posttrain.lab import cells, digest, menu, verdict
from posttrain.lab.study import Figure, Study

MODULE = """
import os, time
from pathlib import Path
from posttrain.errors import MissingExtra
from posttrain.lab.study import Figure, Study, interval, paired

def measure(settings, seed, scratch):
    match settings["do"]:
        case "add":
            threads = float(os.environ["OMP_NUM_THREADS"])
            return {"value": settings["x"] + seed / 10, "curve": [0, seed], "threads": threads}
        case "fail":
            raise RuntimeError(f"no such luck with {seed}")
        case "miss":
            raise MissingExtra("it needs a package that nobody has")
        case "nan":
            return {"value": float("nan")}
        case "wait":
            if not (scratch / "was").exists():
                (scratch / "was").touch()
                time.sleep(60)
            return {"value": 1.0}

def read(cells):
    a, b = ([by[s]["value"] for s in sorted(by)] for by in (cells["a"], cells["b"]))
    gain, low, high = paired(b, a)
    ends = {"before": interval(a)[0], "after": interval(b)[0], "low": low, "high": high}
    return [Figure(what="value", **ends, seen=low > 0, text="up")]

def make(name, **arms):
    told = {"claim": "b is more than a", "source": "nobody", "seeds": (0, 1, 2)}
    return Study(name=name, arms=arms, measure=measure, read=read, **told)

STUDIES = (
    make("adding", a={"do": "add", "x": 1}, b={"do": "add", "x": 3}),
    make("failing", a={"do": "add", "x": 1}, b={"do": "fail"}),
    make("lacking", a={"do": "miss"}, b={"do": "miss"}),
    make("nothing", a={"do": "nan"}),
    make("waiting", a={"do": "wait"}),
)
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Studies in a file that child processes can import; runs, digests and the menu are theirs alone."""
    (tmp_path / "made_studies.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digest, "FOLDER", tmp_path / "digests")
    monkeypatch.delitem(sys.modules, "made_studies", raising=False)
    entries = {e.study.name: e for e in menu.of_module("made_studies")}
    monkeypatch.setattr(menu, "entries", lambda kind, names=(): [e for n, e in entries.items() if n in names])
    return entries


def run(entry, **options) -> tuple[list, cells.Ran, list[str]]:
    asked, said = cells.cells_of(entry, entry.study.seeds), []
    return asked, cells.run_cells(cells.missing(asked, fresh=False), processes=2, say=said.append, **options), said


def test_cells_run_once(made):
    asked, ran, said = run(made["adding"])
    assert not ran.failed and not ran.skipped
    assert cells.figures_of(asked)["b"][2] == {"value": 3.2, "curve": [0.0, 2.0], "threads": 1.0}
    assert "[6/6]" in said[-1] and "that was the last" in said[-1] and "min left" in said[0]
    assert not list(Path("runs/lab").rglob("scratch"))
    assert cells.missing(asked, fresh=False) == []
    assert cells.missing(asked, fresh=True) == []  # the very same code
    record = asked[0].folder / "cell.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"code": "other"}))
    assert cells.missing(asked, fresh=False) == []
    assert cells.missing(asked, fresh=True) == asked[:1]


def test_settings_have_folders_of_their_own(made):
    """Another setting, or another version, is another cell; another arm's are none of its business."""
    study = made["adding"].study
    other = {"a": study.arms["a"], "b": {"do": "add", "x": 4}}
    changed = menu.Entry("studies", "made_studies", Study(**(vars(study) | {"arms": other})))
    newer = menu.Entry("studies", "made_studies", Study(**(vars(study) | {"version": 2})))
    old, new, newest = (cells.cells_of(e, (0,)) for e in (made["adding"], changed, newer))
    assert old[0].folder == new[0].folder
    assert old[1].folder != new[1].folder
    assert len({c.folder for c in (*old, *newest)}) == 4


def test_a_crash_is_told_and_the_rest_goes_on(made):
    asked, ran, said = run(made["failing"])
    assert [str(c) for c in ran.failed] == [f"failing  b  seed {s}" for s in (0, 1, 2)]
    assert all("no such luck" in log.read_text() for log in ran.failed.values())
    assert any("RuntimeError: no such luck with 1" in line for line in said)
    assert sum(c.record is not None for c in asked) == 3
    assert len(cells.missing(asked, fresh=False)) == 3  # they are tried again


def test_what_is_lacking_is_told_once(made):
    _, ran, said = run(made["lacking"])
    assert ran.skipped == {"lacking": "it needs a package that nobody has"} and not ran.failed
    assert len(said) == 1


def test_a_figure_is_a_number(made):
    _, ran, said = run(made["nothing"])
    assert len(ran.failed) == 3 and "a figure is a finite number" in said[0]


def test_an_interrupted_cell_goes_on(made, tmp_path):
    code = "from posttrain.lab import cells, menu\n"
    code += "e = {e.study.name: e for e in menu.of_module('made_studies')}['waiting']\n"
    code += "cells.run_cells(cells.cells_of(e, (7,)), processes=1)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    (cell,) = cells.cells_of(made["waiting"], (7,))
    while not (cell.folder / "scratch" / "was").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[1]
    assert cell.record is None
    assert "Interrupted: stopped by SIGTERM" in (cell.folder / "log.txt").read_text()
    spent = float((cell.folder / "spent").read_text())
    assert not cells.run_cells([cell], processes=1, say=lambda _: None).failed
    assert cell.record["figures"] == {"value": 1.0}
    assert cell.record["seconds"] >= spent


# --- digests -------------------------------------------------------------------------------------------------------


def test_a_digest_remembers(made):
    entry = made["adding"]
    asked, _, _ = run(entry)
    found = digest.make(entry, asked)
    path = digest.write(found)
    assert digest.load("adding") == found == json.loads(path.read_text())
    assert found["cells"]["b"]["2"]["figures"]["curve"] == [0.0, 2.0]
    assert '"curve": [0.0, 2.0]' in path.read_text()
    (figure,) = found["figures"]
    assert (figure["before"], figure["after"], figure["seen"]) == (1.1, 3.1, True)
    assert found["seen"] and found["seeds"] == [0, 1, 2] and found["arms"]["b"] == {"do": "add", "x": 3}
    assert set(found["provenance"]) == {
        "made",
        "posttrain",
        "torch",
        "python",
        "machine",
        "revisions",
        "code",
        "seconds",
    }
    # 0, 0.1, 0.2 around 3.1: s = 0.1, e = s / √3, t at 4 degrees and 99 % is 4.604
    assert figure["tolerance"] == pytest.approx(4.60409 * math.sqrt(2) * 0.1 / math.sqrt(3), rel=1e-5)
    assert digest.outdated(entry.study, found) is None
    changed = Study(**(vars(entry.study) | {"arms": {**entry.study.arms, "b": {"do": "add", "x": 9}}}))
    assert "settings changed since it was recorded (b)" in digest.outdated(changed, found)
    newer = Study(**(vars(entry.study) | {"version": 2}))
    assert "recorded with version 1, now it is 2" in digest.outdated(newer, found)
    assert digest.seconds_of(found, asked[0]) == found["cells"]["a"]["0"]["seconds"]


def test_an_infinite_interval_is_written_as_null(made):
    (figure,) = digest.make(made["adding"], _cells_with(made, seeds=(0,)))["figures"]
    assert (figure["low"], figure["high"], figure["tolerance"]) == (None, None, None)


def _cells_with(made, seeds):
    asked = cells.cells_of(made["adding"], seeds)
    cells.run_cells(cells.missing(asked, False), processes=2, say=lambda _: None)
    return asked


def figure(after: float, tolerance: float | None = 0.1, what: str = "value") -> dict:
    return {"what": what, "before": 0.0, "after": after, "low": 0.0, "high": 1.0, "seen": True, "text": "",
            "tolerance": tolerance}  # fmt: skip


@pytest.mark.parametrize(
    ("now", "tolerance", "word"),
    [(1.05, 0.1, "as recorded"), (1.2, 0.1, "moved"), (0.85, 0.1, "moved"), (1.0, None, "as recorded"),
     (1.01, None, "moved")],
)  # fmt: skip
def test_a_figure_moves(now, tolerance, word):
    (row,) = verdict.judge({"figures": [figure(now)]}, {"figures": [figure(1.0, tolerance)]})
    assert row.verdict == word


def test_a_time_never_moves():
    (row,) = verdict.judge({"figures": [figure(9.0, what="seconds")]}, {"figures": [figure(1.0, 0.1, what="seconds")]})
    assert row.verdict == "a time"
    recorded = {"cells": {"a": {str(s): {"figures": {"seconds": 1.0, "x": 2.0}} for s in range(3)}}}
    assert [a.name for a in verdict.compare({"seconds": 9.0, "x": 2.0}, recorded, "a", 0)] == ["x"]


def test_a_figure_without_a_record_is_new():
    assert [r.verdict for r in verdict.judge({"figures": [figure(1.0)]}, None)] == ["new"]
    (row,) = verdict.judge({"figures": [figure(1.0, what="x")]}, {"figures": [figure(1.0)]})
    assert row.verdict == "new"


def test_a_tolerance_is_honest():
    """Of two means of three seeds from one distribution, about one in a hundred differs by more than the tolerance."""
    import random

    draw, outside, n = random.Random(0), 0, 2000
    for _ in range(n):
        then, now = ([draw.gauss(0, 1) for _ in range(3)] for _ in range(2))
        by_seed = {"a": {s: {"x": x} for s, x in enumerate(then)}}
        study = Study(name="x", claim="c", source="s", arms={"a": {}}, seeds=(0, 1, 2), measure=dict, read=mean_of_a)
        (tolerance,) = digest.tolerances_of(study, by_seed, mean_of_a(by_seed)).values()
        outside += abs(sum(now) / 3 - sum(then) / 3) > tolerance
    # s has 2 degrees of freedom and t is taken at 4: a little more than 1 %
    assert 0.005 < outside / n < 0.05


def mean_of_a(by_arm) -> list[Figure]:
    values = [x["x"] for x in by_arm["a"].values()]
    return [Figure(what="x", before=0.0, after=sum(values) / len(values), low=0, high=0, seen=True, text="")]


def test_a_repeated_cell_lies_among_its_arms_seeds(made):
    entry = made["adding"]
    found = digest.make(entry, _cells_with(made, (0, 1, 2)))
    digest.write(found)
    drawn = {verdict.pick([entry], date.fromordinal(d))[1:] for d in range(730000, 730060)}
    assert drawn == {(arm, seed) for arm in "ab" for seed in (0, 1, 2)}
    assert verdict.pick([made["failing"]], date(2026, 1, 1)) is None
    assert verdict.pick([entry], date(2026, 1, 1), most_seconds=-1.0) is None
    same = {r.name: r for r in verdict.compare(found["cells"]["b"]["1"]["figures"], found, "b", 1)}
    assert all(r.inside and r.now == r.then for r in same.values())
    # 3.1 ± 9.925 · 0.1 · √(4/3)
    assert (same["value"].low, same["value"].high) == pytest.approx((3.1 - 1.146, 3.1 + 1.146), abs=1e-3)
    assert not verdict.compare({"value": 4.3}, found, "b", 1)[0].inside


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_records_then_compares(made, capsys):
    assert lab.main(["studies", "adding"]) == 0
    out = capsys.readouterr().out
    assert "6 cells of 1 studies, 6 of them to run" in out and "wrote" in out and "new" in out
    assert lab.main(["studies", "adding"]) == 0
    out = capsys.readouterr().out
    assert "0 of them to run" in out and "as recorded" in out and "wrote" not in out
    path = digest.path_of("adding")
    record = json.loads(path.read_text())
    record["figures"][0]["after"] = 5.0
    path.write_text(json.dumps(record))
    assert lab.main(["studies", "adding"]) == 1
    assert "moved (5)" in capsys.readouterr().out
    assert json.loads(path.read_text()) == record  # what moved is not recorded by itself
    record["hash"] = "00000000"
    record["arms"]["b"]["x"] = 2
    path.write_text(json.dumps(record))
    assert lab.main(["studies", "adding"]) == 0
    assert "its settings changed since it was recorded (b)" in capsys.readouterr().out
    assert lab.main(["studies", "adding", "--list"]) == 0
    assert "b is more than a" in capsys.readouterr().out


def test_the_command_says_what_failed(made, capsys):
    assert lab.main(["studies", "failing", "--processes", "2"]) == 1
    out = capsys.readouterr().out
    assert "failed: failing  b  seed 0: runs/lab/failing/b-0-" in out
    assert lab.main(["studies", "lacking"]) == 0
    assert "passed over: lacking: it needs a package" in capsys.readouterr().out
    assert not os.path.exists("digests")


def test_a_study_that_cannot_be_read_is_told(made, capsys, monkeypatch):
    study = made["adding"].study
    broken = menu.Entry("studies", "made_studies", Study(**(vars(study) | {"read": lambda cells: cells["c"]})))
    monkeypatch.setattr(menu, "entries", lambda kind, names=(): [broken, made["lacking"]])
    assert lab.main(["studies"]) == 1
    out = capsys.readouterr().out
    assert "adding: its cells ran, and cannot be read: KeyError: 'c'" in out and "passed over: lacking" in out


def test_more_seeds(made):
    assert lab.seeds_of((0, 1, 2), None) == (0, 1, 2)
    assert lab.seeds_of((0, 1, 2), 2) == (0, 1)
    assert lab.seeds_of((3, 4), 5) == (3, 4, 5, 6, 7)


def test_golden_repeats_a_cell_of_the_day(made, capsys, monkeypatch):
    assert not lab._one_cell_again([made["adding"]])
    assert "no study is recorded" in capsys.readouterr().out
    digest.write(digest.make(made["adding"], _cells_with(made, (0, 1, 2))))
    assert not lab._one_cell_again([made["adding"]])
    out = capsys.readouterr().out
    assert f"the cell of {date.today()}: adding" in out and "the recorded value; inside" in out


def test_help_and_mistakes(capsys):
    assert lab.main([]) == 0
    assert "--fresh" in capsys.readouterr().out
    with pytest.raises(UsageError, match='Did you mean "golden"'):
        lab.main(["goldn"])


# --- beside TRL ----------------------------------------------------------------------------------------------------


def test_curves_within_the_interval_of_another_library():
    from posttrain.lab.studies.beside_trl import read

    def side(shift: float) -> dict:
        return {s: {"reward": [0.1 * step + 0.05 * s + shift for step in range(10)]} for s in range(5)}

    (same,), (off,) = (read({"theirs": side(0.0), "ours": side(x)}) for x in (0.02, 0.3))
    assert same.seen and same.after - same.before == pytest.approx(0.02)
    assert not off.seen and "0% of 10 steps" in off.text
