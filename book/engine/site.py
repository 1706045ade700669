"""What surrounds a page: contents, previous and next, tooltips, assets; and the index that the search reads."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from sphinx.application import Sphinx

from book.engine.maths import VENDOR
from book.engine.prose import tips
from book.engine.sources import href, sources, used

_EMPTY_HEAD = re.compile(r"<th[^>]*>(?:<p>\s*</p>)?</th>")
"""The corner of a table written in Markdown, which heads nothing."""


def surround(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Everything that the template asks for."""
    known = sources(str(app.srcdir))
    written = [s for s in known.sections if s.get("page")]
    here = known.section_of(pagename)
    at = written.index(here) if here else None
    root = "../" * pagename.count("/")
    link = lambda s: s and {**s, "href": href(pagename, s["page"])}  # noqa: E731
    context.update(
        root=root,
        parts=[{**p, "sections": [{**s, "href": href(pagename, s["page"]) if s.get("page") else None} for s in p["sections"]]}
               for p in known.parts],
        here=here,
        part=next((p for p in known.parts if here in p["sections"]), None),
        before=link(written[at - 1]) if at else None,
        after=link(written[at + 1]) if here and at + 1 < len(written) else None,
        tips=tips(app.env, pagename),
        widgets=list(used(app.env, "scripts").get(pagename, {})),
        predictions=pagename in used(app.env, "predictions"),
        whole=bool(known.parts),
    )  # fmt: skip
    body = context.get("body")
    if body:
        body = context["body"] = _EMPTY_HEAD.sub("<td></td>", body)
    if body and not pagename.startswith("_"):
        _index(app)[pagename] = list(_pieces(body, context.get("title", ""), f"{pagename}.html"))


def _index(app: Sphinx) -> dict:
    return used(app.env, "index")


class Words(HTMLParser):
    """The text of a piece of a page: a formula once and without spaces, no source code, no signs for the eye alone."""

    VOID = frozenset(("br", "hr", "img", "input", "link", "meta", "wbr"))

    def __init__(self):
        super().__init__()
        self.said: list[str] = []
        self.skipped = self.formula = 0

    def handle_starttag(self, tag, attrs):
        """Go into an element, or begin to pass over it."""
        kind = dict(attrs).get("class") or ""
        if self.skipped or tag == "annotation" or kind in ("katex-html", "source", "headerlink", "note-call"):
            self.skipped += tag not in self.VOID
        elif tag == "math":
            self.formula = 1
        elif not self.formula:
            self.said.append(" " if tag not in ("a", "em", "b", "code", "span", "sup") else "")

    def handle_endtag(self, tag):
        """Leave an element."""
        if self.skipped:
            self.skipped -= 1
        elif tag == "math":
            self.formula = 0

    def handle_data(self, data):
        """Text, unless it is passed over."""
        if not self.skipped:
            self.said.append("".join(data.split()) if self.formula else data)


def words(markup: str) -> str:
    """What a reader of some HTML reads."""
    parser = Words()
    parser.feed(markup)
    parser.close()
    return " ".join("".join(parser.said).split())


def _pieces(body: str, title: str, page: str) -> Iterator[list[str]]:
    """A page cut at its headings and entries: [page and anchor, heading, text]."""
    title = words(title)
    for part in re.split(r"(?=<h[123][ >])|(?=<dt id=)|(?=<section class=\"thing\")|(?=<li id=)", body):
        anchor = re.match(r'<(?!h1)[^>]*id="([^"]+)"', part)
        head = re.match(r"<(h[123]|dt)[^>]*>(.*?)</\1>", part, re.S)
        name, text = words(head[2]) if head else "", words(part)
        if text:
            where = page + (f"#{anchor[1]}" if anchor else "")
            yield [where, f"{title}: {name}" if name and name != title else title, text[:1500]]


def finish(app: Sphinx, error: Exception | None) -> None:
    """Write the search index, copy fonts and scripts, remove what Sphinx writes and no page loads."""
    if error:
        return
    static = Path(app.outdir) / "_static"
    for name in ("doctools.js", "documentation_options.js", "sphinx_highlight.js", "searchtools.js", "language_data.js",
                 "pygments.css", "basic.css", "file.png", "plus.png", "minus.png"):  # fmt: skip
        (static / name).unlink(missing_ok=True)
    for name in ("searchindex.js", "objects.inv", ".buildinfo", "search.html"):
        (Path(app.outdir) / name).unlink(missing_ok=True)
    for folder in ("katex", "fonts"):
        shutil.copytree(VENDOR / folder, static / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.js"))
    shutil.rmtree(static / "widgets", ignore_errors=True)
    if (widgets := Path(app.srcdir) / "widgets").is_dir():
        shutil.copytree(widgets, static / "widgets")
    shutil.rmtree(static / "models", ignore_errors=True)
    if (Path(app.srcdir) / "models").is_dir():
        from book.models.export import write

        write(static / "models")
    pieces = [piece for page in _index(app).values() for piece in page]
    (static / "search-index.js").write_text(f"window.bookIndex = {json.dumps(pieces, ensure_ascii=False)};\n")


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.connect("builder-inited", lambda app: setattr(app.builder, "search", False))
    app.connect("html-page-context", surround)
    app.connect("build-finished", finish)
