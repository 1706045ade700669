"""Words in the text: terms (linked at their first use in a page), citations, code, sidenotes, numbers of formulas."""

import importlib
import inspect
import re
from functools import cache

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from book.engine.maths import MARKS, checked, is_short
from book.engine.sources import esc, href, problem, slug, sources, used

SILENT = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw,
          nodes.comment, nodes.footnote_reference, nodes.table)  # fmt: skip
"""No term is linked inside these."""
API = ("posttrain.objectives", "posttrain.algorithms", "posttrain.control")
"""Packages with pages of reference."""


class Word(nodes.inline):
    """A term that a writer marked, or that was found."""


class FormulaLink(nodes.inline):
    """A reference to a formula by its label, resolved when all pages are read."""


def markdown(env, docname: str, text: str) -> str:
    """A small text as HTML: emphasis, code and formulas. A role in it is a problem of its page."""
    kept: list[str] = []
    if role := re.search(r"\{\w+\}`[^`]*`", text):
        problem(env, docname, f"{role[0]} stands where only emphasis, code and formulas can: {text[:60]}")

    def keep(found: re.Match) -> str:
        made = checked(env, docname, found[1]) if found[1] else f"<code>{esc(found[3])}</code>"
        if found[2]:
            made = f'<span class="held">{made}{found[2]}</span>' if is_short(found[1]) else made + found[2]
        kept.append(made)
        return f"\0{len(kept) - 1}\0"

    plain = esc(re.sub(rf"\$([^$]+)\$({MARKS})?|`([^`]+)`", keep, " ".join(text.split())))
    plain = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", plain)
    return re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], plain)


class TermRole(SphinxRole):
    """{term}`KL divergence` or {term}`the divergence <KL divergence>`."""

    def run(self):
        shown, _, name = self.text.partition(" <")
        name = name.removesuffix(">") or shown
        entry = sources(str(self.env.srcdir)).terms.get(name.lower())
        if entry is None:
            problem(self.env, self.env.docname, f'the term "{name}" is not in glossary.yml', self.lineno)
            return [nodes.inline(text=shown)], []
        return [Word(shown, shown, term=entry["term"])], []


class CiteRole(SphinxRole):
    """{cite}`rafailov2023dpo, ethayarajh2024kto`; {citep} is the same in parentheses."""

    def run(self):
        made, papers, page = [], sources(str(self.env.srcdir)).papers, self.env.docname
        for key in re.split(r"\s*,\s*", self.text.strip()):
            if key not in papers:
                problem(self.env, page, f'the citation "{key}" has no entry in references.bib', self.lineno)
                continue
            used(self.env, "papers").setdefault(page, {})[key] = None
            to = href(page, "bibliography", key)
            tip = f'<a class="cite" href="{to}" data-tip="paper-{key}">{esc(papers[key]["label"])}</a>'
            made.append(tip)
        text = "; ".join(made)
        return [nodes.raw("", f"({text})" if self.name == "citep" else text, format="html")], []


class CodeRole(SphinxRole):
    """{code}`posttrain.objectives.kl.k3`: a link to the page of reference."""

    def run(self):
        made = code_link(self.env, self.env.docname, self.text, self.lineno)
        return [nodes.raw("", made, format="html")], []


class FormulaRole(SphinxRole):
    """{formula}`label`: the equation's number as a link."""

    def run(self):
        return [FormulaLink(self.text, self.text, label=self.text, line=self.lineno)], []


@cache
def home(name: str) -> str | None:
    """Where a function or class of the reference is defined, as module.name; None if it is nowhere."""
    module, _, attribute = name.rpartition(".")
    try:
        thing = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return None
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        return None
    place = f"{thing.__module__}.{thing.__qualname__}"
    return place if place.startswith(tuple(p + "." for p in API)) and not attribute.startswith("_") else None


def code_link(env, page: str, name: str, line: int | None = None) -> str:
    """A link to a function; a problem of the page if there is no such function."""
    place = home(name)
    if place is None:
        problem(env, page, f'the code "{name}" is no public function or class of {", ".join(API)}', line)
        return f"<code>{esc(name)}</code>"
    module, _, short = place.rpartition(".")
    if short in ("train", "Config"):  # every method has one
        short = f"{module.rpartition('.')[2]}.{short}"
    return f'<a class="code" href="{href(page, "api/" + module, place)}"><code>{esc(short)}</code></a>'


def link_terms(app: Sphinx, tree: nodes.document) -> None:
    """Link each term where it is first used on the page, marked or not."""
    env, page = app.env, app.env.docname
    terms, seen = sources(str(env.srcdir)).terms, used(env, "terms").setdefault(page, {})
    if not terms:
        return
    names = sorted(terms, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", re.I)
    for node in list(tree.findall(lambda n: isinstance(n, nodes.Text | Word))):
        if isinstance(node, Word):
            node["first"] = seen.setdefault(node["term"], node) is node
        elif not _inside(node, (*SILENT, Word)):
            made, end = [], 0
            for found in pattern.finditer(str(node)):
                name = terms[found[0].lower()]["term"]
                if name not in seen:
                    word = Word(found[0], found[0], term=name, first=True)
                    seen[name] = word
                    made += [nodes.Text(str(node)[end : found.start()]), word]
                    end = found.end()
            if made:
                node.parent.replace(node, [*made, nodes.Text(str(node)[end:])])
    used(env, "terms")[page] = dict.fromkeys(seen)


def _inside(node: nodes.Node, kinds: tuple) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def sidenotes(app: Sphinx, tree: nodes.document, docname: str) -> None:
    """Footnotes become notes beside the line that calls them; references to formulas get their numbers."""
    notes = {name: note for note in list(tree.findall(nodes.footnote)) for name in note["ids"]}
    for number, call in enumerate(list(tree.findall(nodes.footnote_reference)), 1):
        note = notes.get(call.get("refid", ""))
        if note is None:
            continue
        mark = f'<sup class="note-call" aria-hidden="true">{number}</sup>'
        said = nodes.inline(classes=["sidenote"])
        said += nodes.raw("", f"<sup>{number}</sup> ", format="html")
        for part in note.children:
            if not isinstance(part, nodes.label):
                said += [child.deepcopy() for child in part.children]
        call.parent.replace(call, [nodes.raw("", mark, format="html"), said])
    for note in notes.values():
        note.parent.remove(note)
    for line in [t for t in tree.findall(nodes.transition) if t.get("classes") == ["footnotes"]]:
        line.parent.remove(line)
    labels = {f["label"]: (page, f) for page, all_ in used(app.env, "formulas").items() for f in all_}
    for link in list(tree.findall(FormulaLink)):
        if link["label"] not in labels:
            problem(app.env, docname, f'no formula has the label "{link["label"]}"', link["line"])
            continue
        page, found = labels[link["label"]]
        to = f'<a href="{href(docname, page, "eq-" + found["label"])}">equation {found["number"]}</a>'
        link.parent.replace(link, nodes.raw("", to, format="html"))


def visit_word(translator, node: Word) -> None:
    """A term: a link to the glossary, with its tooltip at the end of the page."""
    key, page = slug(node["term"]), translator.builder.current_docname
    first = "term" if node.get("first") else "term again"
    to = href(page, "glossary", key)
    translator.body.append(f'<a class="{first}" href="{to}" data-tip="term-{key}">{esc(node.astext())}</a>')
    raise nodes.SkipNode


def tips(env, docname: str) -> str:
    """The tooltips of a page: an entry for each of its terms and citations."""
    known, made = sources(str(env.srcdir)), []
    for name in used(env, "terms").get(docname, {}):
        entry = known.terms[name.lower()]
        text = markdown(env, docname, entry["text"])
        made.append(f'<div id="term-{slug(name)}" role="tooltip" class="tip"><b>{esc(name)}</b> {text} '
                    f'<a href="{href(docname, "glossary", slug(name))}">Glossary</a></div>')  # fmt: skip
    for key in used(env, "papers").get(docname, {}):
        paper = known.papers[key]
        made.append(f'<div id="paper-{key}" role="tooltip" class="tip"><b>{esc(paper["title"])}</b> '
                    f'{esc(paper["authors"])}, {paper["year"]}. {esc(paper["showed"])}</div>')  # fmt: skip
    return "".join(made)


def purge(app: Sphinx, env, docname: str) -> None:
    """Forget what a page used before it is read again."""
    for kind in ("terms", "papers", "formulas", "scripts"):
        used(env, kind).pop(docname, None)


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    skip = (lambda translator, node: None,) * 2
    app.add_node(Word, html=(visit_word, None))
    app.add_node(FormulaLink, html=skip)
    app.add_role_to_domain("std", "term", TermRole(), override=True)  # that domain is asked first
    for name, role in (("cite", CiteRole()), ("citep", CiteRole()), ("code", CodeRole()), ("formula", FormulaRole())):
        app.add_role(name, role, override=True)
    app.connect("env-purge-doc", purge)
    app.connect("doctree-read", link_terms)
    app.connect("doctree-resolved", sidenotes)
