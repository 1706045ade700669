"""What surrounds a page: contents, previous and next, tooltips, assets; and the index that the search reads."""

import html
import json
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from book.engine.maths import VENDOR
from book.engine.prose import tips
from book.engine.sources import href, sources, used


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
        whole=bool(known.parts),
    )  # fmt: skip
    body = context.get("body")
    if body and not pagename.startswith("_"):
        _index(app)[pagename] = list(_pieces(body, context.get("title", ""), f"{pagename}.html"))


def _index(app: Sphinx) -> dict:
    return used(app.env, "index")


def _pieces(body: str, title: str, page: str):
    """A page cut at its headings: [page and anchor, heading, text]."""
    title = html.unescape(re.sub(r"<[^>]+>", "", title))
    for part in re.split(r"(?=<h[123][ >])|(?=<dt id=)|(?=<section class=\"thing\")|(?=<li id=)", body):
        anchor = re.search(r'id="([^"]+)"', part[:200]) if not part.startswith("<h1") else None
        head = re.match(r"<(?:h[123]|dt)[^>]*>(.*?)</(?:h[123]|dt)>", part, re.S)
        said = re.sub(r'<a class="headerlink".*?</a>', "", head[1]) if head else ""
        name = html.unescape(re.sub(r"<[^>]+>", "", said)).strip()
        text = re.sub(r"<annotation.*?</annotation>", "", part, flags=re.S)
        text = re.sub(r'<span class="katex-html".*?(?=</p>|</div>|[.,;:] [a-zA-Z])', "", text, flags=re.S)
        text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))).strip()
        if text:
            yield [
                page + (f"#{anchor[1]}" if anchor else ""),
                f"{title}: {name}" if name and name != title else title,
                text[:1500],
            ]


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
    for path in sorted((Path(app.srcdir) / "widgets").glob("*")):
        (static / "widgets").mkdir(exist_ok=True)
        shutil.copy(path, static / "widgets")
    pieces = [piece for page in _index(app).values() for piece in page]
    (static / "search-index.js").write_text(f"window.bookIndex = {json.dumps(pieces, ensure_ascii=False)};\n")


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.connect("builder-inited", lambda app: setattr(app.builder, "search", False))
    app.connect("html-page-context", surround)
    app.connect("build-finished", finish)
