"""`posttrain check 13.1`: writes an exercise of the book into a file, and grades what was filled in there."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.cli.options import parse
from posttrain.errors import RunError, UsageError

_USAGE = "posttrain check [NN.K] [options]"
SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Options:
    """An exercise in code is a function to fill in. The first call writes its task and its signature into a file; the
    same command then grades it, in a process of its own, against the library's formula, and shows the first input on
    which they differ. Exit code 1 while it is not right. Without a number it lists all exercises."""

    number: str | None = None
    """Section and exercise, such as 13.1."""
    folder: Path = Path("exercises")
    """Where the files are."""
    answer: bool = False
    """Print a solution instead."""


def main(words: Sequence[str]) -> int:
    """List, write, or grade; the exit code."""
    options = parse(Options, words, _USAGE, ("number",))
    from posttrain.exercises.exercise import exercise, exercises  # needs torch

    if options.number is None:
        if options.answer:
            raise UsageError("the answer to which exercise? Write: posttrain check NN.K --answer")
        for number, one in exercises().items():
            path = path_of(options.folder, number)
            print(f"{number}  {one.title}{f'  ({path})' if path.exists() else ''}")
        return 0
    asked = exercise(options.number)
    if options.answer:
        print(asked.answer, end="")
        return 0
    path = path_of(options.folder, asked.number)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(asked.text, encoding="utf-8")
        print(
            f"{asked.number}  {asked.title}\nwrote {path}: fill in {asked.name}, and call the same command to grade it."
        )
        return 0
    found = graded(asked.number, path)
    print(f"{asked.number}  {asked.title}: {path}")
    if not found["problem"]:
        print(f"right, in all {found['of']} cases.")
        return 0
    if found["of"]:
        print(f"{found['right']} of {found['of']} cases are right. ", end="")
    print(found["problem"])
    return 1


def path_of(folder: Path, number: str) -> Path:
    """Where a reader's answer is."""
    return folder / f"{number.replace('.', '_')}.py"


def graded(number: str, path: Path) -> dict:
    """The grade of a file. Raises RunError where grading itself does not end."""
    command = [sys.executable, "-m", "posttrain.exercises.grade", number, str(path)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{path} did not end within {SECONDS} seconds: is there a loop in it without an end?") from error
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise RunError(f"{path} ended the process that graded it, with exit code {done.returncode}.") from error
