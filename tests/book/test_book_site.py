"""The book's engine: what a page becomes, and what makes a build fail. Every case is a site of one page."""

import json
import re
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the book is built with posttrain[book], which is not installed")
sys.path.insert(0, str(Path(__file__).parents[2]))

from sphinx.application import Sphinx  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402

from book.engine import SETTINGS  # noqa: E402
from book.engine.figures import interval_of, ticks  # noqa: E402
from book.engine.site import words  # noqa: E402
from book.engine.sources import sources  # noqa: E402
from posttrain.cli import book as served  # noqa: E402
from posttrain.errors import RunError  # noqa: E402
from posttrain.lab import digest  # noqa: E402

BOOK = Path(__file__).parents[2] / "book"
FILES = {
    "glossary.yml": """
- {term: nat, also: [nats], text: "A unit, as in $\\\\KL{p}{q}$."}
- {term: leash, text: "A charge."}
""",
    "notation.yml": r"""
- {macro: \KL, tex: '\mathrm{KL}(#1 \| #2)', role: kl, shown: '\KL{p}{q}', meaning: divergence}
""",
    "references.bib": """
@misc{k51, author={Kullback, S. and Leibler, R.}, title={On Information}, year={1951}, showed={A measure.}}
""",
}
K3 = """:::{formula}
:label: k3
:function: posttrain.objectives.kl.k3
:inputs: r: real 3
:check: exp(-r) - 1 + r

x
:::
"""


def build(folder: Path, page: str, **settings) -> str:
    """The HTML of a page, built with the engine. Raises ExtensionError with what is wrong."""
    source = folder / "source"
    source.mkdir()
    for name, text in (FILES | {"index.md": f"# A page\n\n{page}\n"}).items():
        (source / name).write_text(text)
    out = folder / "site"
    app = Sphinx(source, None, out, folder / "trees", "html", SETTINGS | settings, status=None, warning=None)
    app.build()
    return (out / "index.html").read_text()


def test_a_term_is_linked_at_its_first_use(tmp_path):
    page = build(tmp_path, "Some nats, then a nat, `nat`, and {term}`the charge <leash>`.\n\n## nat\n")
    assert len(re.findall(r'class="term" [^>]*data-tip="term-nat"', page)) == 1
    assert ">nats</a>" in page and ">the charge</a>" in page
    tip = page[page.index('id="term-nat"') :]
    assert 'class="katex"' in tip and "A unit" in tip


def test_formulas_are_typeset_and_bound_to_code(tmp_path):
    page = build(tmp_path, f"{K3}\nSee {{formula}}`k3` and $\\KL{{p}}{{q}}$ by {{citep}}`k51`.")
    assert page.count('class="katex-mathml"') == 2 and 'class="enclosing kl"' in page
    assert 'href="api/posttrain.objectives.kl.html#posttrain.objectives.kl.k3"' in page
    assert '<a href="index.html#eq-k3">equation 0.1</a>' in page
    assert re.search(r'\(<a class="cite" [^>]*>Kullback and Leibler 1951</a>\)', page)


def test_footnotes_become_sidenotes(tmp_path):
    page = build(tmp_path, "Text[^a] goes on.\n\n[^a]: A *note*.")
    assert '<span class="sidenote"><sup>1</sup> A <em>note</em>.</span>' in page
    assert "footnote" not in page


def test_no_page_asks_another_host(tmp_path):
    page = build(tmp_path, "{cite}`k51` $x$")
    assert not re.findall(r'(?:src|link [^>]*href)="(?:https?:)?//', page)


@pytest.mark.parametrize(
    "page, said",
    [
        ("A {term}`ratio`.", 'the term "ratio" is not in glossary.yml'),
        ("By {cite}`nobody2020`.", 'the citation "nobody2020" has no entry'),
        ("With $\\alpha$.", r"uses \\alpha, not in the notation table"),
        ("$$\n\\KL{p}{q} = \\beta\n$$", r"uses \\beta, not in the notation table"),
        ("With $\\frac{1$.", "cannot be typeset"),
        ("In {code}`posttrain.objectives.kl.k9`.", 'the code "posttrain.objectives.kl.k9" is no public function'),
        ("In {code}`os.path.join`.", 'the code "os.path.join" is no public function'),
        (K3.replace("kl.k3", "kl.k9"), "kl.k9"),
        (K3.replace(":label: k3\n", ""), "a formula needs a label"),
        (K3.replace(":check: exp(-r) - 1 + r\n", ""), "`check` is missing"),
        ("See {formula}`nothing`.", 'no formula has the label "nothing"'),
        (":::{fig} no_such_run\n:::", 'the run "no_such_run" has no digest'),
        (":::{fig} reinforce\n:pick: nothing\n:::", "cannot be drawn: pick"),
        (":::{widget} nothing\n:::", "there is no widgets/nothing.js"),
        (":::{derive} A\n::::{answer}\nb\n::::\n:::", "needs fewer colons than its 3"),
        (":::{derive} A\nb\n:::\n\n:::\n", "end no block that is open"),
        (":::{predict} In {formula}`k3`?\n- a\n:::", "stands where only emphasis, code and formulas can"),
        (":::{predict} How many?\n:kind: place\n:axis: 0 1\n:::", "place and draw need axis and truth"),
        (":::{predict} How many?\n:kind: draw\n:axis: 0 1\n:truth: no_such_run | a | b\n:::", "has no digest"),
    ],
)
def test_a_build_fails_on(page, said, tmp_path):
    with pytest.raises(ExtensionError, match=f"index(.md:\\d+)?: .*{said}"):
        build(tmp_path, page)


@pytest.mark.parametrize("change", ["settings", "name"])
def test_a_build_fails_on_a_figure_whose_run_changed(change, tmp_path):
    old = digest.load("reinforce")
    if change == "settings":
        (arm,) = old["arms"]
        old["arms"][arm]["steps"] = 1
        old["hash"] = "00000000"
    else:
        old["name"] = "reinforced"
    (tmp_path / f"{old['name']}.json").write_text(json.dumps(old))
    with pytest.raises(ExtensionError, match="its settings changed" if change == "settings" else "is of no study"):
        build(tmp_path, f":::{{fig}} {old['name']}\n:::", book_digests=str(tmp_path))


def test_a_figure_shows_its_digest(tmp_path):
    page, (first, *_) = (
        build(tmp_path, ":::{fig} reinforce\nWhat it *shows*.\n:::"),
        digest.load("reinforce")["figures"],
    )
    assert "<svg" in page and first["what"] in page and "<em>shows</em>" in page
    assert "3 seeds" in page and "<summary>Numbers</summary>" in page


def test_a_prediction_takes_its_truth_from_a_run(tmp_path):
    recorded = digest.load("clip_epochs")
    (share,) = [f["after"] for f in recorded["figures"] if f["what"] == "clip fraction"]
    asked = """:::{predict} How many, $\\KL{p}{q}$?
:kind: place
:axis: 0 100 %
:as: 100
:truth: clip_epochs | clip fraction
:opens: fold
:::
:::{predict} And the curve?
:kind: draw
:axis: 0 1 nats
:truth: clip_epochs | none | kl
:given: clip_epochs | clip | kl | with it
:::
"""
    page = build(tmp_path, asked)
    assert f'data-truth="{100 * share:.4g}"' in page and 'data-opens="fold"' in page and "predict.js" in page
    curve = re.search(r'data-kind="draw"[^>]*data-truth="([^"]+)" data-given="([^":]+):with it"', page)
    cells = recorded["cells"]["none"].values()
    means = [sum(values) / len(values) for values in zip(*(c["figures"]["kl"] for c in cells), strict=True)]
    assert [float(v) for v in curve[1].split()] == pytest.approx(means, rel=1e-3) and len(curve[2].split()) == 9


def test_all_problems_are_told_together(tmp_path):
    with pytest.raises(ExtensionError) as error:
        build(tmp_path, "A {term}`ratio` by {cite}`nobody2020`.")
    assert "ratio" in str(error.value) and "nobody2020" in str(error.value)


def test_the_interval_is_around_where_it_ended():
    assert interval_of({"before": 1.0, "after": 3.0, "low": 1.5, "high": 2.5}) == (2.5, 3.5)
    assert interval_of({"before": 1.0, "after": 0.2, "low": 0.1, "high": 0.3}) == (0.1, 0.3)
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_mark_after_a_short_formula_stays_on_its_line(tmp_path):
    page = build(tmp_path, "With $\\KL{p}{q}$, and so on $r$ ends.\n\n:::{predict} Is $r = 1$?\n:answer: 1\n- Yes\n:::")
    assert page.count('class="held"') == 2
    assert re.search(r'class="held">.*?</span>,</span> and so on', page, re.S)
    assert re.search(r'class="held">.*?</span>\?</span>', page, re.S)


def test_no_label_of_a_paper_shows_how_it_is_written_down():
    for key, paper in sources(str(BOOK)).papers.items():
        assert not set("{}\\") & set(paper["label"] + paper["authors"] + paper["title"]), key


def test_search_reads_a_formula_once_and_no_source(tmp_path):
    page = build(tmp_path, "With $\\KL{p}{q}$ in *nats*.")
    body = page[page.index("<article>") : page.index("</article>")]
    assert words(body) == "A page With KL(p∥q) in nats."
    assert words('<p>a</p><details class="source"><pre>x<br>y</pre></details><p>b</p>') == "a b"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The book itself."""
    folder = tmp_path_factory.mktemp("book")
    Sphinx(BOOK, BOOK, folder / "site", folder / "trees", "html", status=None, warning=None).build()
    return folder / "site"


def test_the_book_builds_and_every_link_in_it_leads_somewhere(whole):
    ids = {p: set(re.findall(r'\bid="([^"]+)"', p.read_text())) for p in whole.rglob("*.html")}
    assert len(ids) > 80
    for page in ids:
        for link in set(re.findall(r'(?:href|src)="([^"]+)"', page.read_text())):
            if link.startswith(("https://", "http://", "data:")):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), f"{page.relative_to(whole)} links to {link}"
            assert not anchor or anchor in ids[target], f"{page.relative_to(whole)} links to {link}"


def test_no_file_of_the_site_loads_from_elsewhere(whole):
    for path in [*whole.rglob("*.html"), *whole.rglob("*.css"), *whole.rglob("*.js")]:
        if path.name != "search-index.js":
            assert not re.search(r'(?:src=|url\(|@import |<link [^>]*href=)["\']?(?:https?:)?//', path.read_text()), (
                path
            )


def test_the_reference_leads_back_to_the_text(whole):
    page = (whole / "api/posttrain.objectives.kl.html").read_text()
    assert re.search(r'href="../sections/02-from-next-token.html#eq-k3">equation 02\.\d+</a>', page)
    index = (whole / "index.html").read_text()
    assert len(re.findall(r'<tr data-section="\d\d">', index)) == 27 and "not yet written" in index


def test_all_methods_are_on_their_page(whole):
    from posttrain.objectives import MENU, PRESETS

    page = (whole / "methods.html").read_text()
    assert all(f'id="{name}"' in page for name in PRESETS) and all(f'id="pair-{name}"' in page for name in MENU)


def test_the_site_is_served_on_this_machine_alone(tmp_path):
    with pytest.raises(RunError, match="make book"):
        served.server(tmp_path, 0)
    (tmp_path / "index.html").write_text("the book")
    with served.server(tmp_path, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as answer:
            assert answer.read() == b"the book"
        with pytest.raises(RunError, match="cannot be used"):
            served.server(tmp_path, server.server_port)
        server.shutdown()
