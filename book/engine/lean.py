"""What a browser need not load: comments of scripts and styles, and the source of each formula beside its MathML.

Sources in the repository keep their comments; the files of the site do not. Only comments that have their lines to
themselves are taken out, so that no text in quotes can be mistaken for one.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

_LINES = re.compile(r"^[ \t]*//.*\n", re.M)
_BLOCKS = re.compile(r"^[ \t]*/\*(?:[^*]|\*(?!/))*\*/[ \t]*\n", re.M)
_EMPTY = re.compile(r"\n(?:[ \t]*\n)+")
_TEX = re.compile(r"<annotation[^>]*>.*?</annotation>", re.S)


def without_comments(text: str, script: bool) -> str:
    """A script or a style without the comments that stand on their own lines, and without empty lines."""
    text = _BLOCKS.sub("", text)
    return _EMPTY.sub("\n", _LINES.sub("", text) if script else text)


def without_source(markup: str) -> str:
    """A typeset formula without its TeX; what is read aloud is its MathML."""
    return _TEX.sub("", markup)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Rewrite the scripts and styles of the site."""
    static = Path(app.outdir) / "_static"
    for path in [] if error else [*static.rglob("*.js"), *static.rglob("*.css")]:
        if path.name != "search-index.js":
            path.write_text(without_comments(path.read_text(encoding="utf-8"), path.suffix == ".js"), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by the extension, after what writes the files."""
    app.connect("build-finished", finish)
