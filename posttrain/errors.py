"""Every exception that posttrain raises on purpose.

    PosttrainError
    ├── UsageError(ValueError)          the request makes no sense: exit code 2
    │   ├── ConfigError                 a field has no such value, or no such field exists
    │   └── DataError                   a row, file or column does not fit
    ├── ShapeError(ValueError)          a formula was given tensors whose shapes disagree
    ├── MissingExtra(ImportError)       an optional package is not installed
    ├── ModelError(RuntimeError)        a model folder cannot be read, or its parts disagree
    ├── RunError(RuntimeError)          a run cannot go on
    │   ├── InvariantError              a check of `posttrain doctor` failed: the run would learn nothing, or a lie
    │   ├── NonFiniteError              a loss or gradient is NaN or infinite
    │   ├── OutOfMemory                 a step needs more memory than there is
    │   └── RolloutError                too many rollouts of one step failed
    └── Interrupted(RuntimeError)       Ctrl-C or SIGTERM; the last checkpoint is intact

A message says what happened (with the values), why it cannot go on, and what to do next. The command line prints it
without a traceback. `assert` is for our own mistakes only.
"""

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """Base of all errors that posttrain raises on purpose."""

    exit_code = 1


class UsageError(PosttrainError, ValueError):
    """The request itself is wrong; nothing has been started."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration field is unknown, or its value has no meaning. Carries every problem found, not the first."""


class DataError(UsageError):
    """A data file, column or row does not fit. The message names file and line."""


class ShapeError(PosttrainError, ValueError):
    """A formula was given tensors whose shapes disagree."""


class MissingExtra(PosttrainError, ImportError):
    """An optional package set is needed and not installed. The message holds the install command."""


class ModelError(PosttrainError, RuntimeError):
    """A model folder cannot be read, or its weights, config and tokenizer disagree."""


class RunError(PosttrainError, RuntimeError):
    """A run cannot go on. What has been checkpointed stays intact."""


class InvariantError(RunError):
    """One of the checks that run by default failed: going on would train nothing, or something else than asked."""


class NonFiniteError(RunError):
    """A loss term or gradient is NaN or infinite. Names step, sample and term; it is never skipped."""


class OutOfMemory(RunError):
    """A step needs more memory than there is. Says how large it was and what makes it smaller."""


class RolloutError(RunError):
    """More rollouts of one step failed than `max_failed` allows."""


class Interrupted(PosttrainError, RuntimeError):
    """The user (Ctrl-C) or the system (SIGTERM) asked the run to stop."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest known word, or listing all of them: the tail of an error message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f'Did you mean "{close[0]}"?'
    return "Known: " + ", ".join(known) + "."


def missing_extra(purpose: str, extra: str, alternative: str = "") -> MissingExtra:
    """The error for an optional package set that is not installed.

    purpose: what needs it, as the start of a sentence ("reading Parquet files").
    """
    text = f'{purpose} needs the optional package set "{extra}", which is not installed. '
    text += f'Run: pip install "posttrain[{extra}]"'
    return MissingExtra(text + (f", or {alternative}." if alternative else "."))
