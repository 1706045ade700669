"""A small exact calculator: + - * / and brackets over whole numbers, by recursive descent over Fractions.

It reads text that a model wrote, so it bounds length and depth and calls nothing: no `eval`, no names, no powers.
"""

import re
from fractions import Fraction

LONGEST = 100
"""Longest expression in characters; with it, nesting is at most this deep and numbers stay small."""
_TOKEN = re.compile(r"\s*([0-9]+|[+\-*/()])")


class NotAnExpression(ValueError):
    """The text is not an expression of this calculator, or divides by zero. The message says which."""


def value_of(text: str) -> Fraction:
    """The exact value of an expression: value_of("(1+2)*7/2") is 21/2.

    * and / bind stronger than + and -, both from left to right; a sign may stand before a number or bracket. Raises
    NotAnExpression.
    """
    tokens = _tokens(text)
    value, rest = _sum(tokens, 0)
    if rest != len(tokens):
        raise NotAnExpression(f"{text!r} goes on after its end, at {tokens[rest]!r}")
    return value


def numbers_of(text: str) -> list[int]:
    """The whole numbers that occur in the text, in order."""
    return [int(number) for number in re.findall(r"[0-9]+", text)]


def _tokens(text: str) -> list[str]:
    if len(text) > LONGEST:
        raise NotAnExpression(f"an expression of {len(text)} characters is longer than {LONGEST}")
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise NotAnExpression(f"{text!r} has {text[at]!r}, which is no number, operator or bracket")
        tokens.append(found[1])
        at = found.end()
    return tokens


def _sum(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        term, after = _product(tokens, at + 1)
        value = value + term if tokens[at] == "+" else value - term
        at = after
    return value, at


def _product(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        factor, after = _atom(tokens, at + 1)
        if tokens[at] == "/" and factor == 0:
            raise NotAnExpression("division by zero")
        value = value * factor if tokens[at] == "*" else value / factor
        at = after
    return value, at


def _atom(tokens: list[str], at: int) -> tuple[Fraction, int]:
    if at == len(tokens):
        raise NotAnExpression("the expression stops too early")
    token = tokens[at]
    if token.isdigit():
        return Fraction(int(token)), at + 1
    if token in "+-":
        value, after = _atom(tokens, at + 1)
        return (value if token == "+" else -value), after
    if token == "(":
        value, after = _sum(tokens, at + 1)
        if after == len(tokens) or tokens[after] != ")":
            raise NotAnExpression("a bracket is not closed")
        return value, after + 1
    raise NotAnExpression(f"{token!r} stands where a number should")
