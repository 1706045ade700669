"""Written-out solutions are right when they should be, wrong when they should be, and split by operands."""

import re

import pytest

from posttrain.assets.world import arithmetic
from posttrain.assets.world.arithmetic import Problem, attempts, column_steps, countdown, expression, result, solve
from posttrain.data.expressions import value_of
from posttrain.rng import python

RNG = python(0, "tests")


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        ((47, 85), "47+85: 7+5=12 c1, 4+8+1=13, so 132."),
        ((347, 285), "347+285: 7+5=12 c1, 4+8+1=13 c1, 3+2+1=6, so 632."),
        ((347, 85), "347+85: 7+5=12 c1, 4+8+1=13 c1, 3+0+1=4, so 432."),
        ((12, 30, -7), "12+30-7: 12+30=42, 42-7=35, so 35."),
    ],
)
def test_layout(terms, line):
    assert arithmetic.line(Problem(terms), "worked", RNG) == line


def steps_hold(text: str) -> bool:
    return all(value_of(left) == int(right) for left, right in re.findall(r"([0-9+\-*]+)=([0-9]+)", text))


def test_worked_solutions_are_right_in_every_step():
    for i in range(2000):
        problem = arithmetic.draw(python(1, i))
        solution = solve(problem, "worked", python(2, i))
        assert solution.answer == problem.value and steps_hold(solution.text)
        assert solution.text.endswith(f"so {problem.value}.")


def test_slips_are_wrong_first_where_they_say():
    for i in range(2000):
        problem = arithmetic.draw(python(3, i))
        solution = solve(problem, "slip", python(4, i))
        assert solution.answer != problem.value, solution
        good = solve(problem, "worked", python(4, i)).steps
        first = next(k for k, (a, b) in enumerate(zip(solution.steps, good, strict=True)) if a != b)
        assert first == solution.wrong_step


def test_columns_agree_with_addition_for_all_two_digit_numbers():
    for a in range(10, 100):
        for b in range(10, 100):
            assert column_steps(Problem((a, b)), None, RNG)[1] == a + b


def test_direct_answers_are_right_as_often_as_asked():
    n = 4000
    right = 0
    for i in range(n):
        problem = arithmetic.draw(python(5, i))
        right += solve(problem, "direct", python(6, i)).answer == problem.value
    assert abs(right / n - 0.5) < 5 * 0.5 / n**0.5


def test_problems_stay_in_range():
    for i in range(2000):
        problem = arithmetic.chain_problem(python(7, i))
        totals = [sum(problem.terms[:k]) for k in range(1, len(problem.terms) + 1)]
        assert 3 <= len(problem.terms) <= 5 and min(totals) >= 0 and max(totals) <= 999


def test_one_problem_in_ten_is_held_out_in_either_order():
    pairs = [(a, b) for a in range(10, 100) for b in range(10, a + 1)]
    share = sum(arithmetic.held_out(*pair) for pair in pairs) / len(pairs)
    assert abs(share - 0.1) < 5 * (0.09 / len(pairs)) ** 0.5
    assert all(arithmetic.held_out(a, b) == arithmetic.held_out(b, a) for a, b in pairs)
    assert not any(arithmetic.draw(python(8, i)).held_out for i in range(1000))


def test_countdown_attempts_and_searches():
    for i in range(500):
        game = countdown(python(9, i))
        assert value_of(game.solution) == game.target
        for attempt in attempts(game.numbers):
            assert value_of(expression(attempt)) == result(attempt) >= 0
        text, found = arithmetic.search(game, python(10, i))
        assert steps_hold(text)
        assert found == ("yes" in text)
        if found:
            assert value_of(text.rpartition("so ")[2].rstrip(".")) == game.target
