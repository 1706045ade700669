"""Pages that nobody writes: glossary, notation, bibliography, all methods, and the reference of the library."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

from sphinx.application import Sphinx

from book.engine.maths import typeset
from book.engine.prose import markdown
from book.engine.sources import Sources, esc, href, slug, sources, used

PACKAGES = {"posttrain.objectives": "Formulas", "posttrain.algorithms": "Loops", "posttrain.control": "Control tasks"}
Page = tuple[str, dict, str]


def collect(app: Sphinx) -> Iterator[Page]:
    """All generated pages, as Sphinx's html-collect-pages takes them."""
    known = sources(str(app.srcdir))
    made = {"glossary": ("Glossary", glossary(app.env, known)), "notation": ("Notation", notation(app.env, known)),
            "bibliography": ("Bibliography", bibliography(app.env, known))}  # fmt: skip
    if known.parts:  # a whole book, not a page on trial
        made |= {"methods": ("All methods", methods())}
        made |= dict(reference(app.env))
    for name, (title, body) in made.items():
        yield name, {"title": title, "body": f"<h1>{esc(title)}</h1>{body}", "generated": True}, "page.html"


def glossary(env, known: Sources) -> str:
    """Every term, and the section that defines it."""
    entries = {e["term"]: e for e in known.terms.values()}
    rows = []
    for name in sorted(entries, key=str.lower):
        at = [page for page, terms in sorted(used(env, "terms").items()) if name in terms and known.section_of(page)]
        where = ", ".join(f'<a href="{href("glossary", p)}">{known.section_of(p)["number"]}</a>' for p in at)
        text = markdown(env, "glossary", entries[name]["text"])
        rows.append(
            f'<dt id="{slug(name)}">{esc(name)}</dt><dd>{text}{f" <span class=at>Section {where}</span>" if at else ""}</dd>'
        )
    return f'<dl class="glossary">{"".join(rows)}</dl>'


def notation(env, known: Sources) -> str:
    """The table that every formula keeps to."""
    rows = "".join(
        f"<tr><td>{typeset(e.get('shown') or e['macro'], known.notation)}</td><td>{markdown(env, 'notation', e['meaning'])}</td></tr>"
        for e in known.notation
    )
    return ("<p>One symbol has one meaning in all sections; a formula that uses another does not build. Colours mark the "
            "same things in text, formulas, figures and widgets.</p>"
            f'<table class="notation"><thead><tr><th scope=col>Symbol</th><th scope=col>Meaning</th></tr></thead>{rows}</table>')  # fmt: skip


def bibliography(env, known: Sources) -> str:
    """Every paper, what it showed, and the sections that cite it."""
    rows = []
    for key, p in sorted(known.papers.items(), key=lambda item: item[1]["label"].lower()):
        at = [page for page, keys in sorted(used(env, "papers").items()) if key in keys and known.section_of(page)]
        where = ", ".join(f'<a href="{href("bibliography", x)}">{known.section_of(x)["number"]}</a>' for x in at)
        title = f'<a href="{esc(p["url"])}" rel="noreferrer">{esc(p["title"])}</a>' if p["url"] else esc(p["title"])
        rows.append(f'<li id="{esc(key)}">{esc(p["authors"])} ({p["year"]}). <cite>{title}</cite>. {esc(p["where"])}'
                    f'<p class="showed">{esc(p["showed"])}{f" <span class=at>Cited in {where}</span>" if at else ""}</p></li>')  # fmt: skip
    return f'<ul class="papers">{"".join(rows)}</ul>'


def methods() -> str:
    """The table of policy-gradient presets with each loss written out, and the menu of preference losses."""
    from posttrain.cli.formula import equation, papers
    from posttrain.objectives import MENU, PRESETS

    cited, made = papers(), []
    for name, objective in PRESETS.items():
        lines = esc("\n".join(equation(objective)))
        made.append(
            f'<h3 id="{name}"><code>{name}</code></h3><p class="paper">{esc(cited.get(name, ""))}</p><pre>{lines}</pre>'
        )
    listed = "".join(_pair(name, formula.loss) for name, formula in MENU.items())
    return (f"<p>The {len(PRESETS)} policy-gradient methods of the library are rows of one table, and these are their "
            "losses, written from their choices. The same table drives <code>posttrain train group --preset NAME</code>.</p>"
            f'<h2 id="policy">Policy gradients</h2>{"".join(made)}<h2 id="preference">Preference losses</h2>'
            f"<p>{len(MENU)} losses on pairs, by the names that <code>posttrain train preference</code> takes.</p>{listed}")  # fmt: skip


def _pair(name: str, loss) -> str:
    settings = getattr(loss, "keywords", {})
    function = getattr(loss, "func", loss)
    place = f"{function.__module__}.{function.__name__}"
    link = f'<a href="{href("methods", "api/" + function.__module__, place)}"><code>{name}</code></a>'
    text = inspect.getdoc(function) or ""
    shown = next(iter(re.findall(r"(?:^    .*\n?)+", text, re.M)), "")
    equation = f"<pre>{esc(inspect.cleandoc(shown))}</pre>" if shown else ""
    fixed = ", ".join(f"<code>{key} = {esc(value)}</code>" for key, value in settings.items())
    sentence = _words(text.partition("\n\n")[0]) + (f" With {fixed}." if fixed else "")
    return f'<h3 id="pair-{name}">{link}</h3><p>{sentence}</p>{equation}'


def modules(package: str) -> Iterator[ModuleType]:
    """A package and all its public and private modules that define something public."""
    top = importlib.import_module(package)
    yield top
    for found in pkgutil.walk_packages(top.__path__, package + "."):
        yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions and classes that a module defines itself, in the order of its source."""
    mine = [(name, x) for name, x in vars(module).items()
            if not name.startswith("_") and (inspect.isfunction(x) or inspect.isclass(x)) and x.__module__ == module.__name__]  # fmt: skip
    yield from sorted(mine, key=lambda pair: inspect.getsourcelines(pair[1])[1])


def reference(env) -> Iterator[tuple[str, tuple[str, str]]]:
    """A page for each module with public things, and their list."""
    back: dict[str, list[tuple[str, dict]]] = {}
    for page, formulas in used(env, "formulas").items():
        for f in formulas:
            back.setdefault(f.get("home"), []).append((page, f))
    lists = []
    for package, title in PACKAGES.items():
        rows = []
        for module in modules(package):
            things = list(public(module))
            if not things:
                continue
            page = f"api/{module.__name__}"
            links = ((n, href("api/index", page, f"{page[4:]}.{n}")) for n, _ in things)
            names = ", ".join(f'<a href="{to}"><code>{n}</code></a>' for n, to in links)
            rows.append(
                f'<dt><a href="{href("api/index", page)}"><code>{module.__name__}</code></a></dt><dd>{names}</dd>'
            )
            body = _prose(inspect.getdoc(module) or "") + "".join(_thing(page, n, x, back) for n, x in things)
            yield page, (module.__name__, body)
        lists.append(f"<h2>{title}</h2><dl class=api>{''.join(rows)}</dl>")
    yield "api/index", ("Reference", "".join(lists))


def _thing(page: str, name: str, thing, back: dict) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    place = f"{thing.__module__}.{name}"
    signature = ""
    if inspect.isfunction(thing):
        signature = re.sub(
            r"\b(?:torch|typing|collections\.abc|posttrain(?:\.\w+)+)\.(?=\w)", "", str(inspect.signature(thing))
        )
    uses = [
        f'<a href="{href(page, at, "eq-" + f["label"])}">equation {f["number"]}</a>' for at, f in back.get(place, [])
    ]
    back_links = f"<p class=back>In the book: {', '.join(uses)}.</p>" if uses else ""
    source = highlight(inspect.getsource(thing), PythonLexer(), HtmlFormatter(nowrap=True))
    return (f'<section class="thing" id="{place}"><h2><code>{name}</code></h2><pre class="signature">{esc(name + signature)}</pre>'
            f'{back_links}{_prose(inspect.getdoc(thing) or "")}'
            f'<details class="source"><summary>Source</summary><pre class="code">{source}</pre></details></section>')  # fmt: skip


def _words(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", esc(text))


def _prose(text: str) -> str:
    """A docstring: paragraphs, and what is indented as it stands."""
    made = []
    for part in re.split(r"\n\s*\n", text):
        indented = all(line.startswith("    ") for line in part.splitlines())
        hanging = re.search(r"\n\s+\S", part) and not indented
        made.append(f"<pre>{esc(inspect.cleandoc(part))}</pre>" if indented else
                    f'<p{" class=hanging" if hanging else ""}>{_words(part)}</p>')  # fmt: skip
    return "".join(made)


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.connect("html-collect-pages", collect)
