"""What stands beside the pages: glossary, notation, bibliography, list of sections; and what is wrong with a page."""

import html
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Sources:
    """The four files of a book, read."""

    terms: dict[str, dict[str, Any]]
    """Name in lower case (all inflections) -> entry: term, also, text, section."""
    notation: list[dict[str, Any]]
    """Entries: macro, tex (None: KaTeX knows it), role, meaning, shown."""
    papers: dict[str, dict[str, str]]
    """Key -> label, authors, title, year, url, showed."""
    parts: list[dict[str, Any]]
    """Entries: part, title, sections (number, title, page or None, runs, minutes)."""

    @property
    def sections(self) -> list[dict[str, Any]]:
        """All sections in order."""
        return [s for part in self.parts for s in part["sections"]]

    def section_of(self, docname: str) -> dict[str, Any] | None:
        """The section that a page is."""
        return next((s for s in self.sections if s.get("page") == docname), None)


@cache
def sources(folder: str) -> Sources:
    """The sources in a folder; a missing file is an empty one."""
    at = Path(folder)
    entries = _yaml(at / "glossary.yml")
    terms = {name.lower(): e for e in entries for name in (e["term"], *e.get("also", ()))}
    return Sources(terms, _yaml(at / "notation.yml"), _papers(at / "references.bib"), _yaml(at / "sections.yml"))


def _yaml(path: Path) -> list:
    return (yaml.safe_load(path.read_text()) or []) if path.exists() else []


def _papers(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    from pybtex.database import parse_file

    found = {}
    for key, entry in parse_file(str(path)).entries.items():
        people = entry.persons.get("author", [])
        last = [" ".join(p.prelast_names + p.last_names) for p in people] or [entry.fields.get("organization", key)]
        names = last[0] if len(last) == 1 else f"{last[0]} and {last[1]}" if len(last) == 2 else f"{last[0]} et al."
        arxiv, year = entry.fields.get("eprint"), entry.fields["year"]
        found[key] = {
            "label": f"{names} {year}",
            "authors": ", ".join(last),
            "title": entry.fields["title"].replace("{", "").replace("}", ""),
            "year": year,
            "where": entry.fields.get("journal", f"arXiv {arxiv}" if arxiv else ""),
            "url": f"https://arxiv.org/abs/{arxiv}" if arxiv else entry.fields.get("url", ""),
            "showed": entry.fields.get("showed", ""),
        }
    return found


def problems(env) -> dict[str, list[str]]:
    """Page -> what is wrong with it, in sentences that name the place."""
    if not hasattr(env, "book_problems"):
        env.book_problems = {}
    return env.book_problems


def problem(env, docname: str, text: str, line: int | None = None) -> None:
    """Remember what makes the build fail in the end."""
    where = f"{docname}.md:{line}" if line else docname
    problems(env).setdefault(docname, []).append(f"{where}: {text}")


def used(env, kind: str) -> dict[str, Any]:
    """Page -> what it uses of a kind: "terms", "papers", "formulas", "scripts"."""
    if not hasattr(env, "book_used"):
        env.book_used = {}
    return env.book_used.setdefault(kind, {})


def href(docname: str, page: str, anchor: str = "") -> str:
    """A relative link from one page to another."""
    path = os.path.relpath(f"{page}.html", os.path.dirname(docname) or ".").replace(os.sep, "/")
    return path + (f"#{anchor}" if anchor else "")


def slug(text: str) -> str:
    """A name for an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def esc(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text), quote=True)
