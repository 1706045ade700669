"""Today's random cell of every section of the book that shows studies: does it repeat what is recorded?"""

from datetime import date

import pytest

from posttrain.errors import UsageError
from posttrain.lab import cells, digest, verdict
from posttrain.lab.menu import entries, of_sections

SECTIONS = sorted({number for entry in entries("studies") for number in entry.study.sections})


@pytest.mark.slow
@pytest.mark.parametrize("number", SECTIONS)
def test_a_cell_of_a_section_repeats(number, tmp_path):
    drawn = verdict.pick(of_sections([number]), date.today())
    assert drawn is not None, f"no study of section {number} is recorded as it is written now"
    entry, arm, seed = drawn
    cell = cells.Cell(entry, arm, seed, tmp_path)
    ran = cells.run_cells([cell], processes=1, say=print)
    if entry.study.name in ran.skipped:
        pytest.skip(ran.skipped[entry.study.name])
    assert not ran.failed, f"{cell}: {ran.failed}"
    rows = verdict.compare(cell.record["figures"], digest.load(entry.study.name), arm, seed)
    assert rows and not [row for row in rows if not row.inside], f"{cell} left the interval of its seeds"


def test_every_written_section_of_measurements_is_drawn_from():
    assert {"02", "13", "14", "15", "16", "23"} <= set(SECTIONS)


def test_a_section_without_studies_is_refused():
    with pytest.raises(UsageError):
        of_sections(["99"])
