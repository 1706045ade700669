"""Curves in a terminal begin and end where their axes say, and lose no spike."""

from posttrain.pages.terminal import braille, chart


def test_the_chart():
    text = chart({"up": [(0, 0.0), (10, 1.0)], "flat": [(0, 0.5), (10, 0.5)]}, width=11, height=3)
    lines = text.splitlines()
    assert lines[0].startswith("   1.00 |") and lines[0].endswith("o") and lines[2].startswith("   0.00 |o")
    assert lines[1].endswith("|xxxoooooxxx") and lines[-1] == "o up   x flat"
    assert chart({}) == "No run was measured."
    assert chart({"zero": [(0, 0.0), (10, 0.0)]}, width=11, height=3).splitlines()[2] == "   0.00 |" + "o" * 11


def test_a_chart_away_from_zero_says_so():
    text = chart({"a": [(0, 100.0), (10, 101.0)]}, width=11, height=3, zero=False)
    assert [line.split("|")[0].strip() for line in text.splitlines()[:3]] == ["101.00", "100.50", "100.00"]


def test_braille_goes_from_corner_to_corner():
    lines = braille([(0, 0.0), (9, 1.0)], width=5, height=2).splitlines()
    assert lines[0].startswith("        1 ┤") and lines[1].startswith("        0 ┤")
    assert lines[2].split() == ["0", "9"]
    assert lines[1][11] == "⡀" or ord(lines[1][11]) & 0x40, "the first dot is at the bottom"
    assert ord(lines[0][15]) & 0x08, "the last dot is at the top"


def test_a_spike_among_many_points_is_drawn():
    points = [(i, float(i == 500)) for i in range(1000)]
    top = braille(points, width=10, height=3).splitlines()[0]
    assert sum(ord(c) > 0x2800 for c in top) == 1


def test_what_does_not_move_is_said_in_words():
    assert braille([(0, 0.5), (9, 0.5)]) == "      0.5 in all steps from 0 to 9"
    assert braille([(3, 0.5)]) == "      0.5 in step 3"
    assert braille([]) == "No step was logged."
