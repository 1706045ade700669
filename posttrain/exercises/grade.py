"""Grading in a process of its own: `python -m posttrain.exercises.grade 13.1 FILE` prints a line of JSON, the grade.

The file is the reader's code. What it prints goes to the error stream.
"""

import contextlib
import json
import runpy
import sys
import traceback
from dataclasses import asdict

from posttrain.exercises.exercise import Exercise, Grade, exercise, grade


def main(words: list[str]) -> int:
    """Grade a file; 0 where it is right."""
    asked, path = exercise(words[0]), words[1]
    with contextlib.redirect_stdout(sys.stderr):
        found = of_file(asked, path)
    print(json.dumps(asdict(found)))
    return int(bool(found.problem))


def of_file(asked: Exercise, path: str) -> Grade:
    """Run the file and grade its function."""
    try:
        names = runpy.run_path(path)
    except SyntaxError as error:
        return Grade(0, 0, f"It is no Python: {error.msg} (line {error.lineno}).")
    except BaseException as error:  # an exit in the reader's file is no end of ours
        last = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        where = f" (line {last[-1]})" if last else ""
        return Grade(0, 0, f"The file itself fails: {type(error).__name__}: {error}{where}")
    if not callable(names.get(asked.name)):
        return Grade(0, 0, f"There is no function {asked.name} in it. Its name must stay as it was.")
    return grade(asked, names[asked.name])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
