"""kit/live.js in a browser: the command where there is no lab, a button where there is one, progress, errors, stop."""

import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="pages are opened with playwright, of posttrain[dev], which is not installed")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from book.check import browser  # noqa: E402

try:
    browser.executable()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

PAGE = """<!doctype html><html lang="en"><title>A page</title><link rel="icon" href="data:,"><body>
<script type="module">
import { panel } from "./live.js";
window.settings = { steps: 3 };
window.seen = [];
document.body.append(panel({ experiment: "toy", settings: () => window.settings,
  begin: () => seen.push("begin"), step: (e) => seen.push(e.step), end: (e) => seen.push(e.state) }));
</script></body></html>"""

pytestmark = pytest.mark.slow


@pytest.fixture
def page(lab, tmp_path):
    (tmp_path / "index.html").write_text(PAGE)
    shutil.copy(ROOT / "book/widgets/kit/live.js", tmp_path)
    with browser.chromium() as running:
        page = running.new_context().new_page()
        page.problems = []
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.problems.append(str(e)))
        yield page


def test_without_the_token_it_shows_the_command(lab, page):
    page.goto(lab.own + "/")
    page.wait_for_selector("text=open the book with posttrain book")
    assert page.query_selector("button") is None and page.problems == []


def test_a_run_from_a_page(lab, page):
    page.goto(lab.served.address)
    assert page.url == lab.own + "/", "the token is not in the address that stays"
    assert lab.served.token not in page.evaluate("document.cookie")
    page.click("text=Run it here")
    page.wait_for_selector("text=Done after 3 steps.")
    assert page.evaluate("seen") == ["begin", 0, 1, 2, "done"]
    page.evaluate("settings = { steps: 51 }")
    page.click("text=Run it here")
    page.wait_for_selector("text=steps = 51: it is a whole number from 1 to 50.")
    page.evaluate("seen.length = 0, settings = { steps: 50, pause: 0.05 }")
    page.click("text=Run it here")
    page.wait_for_function("seen.length > 2")
    page.click("text=Stop")
    page.wait_for_selector("text=Stopped after")
    assert page.evaluate("seen.at(-1)") == "stopped"


def test_a_page_that_comes_back_finds_its_run(lab, page):
    page.goto(lab.served.address)
    page.evaluate("settings = { steps: 50, pause: 0.1 }")
    page.click("text=Run it here")
    page.wait_for_function("seen.length > 3")
    page.reload()
    page.wait_for_function("seen.length > 5")
    assert page.evaluate("seen").count(0) == 1
    page.click("text=Stop")
    page.wait_for_selector("text=Stopped after")
