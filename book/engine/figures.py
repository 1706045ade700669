"""Figures of recorded runs: SVG in the theme's colours, drawn from a digest while the book is built, numbers behind.

    :::{fig} baseline
    :view: intervals
    A caption.
    :::

A figure whose study is gone, or has other settings than when the digest was recorded, makes the build fail.
"""

import math
from statistics import fmean
from typing import Any

from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.engine.blocks import raw
from book.engine.data import command, load
from book.engine.sources import esc, problem

ROLES = ("pol", "old", "rf", "rew", "kl", "bad")
"""Colours of lines, in the order of the arms or lists; "ink" and "quiet" are of no role."""
_WIDTH, _LEFT, _RIGHT = 640, 56, 132


def number(x: float | None) -> str:
    """Three digits."""
    return "∞" if x is None else f"{x:.3g}".replace("-", "−")


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two ends."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-12) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def shown(x: float) -> str:
    """A tick's label."""
    return f"{x:g}".replace("-", "−")


def interval_of(figure: dict[str, Any]) -> tuple[float, float]:
    """The interval around `after`; most digests give that of after - before."""
    low, high, before, after = (figure[k] for k in ("low", "high", "before", "after"))
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    if low <= after - before <= high and not low <= after <= high:
        return low + before, high + before
    return low, high


def intervals(figures: list[dict[str, Any]]) -> str:
    """One line per figure: where it began, where it ended, and the interval over seeds. As wide as the page allows.

    Names are text beside the lines, or above them on a phone; places are shares of the width, so nothing is scaled.
    """
    ends = [interval_of(f) for f in figures]
    values = [
        x for f, (a, b) in zip(figures, ends, strict=True) for x in (f["before"], f["after"], a, b) if math.isfinite(x)
    ]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    at = lambda x: f"{100 * (min(max(x, low), high) - low) / (high - low or 1):.2f}%"  # noqa: E731
    marks = ticks(low, high)
    grid = "".join(f'<line class="grid" x1="{at(t)}" x2="{at(t)}" y1="0" y2="100%"/>' for t in marks)
    rows = [
        f"<span>{esc(f['what'])}</span><svg>{grid}"
        f'<circle class="start" cx="{at(f["before"])}" cy="50%" r="4.5"/>'
        f'<line class="pol" x1="{at(a)}" x2="{at(b)}" y1="50%" y2="50%"/>'
        f'<circle class="fill-pol" cx="{at(f["after"])}" cy="50%" r="5"/></svg>'
        for f, (a, b) in zip(figures, ends, strict=True)
    ]
    scale = "".join(f'<text x="{at(t)}" y="14" text-anchor="middle">{shown(t)}</text>' for t in marks)
    return f'<div class="intervals" aria-hidden="true">{"".join(rows)}<svg class="scale">{scale}</svg></div>'


def svg(parts: list[str], height: float) -> str:
    """The drawing; its words are in the caption and the table of numbers."""
    return f'<div class="drawing"><svg viewBox="0 0 {_WIDTH} {height}" aria-hidden="true">{"".join(parts)}</svg></div>'


def curves(
    found: dict, names: list[str], xs: list[float] | None, roles: list[str], log: bool, shown_as: list[str]
) -> tuple[str, str]:
    """Lists over steps (or over `xs`): the mean over seeds as a line, every seed behind it. Drawing and table."""
    lines = {}
    for arm, cells in found["cells"].items():
        for name in names:
            kept = [cell["figures"][name] for cell in cells.values() if isinstance(cell["figures"].get(name), list)]
            if kept:
                lines[name if len(found["cells"]) == 1 else f"{arm}" if len(names) == 1 else f"{arm}, {name}"] = kept
    if shown_as:
        lines = dict(zip(shown_as, lines.values(), strict=True))
    if not lines:
        raise ValueError(f"no cell has a list named {' or '.join(names)}")
    x = xs or list(range(1, 1 + max(len(v) for kept in lines.values() for v in kept)))
    scale = math.log10 if log else float
    values = [scale(v) for kept in lines.values() for run in kept for v in run]
    low, high = min(values), max(values)
    low, high, height = low - 0.05 * (high - low), high + 0.05 * (high - low), 320
    px = lambda v: _LEFT + (v - x[0]) / (x[-1] - x[0] or 1) * (_WIDTH - _LEFT - _RIGHT)  # noqa: E731
    py = lambda v: 12 + (high - scale(v)) / (high - low or 1) * (height - 56)  # noqa: E731
    marks = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)] if log else ticks(low, high)
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{py(t) + 4:.1f}" text-anchor="end">{shown(t)}</text>'
        for t in marks
    ]
    parts += [
        f'<text x="{px(t):.1f}" y="{height - 20}" text-anchor="middle">{shown(t)}</text>' for t in ticks(x[0], x[-1])
    ]
    rows, free = [], []
    order = sorted(lines, key=lambda k: py(fmean(run[-1] for run in lines[k])))
    for i, name in enumerate(lines):
        kept, role = lines[name], roles[i % len(roles)]
        mean = [fmean(run[k] for run in kept) for k in range(min(map(len, kept)))]
        drawn = [(run, "seed") for run in kept] + [(mean, "mean")]
        parts += [f'<polyline class="{role} {kind}" points="{" ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, run, strict=False))}"/>'
                  for run, kind in drawn]  # fmt: skip
        rows.append((name, mean))
    for name in order:
        y = max(py(fmean(run[-1] for run in lines[name])), (free[-1] + 22) if free else 0)
        free.append(y)
        role = roles[list(lines).index(name) % len(roles)]
        parts.append(f'<text class="ink-{role}" x="{_WIDTH - _RIGHT + 8}" y="{y + 4:.1f}">{esc(name)}</text>')
    head = "".join(f"<th scope=col>{shown(v)}</th>" for v in x[:: max(1, len(x) // 8)])
    body = "".join(f"<tr><th scope=row>{esc(n)}</th>{''.join(f'<td>{number(v)}</td>' for v in m[:: max(1, len(x) // 8)])}</tr>"
                   for n, m in rows)  # fmt: skip
    return svg(parts, height), f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(figures: list[dict[str, Any]]) -> str:
    """The numbers of a drawing of intervals, and how far a repetition may be off."""
    rows = "".join(
        f"<tr><th scope=row>{esc(f['what'])}</th><td>{number(f['before'])}</td><td>{number(f['after'])}</td>"
        f"<td>{number(f['low'])} to {number(f['high'])}</td>"
        f"<td>{'' if f['tolerance'] is None else '± ' + number(f['tolerance'])}</td></tr>"
        for f in figures
    )
    head = "".join(f"<th scope=col>{t}</th>" for t in ("before", "after", "95 % interval", "tolerance"))
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"


class Figure(SphinxDirective):
    """{fig} study: a drawing of a digest. view: intervals or curves; pick: which figures or lists, with "|" between."""

    has_content = True
    required_arguments = 1
    option_spec = dict.fromkeys(
        ("view", "pick", "x", "first", "roles", "log", "label-x", "label-y", "names"), directives.unchanged
    )

    def run(self):
        page, name = self.env.docname, self.arguments[0]
        found = load(self.env, page, name, self.lineno)
        if found is None:
            return []
        try:
            drawing, numbers = self.draw(found)
        except (ValueError, KeyError) as error:
            problem(self.env, page, f'the figure of "{name}" cannot be drawn: {error}', self.lineno)
            return []
        made = found["provenance"]
        stamp = (f"Study <code>{esc(name)}</code>, {len(found['seeds'])} seeds, recorded {made['made'][:10]}"
                 f"{'' if found['seen'] else '; <b>not everything it claims was seen</b>'}.")  # fmt: skip
        behind = f'<details class="numbers"><summary>Numbers</summary><div class="scroll">{numbers}</div></details>'
        return [raw(f'<figure class="run" id="fig-{name}">{self.axis("label-y")}{drawing}{self.axis("label-x")}<figcaption>'),
                *self.parse_content_to_nodes(),
                raw(f'<p class="stamp">{stamp}</p></figcaption>{behind}</figure>')]  # fmt: skip

    def axis(self, which: str) -> str:
        """The name of an axis, above or below the drawing."""
        return f'<p class="axis {which}">{esc(self.options[which])}</p>' if which in self.options else ""

    def draw(self, found: dict) -> tuple[str, str]:
        """Drawing and table, by `view`."""
        picked = [p.strip() for p in self.options.get("pick", "").split("|") if p.strip()]
        if self.options.get("view", "intervals") == "intervals":
            figures = [f for f in found["figures"] if not picked or f["what"] in picked]
            if not figures or set(picked) - {f["what"] for f in figures}:
                raise ValueError(f"pick = {picked}: it has {[f['what'] for f in found['figures']]}")
            if named := [n.strip() for n in self.options.get("names", "").split("|") if n.strip()]:
                figures = [f | {"what": n} for f, n in zip(figures, named, strict=True)]
            return intervals(figures), table(figures)
        xs = None
        if "x" in self.options:
            (xs,) = [arm[self.options["x"]] for arm in list(found["arms"].values())[:1]]
        elif "first" in self.options:
            lengths = [len(c["figures"][picked[0]]) for by in found["cells"].values() for c in by.values()]
            xs = [float(self.options["first"]) + i for i in range(max(lengths))]
        roles = self.options.get("roles", " ".join(ROLES)).split()
        names = [n.strip() for n in self.options.get("names", "").split("|") if n.strip()]
        return curves(found, picked, xs, roles, "log" in self.options, names)


class Run(SphinxDirective):
    """{run} study: the command that repeats it, how long that took, and the figures it must give."""

    required_arguments = 1

    def run(self):
        found = load(self.env, self.env.docname, self.arguments[0], self.lineno)
        if found is None:
            return []
        minutes = found["provenance"]["seconds"] / 60
        took = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} seconds"
        return [raw(f'<section class="run-it"><p class="kind">Run this yourself</p><pre><code>{command(found)}</code></pre>'
                    f"<p>It took {took} of one core ({esc(found['provenance']['machine'])}). It must give, within the "
                    f'tolerance:</p><div class="scroll">{table(found["figures"])}</div></section>')]  # fmt: skip


def setup(app: Sphinx) -> None:
    """Called by the extension."""
    app.add_directive("fig", Figure)
    app.add_directive("run", Run)
