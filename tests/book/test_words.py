"""A section is read in about ten minutes: 1,400 to 2,200 words.

Counted is what stands open on the page: text, captions, predictions with their answers. Not counted are what the reader
unfolds or does (derivations, exercises), code, formulas and drawings.
"""

import re
from pathlib import Path

import pytest

SECTIONS = sorted((Path(__file__).parents[2] / "book/sections").glob("[0-9][0-9]-*.md"))
CLOSED = {"derive", "exercise", "formula", "run", "widget"}
FENCE = re.compile(r"(:{3,})(?:\{(\w+)\}(.*))?$")


def words(text: str) -> int:
    """Words of a section's prose."""
    open_: list[tuple[int, str]] = []
    kept, code = [], False
    for line in text.splitlines():
        line = line.strip()
        fence = FENCE.match(line)
        if line.startswith("```"):
            code = not code
        elif code or re.match(r":[\w-]+:( |$)", line):
            continue
        elif fence and fence[2]:
            open_.append((len(fence[1]), fence[2]))
            kept += [fence[3]] if fence[2] == "predict" else []
        elif fence and open_ and len(fence[1]) == open_[-1][0]:
            open_.pop()
        elif not CLOSED & {kind for _, kind in open_}:
            kept.append(line)
    prose = re.sub(r"\$\$?[^$]+\$\$?", "x", "\n".join(kept))  # a symbol is read as a word
    prose = re.sub(r"\{\w+\}`([^`<]*)(?:<[^>]*>)?`", r"\1", prose)
    return sum(any(c.isalnum() for c in word) for word in prose.split())


def test_what_counts():
    text = "# A title\n\nOne $x$ {term}`two words`.\n\n:::{widget} w\n:caption: no\nnot read\n:::\n"
    assert (
        words(text + "::::{exercise} No\n:level: a\n\nno\n\n:::{answer}\nno\n:::\n::::\n```python\nno\n```\nlast") == 7
    )


@pytest.mark.parametrize("path", SECTIONS, ids=lambda path: path.stem[:2])
def test_a_section_is_read_in_ten_minutes(path):
    assert 1400 <= words(path.read_text()) <= 2200
