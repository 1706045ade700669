"""`posttrain check`: the solution passes; stub, wrong answers, and code that does not run are told what is wrong."""

import re
import textwrap

import pytest
import torch

from posttrain.cli import check
from posttrain.cli.main import main
from posttrain.errors import RunError, UsageError
from posttrain.exercises.exercise import Exercise, exercise, exercises, grade

ALL = exercises()
each = pytest.mark.parametrize("asked", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_finished_sections_have_two_each():
    sections = [number.partition(".")[0] for number in ALL]
    assert all(sections.count(s) >= 2 for s in ("02", "13", "14", "15", "16", "23"))


@each
def test_the_solution_passes(asked: Exercise):
    found = grade(asked, asked.solution)
    assert not found.problem and found.right == found.of >= 2


@each
def test_the_stub_fails_and_says_so(asked: Exercise):
    found = grade(asked, asked.stub)
    assert found.right == 0 and "still to be filled in" in found.problem


@each
def test_a_typical_mistake_is_recognised(asked: Exercise):
    assert len(asked.mistakes) >= 2
    for hint, wrong in asked.mistakes.items():
        found = grade(asked, wrong)
        assert found.right < found.of and found.problem.endswith(hint), hint
        assert "expected" in found.problem and "your function" in found.problem


@each
def test_the_file_of_the_reader(asked: Exercise):
    """It has the task, runs as it is, and its function is the one that is graded."""
    names: dict = {}
    exec(compile(asked.text, "exercise", "exec"), names)
    assert (
        asked.text.startswith(f'"""{asked.number}  {asked.title}\n') and f"posttrain check {asked.number}" in asked.text
    )
    assert (
        "posttrain." not in asked.text.replace("posttrain check", "") and max(map(len, asked.text.splitlines())) <= 120
    )
    with pytest.raises(NotImplementedError):
        names[asked.name](**asked.cases()[0])
    exec(asked.answer, names)
    assert not grade(asked, names[asked.name]).problem


def write(number: str, body: str) -> None:
    path = check.path_of(check.Options().folder, number)
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(body))


def test_from_the_first_call_to_the_last(capsys):
    assert main(["check", "14.2"]) == 0
    assert "wrote exercises/14_2.py: fill in next_beta" in capsys.readouterr().out
    assert main(["check", "14.2"]) == 1
    out = capsys.readouterr().out
    assert "0 of 5 cases are right. The first that fails:" in out and "kl           = 6" in out
    assert "still to be filled in" in out
    write(
        "14.2",
        """
        def next_beta(beta, kl, target, samples, horizon):
            return beta * (1 + (kl / target - 1) * samples / horizon)
        """,
    )
    assert main(["check", "14.2"]) == 1
    out = capsys.readouterr().out
    assert "3 of 5 cases" in out and "expected       0.151536" in out and "your function  0.16792" in out
    assert "The error is not cut" in out
    assert main(["check", "14.2", "--answer"]) == 0
    write("14.2", capsys.readouterr().out)
    assert main(["check", "14.2"]) == 0
    assert "right, in all 5 cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    "body, said",
    [
        ("def next_beta(:", "It is no Python: .* \\(line 1\\)"),
        ("x = 1\n1 / 0", "The file itself fails: ZeroDivisionError: division by zero \\(line 2\\)"),
        ("import sys\nsys.exit(3)", "The file itself fails: SystemExit: 3"),
        ("def beta(): pass", "There is no function next_beta in it"),
        ("def next_beta(**given):\n\n    return given['nothing']", "KeyError: 'nothing' \\(line 3\\)"),
        ("def next_beta(**given):\n    print('hello')\n    return 'much'", "returns something that is no number"),
        ("def next_beta(**given):\n    return [0.15, 0.2]", "of shape \\[2\\]"),
    ],
)
def test_what_does_not_run_is_told(body, said, capsys):
    write("14.2", body)
    assert main(["check", "14.2"]) == 1
    assert re.search(said, capsys.readouterr().out)


def test_code_that_does_not_end(monkeypatch):
    write("14.2", "while True: pass")
    with monkeypatch.context() as patch, pytest.raises(RunError, match="did not end within"):
        patch.setattr(check, "SECONDS", 0.01)
        check.graded("14.2", check.path_of(check.Options().folder, "14.2"))
    write("14.2", "import os\nos._exit(4)")
    with pytest.raises(RunError, match="exit code 4"):
        check.graded("14.2", check.path_of(check.Options().folder, "14.2"))


def test_a_value_without_its_gradient():
    asked = exercise("13.1")
    found = grade(asked, lambda logp, **given: asked.solution(logp.detach(), **given))
    assert "no gradient reaches logp" in found.problem
    scaled = grade(asked, lambda logp, **given: asked.solution(logp.detach() + 2 * (logp - logp.detach()), **given))
    assert "The value is right, its gradient in logp is not." in scaled.problem


def test_inputs_are_the_readers_to_change():
    """A function may write into its arguments without spoiling what it is compared with."""
    asked = exercise("13.2")
    assert not grade(asked, lambda rewards, **given: asked.solution(rewards.add_(0.0), **given)).problem
    ruined = grade(asked, lambda rewards, **given: asked.solution(rewards.zero_(), **given))
    assert ruined.right < ruined.of and torch.equal(
        asked.cases()[0]["rewards"], torch.tensor([1.0], dtype=torch.float64)
    )


def test_the_list_and_mistakes_of_the_command(capsys):
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert all(f"{number}  {one.title}" in out for number, one in ALL.items())
    with pytest.raises(UsageError, match='no exercise "13.9". Did you mean "13'):
        exercise("13.9")
    assert main(["check", "--answer"]) == 2
    assert exercise("2.1").number == "02.1"
