"""Recorded runs, checked to be current: digests for figures, and data for widgets, which is copied to _static/data.

    :::{widget} leash
    :data: kl_leash
    :::

A widget whose study is gone or changed, or whose data belongs to another digest, makes the build fail.
"""

import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from book.engine.sources import esc, problem, used


def load(env, page: str, name: str, line: int | None) -> dict[str, Any] | None:
    """The digest of a study, after the check that it is of the study as it is written now."""
    from posttrain.errors import UsageError
    from posttrain.lab import digest, menu

    path = Path(env.config.book_digests or digest.FOLDER) / f"{name}.json"
    if not path.exists():
        problem(env, page, f'the run "{name}" has no digest in {path.parent}', line)
        return None
    found = json.loads(path.read_text())
    env.note_dependency(str(path))
    try:
        (entry,) = [e for e in menu.entries(found["kind"], [name]) if e.study.name == name]
    except (UsageError, ValueError):
        problem(env, page, f'the run "{name}" is of no study in posttrain/lab/menu.py', line)
        return None
    why = digest.outdated(entry.study, found)
    if why:
        problem(
            env, page, f'the figure of "{name}" is out of date: {why}. `posttrain lab {found["kind"]} {name}`', line
        )
    return found


def command(found: dict[str, Any]) -> str:
    """What repeats a digest."""
    return f"posttrain lab {found['kind']} {found['name']}"


def use(env, docname: str, name: str, line: int | None) -> str:
    """Remember that a page reads the data of a study; the stamp below its widget."""
    from posttrain.lab import menu, page

    recorded = load(env, docname, name, line)
    if recorded is None:
        return ""
    folder = Path(env.config.book_digests) if env.config.book_digests else None
    (study,) = [e.study for e in menu.entries(recorded["kind"], [name]) if e.study.name == name]
    found = page.load(name, folder)
    env.note_dependency(str(page.path_of(name, folder)))
    why = (
        f'the study "{name}" makes no data for a widget'
        if study.page is None
        else page.outdated(study, found, recorded)
    )
    if why:
        problem(env, docname, f'the widget on "{name}" is out of date: {why}. `{command(recorded)}`', line)
        return ""
    used(env, "data").setdefault(docname, {})[name] = None
    return stamp(recorded)


def stamp(recorded: dict[str, Any]) -> str:
    """Which study, how many seeds, when."""
    made = recorded["provenance"]["made"][:10]
    return f'<p class="stamp">Study <code>{esc(recorded["name"])}</code>, {len(recorded["seeds"])} seeds, recorded {made}.</p>'


def copy(app: Sphinx, error: Exception | None) -> None:
    """Write the data that any page reads."""
    from posttrain.lab import page

    folder = Path(app.config.book_digests) if app.config.book_digests else None
    at = Path(app.outdir) / "_static/data"
    for name in {} if error else {n: None for of_page in used(app.env, "data").values() for n in of_page}:
        at.mkdir(parents=True, exist_ok=True)
        if found := page.load(name, folder):
            (at / f"{name}.json").write_text(page.text_of(found["data"]), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.connect("env-purge-doc", lambda app, env, docname: used(env, "data").pop(docname, None))
    app.connect("build-finished", copy)
