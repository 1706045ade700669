"""Comments are taken out of the site's scripts, and nothing else is."""

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the book is built with posttrain[book], which is not installed")
sys.path.insert(0, str(Path(__file__).parents[2]))

from book.engine.lean import without_comments, without_source  # noqa: E402

SCRIPT = """// What it is.
/**
 * A sum. @param {number} a
 */
export const sum = (a, b) => a + b; // stays
  // why
const link = "https://example.org/*", text = `
/ * kept * /
`;

/* one line */

const more = 2 /* stays */ * 3;
"""


def test_comments_on_their_own_lines_go():
    assert (
        without_comments(SCRIPT, script=True)
        == """export const sum = (a, b) => a + b; // stays
const link = "https://example.org/*", text = `
/ * kept * /
`;
const more = 2 /* stays */ * 3;
"""
    )


def test_a_style_has_no_line_comments():
    assert (
        without_comments("/* colours\n   of roles */\na { b: url(//x) }\n//x\n", script=False)
        == "a { b: url(//x) }\n//x\n"
    )


def test_a_formula_keeps_its_mathml():
    made = "<math><semantics><mi>x</mi><annotation encoding='application/x-tex'>x\n</annotation></semantics></math>"
    assert without_source(made) == "<math><semantics><mi>x</mi></semantics></math>"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "book").rglob("*.js")), ids=lambda p: p.stem)
def test_no_script_of_ours_breaks(path):
    """What is left of each script still parses, as a function without its imports and exports."""
    racer = pytest.importorskip("py_mini_racer", reason="scripts are read with mini-racer, of posttrain[book]")
    text = re.sub(r"^import .*\n", "", without_comments(path.read_text(), script=True), flags=re.M)
    text = re.sub(r"^export (default |\{.*)?", "", text, flags=re.M).replace("import.meta", "({})")
    assert racer.MiniRacer().eval(f"new (async () => {{}}).constructor({json.dumps(text)}) && 1") == 1
