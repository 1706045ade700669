"""Sphinx's configuration: everything is in `book.engine`, which tests use as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from book.engine import SETTINGS  # noqa: E402

globals().update(SETTINGS)
