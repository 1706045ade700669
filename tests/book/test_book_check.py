"""The browser's check of the book: it notices what is wrong with a page, and finds nothing wrong with ours."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the book is built with posttrain[book], which is not installed")
pytest.importorskip("playwright", reason="pages are opened with playwright, of posttrain[dev], which is not installed")
pytest.importorskip("axe_playwright_python", reason="it brings axe-core, of posttrain[dev], and is not installed")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from book.check import __main__ as check  # noqa: E402
from book.check import browser, rules  # noqa: E402

try:
    browser.executable()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A page</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width"></head><body><main><h1>A page</h1>%s</main></body></html>"""
WIDGET = """<figure class="widget"><pt-w></pt-w></figure>
<script>customElements.define("pt-w", class extends HTMLElement {
  connectedCallback() {
    const handle = `<span role="slider" aria-label="x" aria-valuenow="0" tabindex="%s">x</span>`;
    this.innerHTML = `<div style="height: 80px">${handle}</div>`;
    this.stage = this.firstChild;
    this.querySelector("span").onkeydown = () => { this.took = %s };
    this.ready = true;
  }
})</script>"""
WRONG = {
    "an image without words": ('<img src="data:,">', "axe image-alt"),
    "grey on grey": ('<p style="color: #aaa; background: #999">pale</p>', "axe color-contrast"),
    "too wide": ('<div class="wide" style="width: 3000px">x</div>', "scrolls sideways: 3"),
    "another host": ('<img alt="x" src="https://example.org/x.png">', "a request to https://example.org/x.png"),
    "a file that is not there": ('<img alt="x" src="none.png">', "404 for none.png"),
    "an error": ("<script>throw new Error('no luck')</script>", "script: no luck"),
    "a message": ("<script>console.error('no luck')</script>", "console: no luck"),
    "too heavy": ("<script>/* %s */</script>", "kB compressed, 60 at most"),
    "a forced order": ('<a href="#a">a</a><a href="#b" tabindex="2">b</a>', "tabindex 2 on a"),
    "an order that jumps": ('<a href="#a">a</a><a href="#b" tabindex="2">b</a>', "Tab goes back, to a a"),
    "a handle out of reach": (WIDGET % (-1, 1), "Tab does not reach span x"),
    "a slow widget": (WIDGET % (0, 9), "pt-w draws in 9.0 ms"),
    "no widget": ('<figure class="widget"><pt-none>x</pt-none></figure>', "pt-none did not start"),
}


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as running:
        yield running


def checked(running, folder: Path, body: str, monkeypatch) -> list[str]:
    import random

    draw = random.Random(0)
    noise = "".join(chr(draw.randrange(48, 122)) for _ in range(90_000))
    (folder / "index.html").write_text(PAGE % body.replace("%s", noise))
    monkeypatch.setattr(check, "OUT", folder / "out")
    monkeypatch.setattr(browser, "PATIENCE", 500)
    monkeypatch.setattr(rules, "MOVES", 20)
    with browser.served(folder) as address:
        return check.check(running, address, "index.html", timed=True)[1]


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_it_notices(what, chromium, tmp_path, monkeypatch):
    body, said = WRONG[what]
    found = checked(chromium, tmp_path, body, monkeypatch)
    assert any(said in problem for problem in found), found


@pytest.mark.slow
def test_it_lets_a_good_page_pass(chromium, tmp_path, monkeypatch):
    assert checked(chromium, tmp_path, '<a href="#">a</a>' + WIDGET % (0, 1), monkeypatch) == []
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(browser.VIEWS)


@pytest.mark.slow
def test_nothing_is_wrong_with_the_book(tmp_path, monkeypatch, capsys):
    """All pages but most of the reference, of which a few stand for all; `make book-check` has every one.

    The pictures stay in build/book-check, to be looked at.
    """
    from sphinx.application import Sphinx

    site = tmp_path / "site"
    Sphinx(ROOT / "book", ROOT / "book", site, tmp_path / "trees", "html", status=None, warning=None).build()
    for path in sorted((site / "api").glob("*.html"))[5:]:
        path.unlink()
    monkeypatch.chdir(ROOT)
    assert check.main([str(site)]) == 0, capsys.readouterr().out
    assert len(list((ROOT / check.OUT / "phone").iterdir())) == len(list(site.rglob("*.html")))
