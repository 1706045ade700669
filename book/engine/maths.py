r"""Formulas as HTML before a page is served: KaTeX in an embedded JavaScript engine, no Node, no script in the page.

Every command of a formula is either layout (\frac, \sum, ...) or in the notation table, where it has one meaning and
perhaps a colour; any other makes the build fail, Greek letters included.
"""

import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from book.engine.lean import without_source
from book.engine.sources import esc, problem, sources

VENDOR = Path(__file__).parents[1] / "vendor"
LAYOUT = frozenset(
    r"""frac tfrac dfrac sum prod int sqrt left right big Big bigg Bigg bigl bigr Bigl Bigr log exp max min lim text
    mathrm mathbf mathbb mathcal mathit operatorname cdot cdots ldots dots times le ge ne leq geq neq approx propto to
    mapsto in notin mid quad qquad infty begin end nabla partial sim pm mp underbrace overbrace underset overset hat
    tilde bar prime succ prec iff Rightarrow Longrightarrow rightarrow leftarrow gets equiv displaystyle textstyle
    substack limits tag notag lVert rVert lvert rvert langle rangle lfloor rfloor forall exists setminus cup cap
    subset ll gg top vee wedge ell""".split()
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
MARKS = r"[,.;:!?)’”]+"
"""What never begins a line: a browser would put it there after a formula."""


@cache
def _katex():
    from py_mini_racer import MiniRacer

    engine = MiniRacer()
    engine.eval((VENDOR / "katex/katex.min.js").read_text())
    return engine


def macros(notation: list[dict]) -> dict[str, str]:
    """The table as KaTeX takes it: a macro with a role carries the role's colour."""
    made = {}
    for entry in notation:
        if entry.get("tex"):
            role = entry.get("role")
            made[entry["macro"]] = rf"\htmlClass{{{role}}}{{{entry['tex']}}}" if role else entry["tex"]
    return made


def unknown(tex: str, notation: list[dict]) -> list[str]:
    """Commands of a formula that are neither layout nor in the table."""
    known = {entry["macro"].removeprefix("\\") for entry in notation}
    words = re.sub(r"\\(text|operatorname|mathrm)\{[^}]*\}", "", tex)
    return sorted({rf"\{name}" for name in _COMMAND.findall(words)} - {rf"\{n}" for n in known | LAYOUT})


@cache
def _render(tex: str, display: bool, table: tuple[tuple[str, str], ...]) -> str:
    options = {"displayMode": display, "trust": True, "strict": "ignore", "throwOnError": True, "macros": dict(table)}
    return without_source(_katex().call("katex.renderToString", tex, options))


def typeset(tex: str, notation: list[dict], display: bool = False) -> str:
    """HTML and MathML of a formula. Raises ValueError with KaTeX's words, or with the macros nobody declared."""
    strange = unknown(tex, notation)
    if strange:
        raise ValueError(f"the formula {tex.strip()} uses {', '.join(strange)}, not in the notation table")
    from py_mini_racer import JSEvalException

    try:
        return _render(tex.strip(), display, tuple(sorted(macros(notation).items())))
    except JSEvalException as error:
        said = next((line for line in str(error).splitlines() if "ParseError" in line), str(error)[:300])
        raise ValueError(f"the formula {tex.strip()} cannot be typeset: {said}") from error


def checked(env, docname: str, tex: str, line: int | None = None, display: bool = False) -> str:
    """As `typeset`; a formula that cannot be is a problem of its page, and stands there as it was written."""
    try:
        return typeset(tex, sources(str(env.srcdir)).notation, display)
    except ValueError as error:
        problem(env, docname, str(error), line)
        return f"<code>{esc(tex)}</code>"


def check_page(app: Sphinx, tree: nodes.document) -> None:
    """Typeset every formula once while pages are read, so that problems show there; tie marks to those before them."""
    for node in [*tree.findall(nodes.math), *tree.findall(nodes.math_block)]:
        checked(app.env, app.env.docname, node.astext(), node.line, isinstance(node, nodes.math_block))
    for node in list(tree.findall(nodes.math)):
        _hold(node)


def is_short(tex: str) -> bool:
    """Whether a formula fits on any line; a longer one may be broken over lines itself."""
    return len(tex) <= 40


def _hold(node: nodes.math) -> None:
    """Put a short formula and the marks after it into one span that is not broken."""
    after = node.next_node(descend=False, siblings=True)
    mark = re.match(MARKS, after) if isinstance(after, nodes.Text) else None
    if mark and is_short(node.astext()):
        after.parent.replace(after, nodes.Text(after[mark.end() :]))
        node.parent.replace(node, held := nodes.inline(classes=["held"]))
        held += [node, nodes.Text(mark[0])]


def inline(translator, node) -> None:
    """A formula in a sentence."""
    translator.body.append(checked(translator.builder.env, translator.builder.current_docname, node.astext()))
    raise nodes.SkipNode


def block(translator, node) -> None:
    """A displayed formula."""
    env, page = translator.builder.env, translator.builder.current_docname
    made = checked(env, page, node.astext(), display=True)
    translator.body.append(f'<div class="equation">{made}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.add_html_math_renderer("katex", (inline, None), (block, None))
    app.connect("doctree-read", check_page)
