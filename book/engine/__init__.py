"""The book's Sphinx extension: terms, formulas, citations, figures of recorded runs, generated pages, and its theme.

A build fails on what a reader would stumble over: an unknown term, a citation without an entry, a macro that is not in
the notation table, a link to code that is not there, a figure whose study has changed. All such problems of a build are
listed together. The sources beside the pages are `glossary.yml`, `notation.yml`, `references.bib`, `sections.yml`.
"""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

from book.engine import blocks, data, figures, lean, maths, pages, predictions, prose, site
from book.engine.sources import problems, sources

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "project": "posttrain, the book",
    "extensions": ["myst_parser", "book.engine"],
    "exclude_patterns": ["vendor", "theme", "engine", "widgets", "_build"],
    "source_suffix": {".md": "markdown"},
    "myst_enable_extensions": ["dollarmath", "colon_fence", "deflist", "smartquotes"],
    "suppress_warnings": ["toc.not_included", "myst.header"],
    "html_theme": "posttrain_book",
    "html_math_renderer": "katex",
    "html_copy_source": False,
    "html_use_index": False,
    "language": "en",
}
logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_config_value("book_digests", "", "env", [str])
    app.add_html_theme("posttrain_book", str(ROOT / "theme"))
    for part in (maths, prose, blocks, figures, predictions, data, pages, site, lean):
        part.setup(app)
    app.connect("builder-inited", lambda app: sources.cache_clear())
    app.connect("env-purge-doc", lambda app, env, docname: problems(env).pop(docname, None))
    app.connect("build-finished", fail)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}


def fail(app: Sphinx, error: Exception | None) -> None:
    """End the build with an error if any page has a problem."""
    found = [line for lines in problems(app.env).values() for line in lines]
    if error is None and found:
        raise ExtensionError("the book has problems:\n  " + "\n  ".join(dict.fromkeys(found)))
