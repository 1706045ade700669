"""A browser that reaches the book's own server and nothing else, and what it saw of a page."""

import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.live.server import server

VIEWS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True, "is_mobile": True},
}
"""Each a context of its own, so that no page finds another one's files in the cache."""
PATIENCE = 20_000
"""Milliseconds that a widget has to come up."""
WEIGHED = ("text/html", "text/css", "text/javascript", "application/javascript")


@dataclass
class Seen:
    """What a page did while it was open."""

    bytes: int = 0
    """HTML, style and scripts, compressed one by one."""
    problems: list[str] = field(default_factory=list)
    """Requests that failed or left, and errors in the console."""


def executable() -> str:
    """Chromium on this machine. Raises FileNotFoundError where there is none."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise FileNotFoundError("no chromium on the path; install it (apt install chromium), or name it in CHROMIUM")
    return found


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a site, as `posttrain book` serves it."""
    with server(site, 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a screen and without names of other hosts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        how = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=executable(), args=how)
        yield browser
        browser.close()


def opened(context: Any, address: str, path: str) -> tuple[Any, Seen]:
    """A page of the book, loaded to its end, and what happened meanwhile and happens from now on."""
    page, seen = context.new_page(), Seen()
    sizes: dict[str, int] = {}

    def route(asked: Any) -> None:
        if asked.request.url.startswith((address, "data:", "blob:")):
            asked.continue_()
        else:
            seen.problems.append(f"a request to {asked.request.url[:100]}")
            asked.abort()

    def answered(response: Any) -> None:
        if response.status >= 400:
            seen.problems.append(f"{response.status} for {response.url.removeprefix(address)}")
        elif response.headers.get("content-type", "").partition(";")[0] in WEIGHED and response.status == 200:
            sizes[response.url] = len(gzip.compress(response.body(), 9))
            seen.bytes = sum(sizes.values())

    page.route("**/*", route)
    page.on("response", answered)
    page.on("requestfailed", lambda r: seen.problems.append(f"{r.url.removeprefix(address)} failed: {r.failure}"))
    page.on("console", lambda m: seen.problems.append(f"console: {m.text[:200]}") if m.type == "error" else None)
    page.on("pageerror", lambda e: seen.problems.append(f"script: {str(e)[:200]}"))
    page.goto(address + path, wait_until="load")
    page.evaluate(READY, PATIENCE)
    return page, seen


READY = """async (patience) => {
  await document.fonts.ready;
  const widgets = [...document.querySelectorAll("figure.widget > *")].filter((w) => w.localName.startsWith("pt-"));
  const end = performance.now() + patience;
  while (performance.now() < end && !widgets.every((w) => w.ready)) await new Promise((r) => setTimeout(r, 50));
}"""
