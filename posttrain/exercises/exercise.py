"""What an exercise in code is, and how an answer to it is graded: by the library's own formula, on the same inputs.

Each exercise is a file s<section>_<number>.py that ends in `EXERCISE = Exercise(...)`. Its docstring is the title and
the task; its first function is what the reader fills in.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import UsageError, nearest

FOLDER = Path(__file__).parent
_FILE = re.compile(r"s(\d\d)_(\d+)")


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A function to fill in, and what it must return."""

    stub: Callable
    """Signature and docstring, as the reader gets them; it raises NotImplementedError."""
    solution: Callable
    """A plain answer, shown by --answer."""
    expected: Callable
    """The library's, with the same signature."""
    cases: Callable[[], Sequence[Mapping[str, Any]]]
    """Inputs, easy ones first: what fails first is shown."""
    mistakes: Mapping[str, Callable] = field(default_factory=dict)
    """What a wrong answer looks like -> the function that makes it. Recognised by its results."""
    through: tuple[str, ...] = ()
    """Inputs through which the gradient of the result (of its sum) must be right as well."""

    @property
    def name(self) -> str:
        """Of the function."""
        return self.stub.__name__

    @property
    def number(self) -> str:
        """Section and place in it, such as 13.2."""
        section, place = _FILE.fullmatch(self.stub.__module__.rpartition(".")[2]).groups()
        return f"{section}.{place}"

    @property
    def title(self) -> str:
        """The first line of its file."""
        return self._doc.partition("\n")[0].rstrip(".")

    @property
    def _doc(self) -> str:
        return inspect.cleandoc(inspect.getmodule(self.stub).__doc__)

    @property
    def text(self) -> str:
        """The file that the reader gets."""
        task = self._doc.partition("\n")[2].strip()
        head = f'"""{self.number}  {self.title}\n\n{task}\n\nGraded by: posttrain check {self.number}\n"""\n'
        return f"{head}\n{self._imports}\n\n\n{inspect.getsource(self.stub)}"

    @property
    def answer(self) -> str:
        """The solution under the name of the stub."""
        return inspect.getsource(self.solution).replace(f"def {self.solution.__name__}(", f"def {self.name}(", 1)

    @property
    def _imports(self) -> str:
        """What the reader needs of the file's own imports."""
        tree = ast.parse(inspect.getsource(inspect.getmodule(self.stub)))
        kept = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        lines = [ast.unparse(n) for n in kept if "posttrain" not in ast.unparse(n)]
        plain = [line for line in lines if not line.startswith(("import torch", "from torch"))]
        return "\n".join([*plain, *([""] if plain else []), *(line for line in lines if line not in plain)])


@dataclass(frozen=True)
class Grade:
    """How an answer fared."""

    right: int
    """Cases whose result is right."""
    of: int
    problem: str = ""
    """What is wrong, in lines for the reader; empty if nothing is."""


def exercises() -> dict[str, Exercise]:
    """Number -> exercise, in order."""
    names = sorted((p.stem for p in FOLDER.glob("s*.py")), key=lambda n: [int(x) for x in _FILE.fullmatch(n).groups()])
    found = [importlib.import_module(f"posttrain.exercises.{name}").EXERCISE for name in names]
    return {e.number: e for e in found}


def exercise(number: str) -> Exercise:
    """One of them, by its number. Raises UsageError where there is none."""
    known = exercises()
    section, _, place = number.partition(".")
    number = f"{section.zfill(2)}.{place}"
    if number not in known:
        raise UsageError(f'there is no exercise "{number}". {nearest(number, known)} `posttrain check` lists them all.')
    return known[number]


def grade(asked: Exercise, function: Callable) -> Grade:
    """Call a function on all cases and compare: its values, then its gradients."""
    cases = asked.cases()
    problems = [_problem(asked, function, case) for case in cases]
    wrong = [(case, problem) for case, problem in zip(cases, problems, strict=True) if problem]
    if not wrong:
        return Grade(len(cases), len(cases))
    case, problem = wrong[0]
    lines = [f"  {name:<12} = {shown(value)}" for name, value in case.items()]
    said = "\n".join(["The first that fails:", "", *lines, "", *(f"  {line}" for line in problem.splitlines())])
    hint = next((h for h, mistake in asked.mistakes.items() if _same(asked, function, mistake, cases)), None)
    return Grade(len(cases) - len(wrong), len(cases), said + (f"\n\n{hint}" if hint else ""))


def _problem(asked: Exercise, function: Callable, case: Mapping[str, Any]) -> str:
    """What is wrong with the result of one case; empty if nothing is."""
    want, slopes = results(asked.expected, case, asked.through)
    try:
        got, found = results(function, case, asked.through)
    except NotImplementedError:
        return "It raises NotImplementedError: the function is still to be filled in."
    except Exception as error:  # whatever the reader's code raises is told to the reader
        return f"{type(error).__name__}: {error}{_line_of(error, function)}"
    if got is None:
        return (
            f"expected       {shown(want)}\nyour function  returns something that is no number and no tensor of numbers"
        )
    if got.shape != want.shape:
        return "\n".join(
            f"{who}  {shown(x)}, of shape {list(x.shape)}"
            for who, x in (("expected     ", want), ("your function", got))
        )
    if not torch.allclose(got, want, rtol=1e-5, atol=1e-7, equal_nan=True):
        return f"expected       {shown(want)}\nyour function  {shown(got)}"
    for name, wanted, slope in zip(asked.through, slopes, found, strict=True):
        if slope is None and bool(wanted.any()):
            return f"The value is right, but no gradient reaches {name}: use torch's functions, without detach."
        if slope is not None and not torch.allclose(slope, wanted, rtol=1e-4, atol=1e-6):
            return (f"The value is right, its gradient in {name} is not.\nexpected       {shown(wanted)}\n"
                    f"your function  {shown(slope)}")  # fmt: skip
    return ""


def results(
    function: Callable, case: Mapping[str, Any], through: Sequence[str]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """What a function returns for copies of the inputs, in float64; and its gradients."""
    inputs = {n: v.clone() if isinstance(v, Tensor) else list(v) if isinstance(v, list) else v for n, v in case.items()}
    for name in through:
        inputs[name].requires_grad_()
    value = function(**inputs)
    try:
        value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return None, [None] * len(through)
    slopes: list[Tensor | None] = [None] * len(through)
    if through and value.requires_grad:
        slopes = list(torch.autograd.grad(value.sum(), [inputs[n] for n in through], allow_unused=True))
    slopes = [
        torch.zeros_like(inputs[n]) if s is None and value.requires_grad else s
        for n, s in zip(through, slopes, strict=True)
    ]
    return value.detach().to(torch.float64), slopes


def _same(asked: Exercise, function: Callable, mistake: Callable, cases: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a function does what a known mistake does, on all cases."""
    for case in cases:
        try:
            (got, slopes), (wrong, others) = (results(f, case, asked.through) for f in (function, mistake))
        except Exception:  # it does not even run: no known mistake
            return False
        if not all(_close(a, b) for a, b in zip((got, *slopes), (wrong, *others), strict=True)):
            return False
    return True


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def _line_of(error: Exception, function: Callable) -> str:
    """Where in the reader's file it was raised."""
    own, trace, line = inspect.getsourcefile(function), error.__traceback__, None
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == own else line
        trace = trace.tb_next
    return f" (line {line})" if line else ""


def shown(value: Any) -> str:
    """An input or a result, short."""
    if not isinstance(value, Tensor):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if value.dim() == 0:
        return f"{value.item():.6g}"
    if value.dtype is torch.bool:
        return str(value.tolist())
    rows = [shown(row) for row in value[:6]] if value.dim() > 1 else [f"{x:.6g}" for x in value[:12].tolist()]
    cut = len(value) > (6 if value.dim() > 1 else 12)
    return f"[{', '.join(rows)}{', ...' if cut else ''}]"


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64, for inputs."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(*values: float) -> Tensor:
    """Numbers in float64, for inputs by hand."""
    return torch.tensor(values, dtype=torch.float64)
