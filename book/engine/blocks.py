"""Blocks of a section: a formula bound to its function, a derivation, an exercise, a widget, contents."""

import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.engine.data import use
from book.engine.maths import checked
from book.engine.prose import code_link, home
from book.engine.sources import esc, href, problem, sources, used

_FENCE = re.compile(r"^(:{3,})\s*(\{.+)?$")


def raw(text: str) -> nodes.raw:
    """HTML as a node."""
    return nodes.raw("", text, format="html")


class FormulaBlock(SphinxDirective):
    r"""A displayed formula, the function that computes it, and an expression that a test compares with the function.

        :::{formula}
        :label: k3
        :function: posttrain.objectives.kl.k3
        :inputs: log_ratio: real 8
        :check: exp(-log_ratio) - 1 + log_ratio

        k_3 = e^{-r} - 1 + r
        :::

    inputs: names and kinds (`book.engine.formulas.draw`) with commas between. call: how the function is called with
    them; by default in their order. A formula that no function computes says why in `unbound`.
    """

    has_content = True
    option_spec = dict.fromkeys(("label", "function", "inputs", "check", "call", "unbound"), directives.unchanged)

    def run(self):
        page, tex, label = self.env.docname, "\n".join(self.content), self.options.get("label", "")
        mine = used(self.env, "formulas").setdefault(page, [])
        section = sources(str(self.env.srcdir)).section_of(page)
        number = f"{section['number'] if section else '0'}.{len(mine) + 1}"
        function, check = self.options.get("function"), self.options.get("check")
        if not label or (function is None) == (self.options.get("unbound") is None):
            problem(
                self.env, page, "a formula needs a label, and either a function or a reason in `unbound`", self.lineno
            )
        if function and not check:
            problem(self.env, page, f"formula {label}: `check` is missing, no test could compare it", self.lineno)
        found = dict(self.options, label=label, number=number, tex=tex)
        if function:
            found["home"] = home(function)
        mine.append(found)
        link = f"in the code: {code_link(self.env, page, function, self.lineno)}" if function else ""
        made = checked(self.env, page, tex, self.lineno, display=True)
        return [raw(f'<div class="formula" id="eq-{esc(label)}"><div class="equation">{made}</div>'
                    f'<p class="under"><span>{link}</span><a class="number" href="#eq-{esc(label)}">({number})</a></p>'
                    "</div>")]  # fmt: skip


class Panel(SphinxDirective):
    """Content in a `details` or a quiet panel."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = {"level": directives.unchanged, "answer": directives.unchanged}

    def inside(self) -> nodes.container:
        """The content, read."""
        return nodes.container("", *self.parse_content_to_nodes())


class Derive(Panel):
    """{derive} What is shown: steps that open on demand."""

    def run(self):
        title = self.arguments[0] if self.arguments else "Derivation"
        return [raw(f'<details class="derive"><summary>{esc(title)}</summary>'), self.inside(), raw("</details>")]


class Answer(Panel):
    """{answer}: what an exercise or a prediction hides until it is asked for."""

    def run(self):
        title = self.arguments[0] if self.arguments else "Answer"
        return [raw(f'<details class="answer"><summary>{esc(title)}</summary>'), self.inside(), raw("</details>")]


class Exercise(Panel):
    """{exercise} A title; `level`: by hand, on a widget, in code."""

    def run(self):
        kind = esc(self.options.get("level", "by hand"))
        head = f'<section class="exercise"><p class="kind">Exercise, {kind}</p>'
        return [raw(f"{head}<p><b>{esc(self.arguments[0])}</b></p>"), self.inside(), raw("</section>")]


class Widget(Panel):
    """{widget} name: the element `pt-name` of book/widgets/name.js. Content: what stands there without a script.

    data: a study whose recorded data it reads (`book.engine.data`).
    """

    option_spec = {"state": directives.unchanged, "caption": directives.unchanged, "data": directives.unchanged}

    def run(self):
        name, page = self.arguments[0], self.env.docname
        if not (Path(self.env.srcdir) / f"widgets/{name}.js").exists():
            problem(self.env, page, f"there is no widgets/{name}.js", self.lineno)
        used(self.env, "scripts").setdefault(page, {})[name] = None
        data = "".join(f' data-{key}="{esc(self.options[key])}"' for key in ("state", "data") if key in self.options)
        stamp = use(self.env, page, self.options["data"], self.lineno) if "data" in self.options else ""
        caption = f"<figcaption>{esc(self.options.get('caption', ''))}{stamp}</figcaption>"
        return [raw(f'<figure class="widget"><pt-{name}{data}>'), self.inside(), raw(f"</pt-{name}>{caption}</figure>")]


class Contents(SphinxDirective):
    """{contents-table}: all sections, part by part; those without a page are marked."""

    def run(self):
        rows = []
        for part in sources(str(self.env.srcdir)).parts:
            rows.append(
                f'<tr class="part"><th colspan="3" scope="colgroup">{part["part"]}. {esc(part["title"])}</th></tr>'
            )
            for s in part["sections"]:
                title = f"<span>{esc(s['title'])}</span>"
                if s.get("page"):
                    if s["page"] not in self.env.found_docs:
                        problem(self.env, self.env.docname, f"sections.yml names {s['page']}, which is no page")
                    title = f'<a href="{href(self.env.docname, s["page"])}">{esc(s["title"])}</a>'
                state = s.get("state", "") if s.get("page") else "not yet written"
                note = f' <em class="state">{esc(state)}</em>' if state else ""
                rows.append(f'<tr data-section="{s["number"]}"><td class="n">{s["number"]}</td><td>{title}{note}</td>'
                            f"<td>{esc(s['runs'])}</td></tr>")  # fmt: skip
        head = '<thead><tr><td></td><th scope="col">Section</th><th scope="col">What is in it</th></tr></thead>'
        return [raw(f'<table class="sections">{head}<tbody>{"".join(rows)}</tbody></table>')]


def nested(app: Sphinx, docname: str, source: list[str]) -> None:
    """Blocks inside blocks: a line of colons ends the outermost that has no more of them, and the rest is lost unseen."""
    inside: list[int] = []
    for number, line in enumerate(source[0].splitlines(), 1):
        if not (found := _FENCE.match(line)):
            continue
        colons = len(found[1])
        if found[2]:
            if inside and colons >= inside[-1]:
                problem(app.env, docname, f"a block inside another needs fewer colons than its {inside[-1]}", number)
            inside.append(colons)
        elif not inside or colons != inside.pop():
            problem(app.env, docname, "these colons end no block that is open", number)
    if inside:
        problem(app.env, docname, "a block is not ended", None)


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.connect("source-read", nested)
    for name, directive in (("formula", FormulaBlock), ("derive", Derive), ("answer", Answer),
                            ("exercise", Exercise), ("widget", Widget), ("contents-table", Contents)):  # fmt: skip
        app.add_directive(name, directive, override=True)
