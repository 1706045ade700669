"""`python -m book.check SITE [PAGE ...]`: all pages, or those that begin with a word; exit code 1 if any is wrong."""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from book.check import rules
from book.check.browser import VIEWS, chromium, opened, served
from book.check.model import model

OUT = Path("build/book-check")


def main(words: list[str]) -> int:
    """Check, print a table, leave pictures; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m book.check", description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    parser.add_argument("--untimed", action="store_true", help="no speed is wrong: other programs may have the machine")
    args = parser.parse_intermixed_args(words)
    site, wanted, timed = args.site, tuple(args.pages), not args.untimed
    pages = sorted(str(p.relative_to(site)) for p in site.rglob("*.html"))
    pages = [p for p in pages if not wanted or p.startswith(wanted)]
    if not pages:
        print(f"no page in {site}{f' begins with {wanted}' if wanted else ''}: `make book` builds it")
        return 1
    shutil.rmtree(OUT, ignore_errors=True)
    began, wrong = time.monotonic(), 0
    print(f"{'page':<44} {'kB':>5} {'paint':>6}  widgets (ms)")
    with served(site) as address, chromium() as browser:
        for path in pages:
            row, problems = check(browser, address, path, timed)
            print(f"{path:<44} {row}", flush=True)
            for problem in dict.fromkeys(problems):
                print(f"    {problem}")
            wrong += bool(problems)
        if (site / "_static/models/base").is_dir():
            page, _ = opened(browser.new_context(), address, "index.html")
            said, problems = model(page, address)
            print("\n    ".join((said, *problems)), flush=True)
            wrong += bool(problems)
    print(f"{len(pages)} pages, {wrong} with something wrong, {time.monotonic() - began:.0f} s; pictures in {OUT}")
    return int(wrong > 0)


def check(browser: Any, address: str, path: str, timed: bool) -> tuple[str, list[str]]:
    """One page in all views: its line of the table, and what is wrong with it."""
    section = path.startswith("sections/")
    problems, kilobytes, first, drawn = [], 0.0, 0.0, {}
    for view, how in VIEWS.items():
        context = browser.new_context(**how, reduced_motion="reduce")
        page, seen = opened(context, address, path)
        found = [*rules.axe(page), *rules.width(page), *rules.started(page)]
        picture = OUT / view / f"{path.removesuffix('.html').replace('/', '-')}.png"
        page.screenshot(path=picture, full_page=not path.startswith("api/"))
        if view == "light":
            kilobytes = seen.bytes / 1000
            found += rules.weight(seen.bytes) + rules.tabs(page)
            first = rules.paint(page)
            if section:
                first = min(first, painted(browser, address, path)) if timed else first
                found += rules.soon(first) if timed else []
                found += rules.paper(page, OUT / f"{picture.stem}.pdf")
            drawn, slow = rules.draws(page)
            found += slow if timed else []
        problems += [f"{view}: {problem}" for problem in (*found, *seen.problems)]
        context.close()
    widgets = ", ".join(f"{name.removeprefix('pt-')} {ms:.1f}" for name, ms in drawn.items())
    return f"{kilobytes:5.1f} {first:6.0f}  {widgets}", problems


def painted(browser: Any, address: str, path: str, tries: int = 6) -> float:
    """The first paint of a page that this browser has not seen; the best of some tries, until it is soon enough."""
    best = float("inf")
    for _ in range(tries):
        context = browser.new_context(**VIEWS["light"])
        page, _ = opened(context, address, path)
        best = min(best, rules.paint(page))
        context.close()
        if not rules.soon(best):
            break
        time.sleep(2)  # another program may have had the machine
    return best


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
