"""Arithmetic of the world: problems, their written-out solutions, typical mistakes, and which problems are held out.

Sums go column by column from the right, chains by running totals, countdown by trying things. Numbers are written one
digit per token and without spaces. A problem is held out by a stable hash of its operands; held-out problems are never
posed in the corpus, in demonstrations or in training tasks. This is a statement about the problem *as posed*: a running
total inside some chain may add any two numbers, and may so state the result of a held-out sum.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Literal

from posttrain.rng import fold

Style = Literal["direct", "worked", "slip"]
STYLES: tuple[tuple[Style, float], ...] = (("direct", 0.35), ("worked", 0.45), ("slip", 0.20))
"""How the corpus solves: at once (right half of the time), written out, written out with a mistake."""

PROMPTS = ("What is {}?", "What is {}?", "What is {}?", "Compute {}.", "How much is {}?", "Work out {}.")
"""Ways of posing a problem; the first is what tasks use."""


def held_out(*operands: int) -> bool:
    """Whether the problem with these operands (minus signs included) is reserved for tests: about one in ten.

    For two operands their order does not matter, so that a+b and b+a are reserved together. A countdown is asked for
    with its sorted numbers followed by the target and a marking zero; see `Countdown.held_out`.
    """
    key = sorted(operands) if len(operands) == 2 else operands
    return fold(0, "held out", *key) % 10 == 0


@dataclass(frozen=True)
class Problem:
    """A sum of two numbers or a chain of several signed terms."""

    terms: tuple[int, ...]

    @cached_property
    def text(self) -> str:
        return str(self.terms[0]) + "".join(f"{t:+d}" for t in self.terms[1:])

    @property
    def value(self) -> int:
        return sum(self.terms)

    @property
    def held_out(self) -> bool:
        return held_out(*self.terms)


@dataclass(frozen=True)
class Solution:
    """What somebody wrote as the answer to a problem."""

    text: str
    steps: tuple[str, ...]
    """The written-out steps, none for a direct answer."""
    wrong_step: int | None
    """Index of the first wrong step."""
    answer: int


def sum_problem(rng: random.Random, digits: tuple[int, ...] = (2, 2, 3)) -> Problem:
    """Two numbers, each with a number of digits drawn from `digits`. May be held out."""
    return Problem(tuple(_number(rng, rng.choice(digits)) for _ in range(2)))


def chain_problem(rng: random.Random, length: int | None = None) -> Problem:
    """Three to five signed terms; the first has two digits and every running total stays within 0..999."""
    length = length or rng.choice((3, 3, 4, 4, 5))
    terms = [rng.randrange(10, 100)]
    while len(terms) < length:
        size = rng.randrange(1, 10) if rng.random() < 0.5 else rng.randrange(10, 100)
        terms.append(-size if rng.random() < 0.5 and size <= sum(terms) else size)
    return Problem(tuple(terms))


def draw(rng: random.Random, *, chains: float = 0.5) -> Problem:
    """A sum or a chain that is not held out."""
    while True:
        problem = chain_problem(rng) if rng.random() < chains else sum_problem(rng)
        if not problem.held_out:
            return problem


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def near_miss(value: int, rng: random.Random) -> int:
    """A plausible wrong result: a neighbour, a ten or a hundred too much or too little."""
    steps = (1, 2, 10, 10) if value < 100 else (1, 2, 10, 10, 100)
    step = rng.choice(steps)
    return value + step if value < step or rng.random() < 0.5 else value - step


def solve(problem: Problem, style: Style, rng: random.Random, *, right: float = 0.5) -> Solution:
    """Write the answer in one of the styles; `right` is the share of direct answers that are correct."""
    if style == "direct":
        answer = problem.value if rng.random() < right else near_miss(problem.value, rng)
        return Solution(f"{answer}.", (), None, answer)
    steps_of = column_steps if len(problem.terms) == 2 else running_steps
    count = len(steps_of(problem, None, rng)[0])
    wrong = rng.randrange(count) if style == "slip" else None
    steps, answer = steps_of(problem, wrong, rng)
    return Solution(f"{', '.join(steps)}, so {answer}.", tuple(steps), wrong, answer)


def column_steps(problem: Problem, wrong: int | None, rng: random.Random) -> tuple[list[str], int]:
    """Column sums from the right, `47+85` -> ["7+5=12 c1", "4+8+1=13"], and the result that they imply.

    wrong: index of a column that goes wrong (its sum is off by one, or its carry is lost); later columns carry on from
    there, so the result is wrong too.
    """
    a, b = problem.terms
    width = max(len(str(a)), len(str(b)))
    steps, result, carry = [], 0, 0
    for column in range(width):
        x, y = a // 10**column % 10, b // 10**column % 10
        total = x + y + carry
        text = f"{x}+{y}+1" if carry else f"{x}+{y}"
        lost = False
        if column == wrong:
            lost = total > 9 and column + 1 < width and rng.random() < 0.5
            if not lost:
                total += 1 if total == 0 or (total < 19 and rng.random() < 0.5) else -1
        carry = 0 if lost else total // 10
        last = column + 1 == width
        result += (total if last else total % 10) * 10**column
        steps.append(f"{text}={total}" + (" c1" if carry and not last else ""))
    return steps, result


def running_steps(problem: Problem, wrong: int | None, rng: random.Random) -> tuple[list[str], int]:
    """Running totals, `12+30-7` -> ["12+30=42", "42-7=35"], and the last total; step `wrong` is a near miss."""
    steps, total = [], problem.terms[0]
    for i, term in enumerate(problem.terms[1:]):
        after = total + term
        if i == wrong or after < 0:
            after = near_miss(max(after, 0), rng)
        steps.append(f"{total}{term:+d}={after}")
        total = after
    return steps, total


def pick_style(rng: random.Random) -> Style:
    """One of `STYLES` by its weight."""
    return rng.choices([s for s, _ in STYLES], [w for _, w in STYLES])[0]


def line(problem: Problem, style: Style, rng: random.Random) -> str:
    """Problem and solution on one line: `47+85=132.` or `47+85: 7+5=12 c1, 4+8+1=13, so 132.`"""
    sign = "=" if style == "direct" else ": "
    return problem.text + sign + solve(problem, style, rng).text


@dataclass(frozen=True)
class Countdown:
    """Reach `target` from three numbers, each used once, with + - and *."""

    numbers: tuple[int, int, int]
    target: int
    solution: str
    """One expression that does it, as (a?b)?c."""

    @property
    def held_out(self) -> bool:
        return held_out(*sorted(self.numbers), self.target, 0)

    @property
    def text(self) -> str:
        return f"make {self.target} from {self.numbers[0]}, {self.numbers[1]}, {self.numbers[2]}"


def apply(a: int, operator: str, b: int) -> int:
    """a operator b for + - *."""
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def attempts(numbers: tuple[int, ...]) -> list[tuple[int, str, int, str, int]]:
    """All ways (a, op, b, op, c) to use three numbers once, without negative totals in between."""
    found = []
    for a, b, c in dict.fromkeys(permutations(numbers)):
        for first in "+-*":
            middle = apply(a, first, b)
            if middle < 0 or (first in "+*" and a < b):
                continue
            found += [(a, first, b, second, c) for second in "+-*" if apply(middle, second, c) >= 0]
    return found


def expression(attempt: tuple[int, str, int, str, int]) -> str:
    """The attempt as text: `(3*7)+5`."""
    a, first, b, second, c = attempt
    return f"({a}{first}{b}){second}{c}"


def result(attempt: tuple[int, str, int, str, int]) -> int:
    """The number that the attempt reaches."""
    a, first, b, second, c = attempt
    return apply(apply(a, first, b), second, c)


def countdown(rng: random.Random, top: int = 12) -> Countdown:
    """Three numbers up to `top` and a target of 1..99 that one of the attempts reaches. May be held out."""
    while True:
        numbers = tuple(rng.randrange(1, top + 1) for _ in range(3))
        attempt = rng.choice(attempts(numbers))
        if 1 <= result(attempt) <= 99:
            return Countdown(numbers, result(attempt), expression(attempt))


def search(game: Countdown, rng: random.Random, *, most: int = 6) -> tuple[str, bool]:
    """Try things until one works, at most `most` of them; the text, and whether it was found.

    `5+3=8, 8*2=16 no; 5*3=15, 15+2=17 yes, so (5*3)+2.`
    """
    tries = attempts(game.numbers)
    rng.shuffle(tries)
    tries.sort(key=lambda t: abs(result(t) - game.target) > 20)  # closer ones first: people do look at the target
    parts = []
    for attempt in tries[:most]:
        a, first, b, second, c = attempt
        middle, end = apply(a, first, b), result(attempt)
        hit = end == game.target
        parts.append(f"{a}{first}{b}={middle}, {middle}{second}{c}={end} {'yes' if hit else 'no'}")
        if hit:
            return f"{'; '.join(parts)}, so {expression(attempt)}.", True
    return f"{'; '.join(parts)}; I give up.", False


def draw_countdown(rng: random.Random, top: int = 12) -> Countdown:
    """A countdown that is not held out."""
    while (game := countdown(rng, top)).held_out:
        pass
    return game
