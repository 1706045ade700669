"""Pages of HTML that are one file: styles, pictures and the little script are inside.

`parts.html.jinja` holds what pages share: colours in both themes, type, and how a plot is drawn. Whatever a model wrote
is escaped, and a page's own policy lets no script run but the one it was made with.
"""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from posttrain.pages.words import duration, interval, number, share


def render(template: str, folder: Path | None = None, **values: Any) -> str:
    """The page that a template makes of some values. folder: where the template is; default: beside this module."""
    return _environment(folder or Path(__file__).parent).get_template(template).render(**values)


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([folder, Path(__file__).parent])
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(share=share, number=number, duration=duration, interval=interval, sha256=_sha256)
    return page


def _sha256(text: str) -> str:
    """The hash by which the page's policy knows its script."""
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
