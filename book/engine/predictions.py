"""What a reader guesses before seeing it: a choice, a place on an axis, or a curve, with the truth from a recorded run."""

from statistics import fmean

from docutils.parsers.rst import directives
from sphinx.application import Sphinx

from book.engine.blocks import Panel, raw
from book.engine.data import load
from book.engine.prose import markdown
from book.engine.sources import esc, problem, slug, used


class Predict(Panel):
    """{predict} A question with an {answer} inside, which opens with the guess.

    Choose, with a bullet list of choices: `answer` is the right one, from 1. kind: place, a value on an axis, or draw, a
    curve. axis: low, high and unit ("0 100 %"); a curve has `steps` (low, high and unit of x). truth: numbers, or
    "study | figure" for its `after`, "study | arm | list" for a list's mean over seeds; as: a factor in front ("100").
    given: another list, drawn from the start, with its name ("study | arm | list | with the clip"). opens: the name of a
    widget, some of whose controls wait for the guess.
    """

    option_spec = dict.fromkeys(
        ("answer", "kind", "axis", "steps", "truth", "given", "opens", "as"), directives.unchanged
    )

    def run(self):
        title, page = self.arguments[0], self.env.docname
        given = {"key": slug(title)[:40], "right": self.options.get("answer", "")}
        used(self.env, "predictions")[page] = None
        for name in ("kind", "axis", "steps", "opens"):
            given[name] = self.options.get(name, "")
        try:
            given |= {name: self.numbers(self.options[name]) for name in ("truth", "given") if name in self.options}
        except (ValueError, KeyError) as error:
            problem(self.env, page, f'the prediction "{title}" cannot be asked: {error}', self.lineno)
        if given["kind"] not in ("", "place", "draw") or (given["kind"] and not ("truth" in given and given["axis"])):
            problem(self.env, page, f'the prediction "{title}": place and draw need axis and truth', self.lineno)
        data = "".join(f' data-{name}="{esc(value)}"' for name, value in given.items() if value or name == "right")
        head = f'<section class="predict"{data} aria-label="Predict: {esc(title.replace("$", ""))}">'
        return [raw(f'{head}<p class="kind">Predict</p><p><b>{self.inline(title)}</b></p>'), self.inside(),
                raw("</section>")]  # fmt: skip

    def inline(self, text: str) -> str:
        """A line of text with its formulas."""
        return markdown(self.env, self.env.docname, text)

    def numbers(self, text: str) -> str:
        """Numbers as they stand, or of a digest; the name of a given curve after a colon."""
        study, *rest = (part.strip() for part in text.split("|"))
        if not rest:
            return study
        found = load(self.env, self.env.docname, study, self.lineno)
        if found is None:
            return "0"
        factor = float(self.options.get("as", 1))
        if len(rest) == 1:
            return f"{factor * next(f['after'] for f in found['figures'] if f['what'] == rest[0]):.4g}"
        arm, name, *title = rest
        runs = [cell["figures"][name] for cell in found["cells"][arm].values()]
        means = " ".join(f"{factor * fmean(values):.4g}" for values in zip(*runs, strict=True))
        return f"{means}:{title[0]}" if title else means


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.add_directive("predict", Predict, override=True)
    app.connect("env-purge-doc", lambda app, env, docname: used(env, "predictions").pop(docname, None))
