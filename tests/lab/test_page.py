"""What widgets read of studies: it stays out of figures, is written beside the digest, and is noticed when old."""

import copy
import json
import sys
from datetime import date

import pytest

from posttrain.cli import lab
from posttrain.errors import UsageError
from posttrain.lab import cells, digest, menu, page, verdict
from posttrain.lab.study import Study

MODULE = """
from posttrain.lab.study import Figure, Study

def measure(settings, seed, scratch):
    dots = [settings["x"], seed] if settings["x"] != 9 else float("nan")
    return {"value": settings["x"] + seed / 10, "page": {"dots": dots}}

def read(cells):
    return [Figure(what="value", before=0.0, after=cells["a"][0]["value"], low=0.0, high=9.0, seen=True, text="up")]

def page(pages):
    return {arm: [by[seed]["dots"] for seed in sorted(by)] for arm, by in pages.items()}

told = {"claim": "c", "source": "s", "seeds": (0, 1, 2), "measure": measure, "read": read}
STUDIES = (
    Study(name="dotted", arms={"a": {"x": 1}, "b": {"x": 2}}, sections=("14", "15"), page=page, **told),
    Study(name="plain", arms={"a": {"x": 1}}, sections=("15",), **told),
    Study(name="endless", arms={"a": {"x": 9}}, page=page, **told),
)
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Studies in a file that child processes can import; runs, digests and the menu are theirs alone."""
    (tmp_path / "paged_studies.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digest, "FOLDER", tmp_path / "digests")
    monkeypatch.delitem(sys.modules, "paged_studies", raising=False)
    entries = {e.study.name: e for e in menu.of_module("paged_studies")}
    monkeypatch.setattr(
        menu,
        "entries",
        lambda kind, names=(): [e for n, e in entries.items() if kind == "studies" and (not names or n in names)],
    )
    return entries


def with_(study: Study, **changes) -> Study:
    return Study(**(vars(study) | changes))


def test_what_a_widget_reads_is_no_figure(made, capsys):
    assert lab.main(["studies", "dotted"]) == 0
    said = capsys.readouterr().out
    assert "wrote" in said and "the data of its widget is missing: wrote" in said
    recorded, found = digest.load("dotted"), page.load("dotted")
    assert recorded["cells"]["b"]["1"]["figures"] == {"value": 2.1}
    assert found["data"] == {"a": [[1, 0], [1, 1], [1, 2]], "b": [[2, 0], [2, 1], [2, 2]]}
    assert found["made"] == recorded["provenance"]["made"] and found["seeds"] == [0, 1, 2]
    assert '"data":{"a":[[1,0],[1,1]' in page.path_of("dotted").read_text()
    assert page.outdated(made["dotted"].study, found, recorded) is None
    again = verdict.compare(recorded["cells"]["a"]["0"]["figures"], recorded, "a", 0)
    assert [row.name for row in again] == ["value"]


def test_old_data_is_noticed(made):
    lab.main(["studies", "dotted"])
    study, recorded, found = made["dotted"].study, digest.load("dotted"), page.load("dotted")
    assert "of other settings" in page.outdated(with_(study, version=2), found, recorded)
    assert "has changed" in page.outdated(with_(study, page=lambda pages: None), found, recorded)
    other = copy.deepcopy(recorded)
    other["cells"]["a"]["0"]["figures"]["value"] = 7.0
    assert "other cells than its digest" in page.outdated(study, found, other)
    other = copy.deepcopy(recorded)
    other["cells"]["a"]["0"]["seconds"] = 7.0
    assert page.outdated(study, found, other) is None


def test_a_cell_that_another_time_made_without_it_runs_again(made):
    asked = cells.cells_of(made["dotted"], (0, 1, 2))
    cells.run_cells(asked, processes=2, say=lambda _: None)
    assert cells.missing(asked, fresh=False) == []
    path = asked[0].folder / "cell.json"
    record = json.loads(path.read_text())
    assert record.pop("page") == {"dots": [1, 0]}
    path.write_text(json.dumps(record))
    assert cells.missing(asked, fresh=False) == asked[:1]


def test_data_is_written_alone_only_where_it_fits_the_digest(made, capsys):
    lab.main(["studies", "dotted"])
    page.path_of("dotted").unlink()
    capsys.readouterr()
    assert lab.main(["studies", "dotted"]) == 0
    assert "is missing: wrote" in capsys.readouterr().out
    recorded = digest.load("dotted")
    recorded["cells"]["b"]["0"]["figures"]["value"] = 2.00001
    digest.write(recorded)
    assert lab.main(["studies", "dotted"]) == 0
    assert "of other cells than its digest; --record writes both" in capsys.readouterr().out
    assert lab.main(["studies", "dotted", "--record"]) == 0
    assert page.outdated(made["dotted"].study, page.load("dotted"), digest.load("dotted")) is None


def test_data_is_finite_and_small(made, capsys):
    assert lab.main(["studies", "endless"]) == 1
    assert 'under "page" must be plain JSON with finite numbers' in capsys.readouterr().out
    asked = cells.cells_of(made["dotted"], (0, 1, 2))
    cells.run_cells(cells.missing(asked, False), processes=2, say=lambda _: None)
    long = with_(made["dotted"].study, page=lambda pages: [hash((i, "x")) for i in range(40000)])
    with pytest.raises(ValueError, match="kB compressed, 150 at most"):
        page.make(long, asked, digest.make(made["dotted"], asked))


def test_a_section_runs_its_studies(made, capsys):
    assert lab.main(["14"]) == 0
    out = capsys.readouterr().out
    assert "6 cells of 1 studies" in out and "dotted" in out
    assert lab.main(["14", "15", "--processes", "2"]) == 0
    assert "9 cells of 2 studies, 3 of them to run" in capsys.readouterr().out
    assert lab.main(["15", "plain"]) == 0
    assert "3 cells of 1 studies, 0 of them" in capsys.readouterr().out
    with pytest.raises(UsageError, match="section 3 of the book shows no study. Sections that do: 14, 15"):
        lab.main(["3"])
    with pytest.raises(UsageError, match='there is no study "plane" in 15. Did you mean "plain"'):
        lab.main(["15", "plane"])


def test_sections_have_two_digits(made):
    with pytest.raises(ValueError, match="two digits each"):
        with_(made["plain"].study, sections=("2",))


@pytest.mark.parametrize("entry", menu.entries("studies"), ids=lambda e: e.study.name)
def test_the_data_in_the_package_is_current(entry):
    """As the book's build checks for the pages that read it."""
    recorded = digest.load(entry.study.name)
    if entry.study.page is None:
        assert not page.path_of(entry.study.name).exists(), "no function makes this data"
    elif recorded and not digest.outdated(entry.study, recorded):
        assert page.outdated(entry.study, page.load(entry.study.name), recorded) is None


# --- the six sections' cells, repeated -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("section", ["02", "13", "14", "15", "16", "23"])
def test_a_cell_of_the_day_repeats(section, tmp_path, monkeypatch, capsys):
    """One recorded cell of the section's studies, another one every day, lies among the recorded seeds."""
    monkeypatch.chdir(tmp_path)
    studies = menu.of_sections([section])
    assert verdict.pick(studies, date.today()), f"no study of section {section} is recorded as it is written now"
    assert not lab._one_cell_again(studies), capsys.readouterr().out
