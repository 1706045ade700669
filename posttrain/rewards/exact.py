"""Exact checkers for answers that have one right value. They read text; nothing that a model wrote is evaluated."""

import re
from collections import deque
from fractions import Fraction

from posttrain.records import Score, Task, Trajectory

_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[-+])?"  # a sign, unless it subtracts: "7-5" ends in 5
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # commas between thousands or none; decimals
    r"(?:[eE][-+]?\d+)?"
    r"(?:\s?/\s?\d+(?![\d/]))?"  # a plain fraction
)
_MIXED = re.compile(r"(\d+)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_LONGEST = 400
"""Characters of the longest number that is read, and the largest exponent: a longer one could fill the memory."""


def exact_number(task: Task, trajectory: Trajectory) -> Score:
    r"""1 where the answer's number equals the gold answer's as an exact fraction, else 0.

    The number is read from the last \boxed{...}, else from what follows the last "####", else from the whole text; the
    last number there counts. "1,234.50", "-3", ".5", "1e3", "3/4" and "\frac{3}{4}" are numbers. None where the
    task has no gold number.
    """
    gold = None if task.answer is None else read_number(task.answer)
    if gold is None:
        return Score(None, why=f"the gold answer {task.answer!r} holds no number")
    found = read_number(trajectory.completion)
    if found is None:
        return Score(0.0, why="no number in the answer")
    right = found[0] == gold[0]
    return Score(float(right), answer=found[1], why=f"{found[1]} is {'right' if right else f'not {gold[1]}'}")


def exact_match(task: Task, trajectory: Trajectory) -> Score:
    """1 where the answer equals the gold answer, but for runs of white space, else 0. None without a gold answer.

    Where the answer holds a \\boxed{...} or a "####", what they mark is compared.
    """
    if task.answer is None:
        return Score(None, why="the task has no gold answer")
    said, gold = (" ".join(marked(text).split()) for text in (trajectory.completion, task.answer))
    return Score(float(said == gold), answer=said, why="as wanted" if said == gold else f"not {gold[:80]!r}")


def read_number(text: str) -> tuple[Fraction, str] | None:
    """The last number that the text gives as its answer, and how it was written; None where there is none."""
    text = marked(text).replace("\N{MINUS SIGN}", "-").replace("\\!", "").replace("\\,", "").replace("{,}", ",")
    text = _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}" if len(m[0]) < _LONGEST else "", text)
    text = _FRAC.sub(r"\1/\2", text)
    found = next(iter(deque(_NUMBER.finditer(text), maxlen=1)), None)
    value = None if found is None else _value(found[0])
    return None if value is None else (value, found[0].strip())


def _value(written: str) -> Fraction | None:
    if len(written) > _LONGEST:
        return None
    above, _, below = written.replace(",", "").partition("/")
    mantissa, _, exponent = above.lower().partition("e")
    if abs(int(exponent or 0)) > _LONGEST or (below and int(below) == 0):
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0) / int(below or 1)


def marked(text: str) -> str:
    r"""What the last \boxed{...} holds (braces balanced), else what follows the last "####", else the text."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 1, start + len("\\boxed{")
        for i in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[begin:i]
    return text.rpartition("####")[2]
