"""Does a test notice when a formula is wrong? Changes every formula in memory, one place at a time, and asks the tests.

python tests/mutation.py                                      # all of posttrain/objectives: `make mutants`
python tests/mutation.py --file kl.py --function k3           # while writing one
python tests/mutation.py --file kl.py --tests tests/objectives/test_kl.py --limit 50

One process: pytest collects the tests, each is run once to see which functions it calls, then each mutant's code takes
the place of the function's, so that every importer runs it, and the tests that call it run until one fails, those first
that are quick or have found mutants of the same function. A survivor is a hole in the tests, or equal to the original
for every input; then `mutants_equivalent.txt` holds it with a proof of one line. Exit status 1: a mutant survived that
is not listed, more than 2 % are listed, a listed one is no survivor, or a test fails without any mutation.
"""

import argparse
import importlib
import resource
import signal
import sys
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import hypothesis
import pytest
from mutants import Mutant, Unit, units
from pytest import CallInfo

ROOT = Path(__file__).parents[1]
FORMULAS = ROOT / "posttrain/objectives"
LIST = Path(__file__).with_name("mutants_equivalent.txt")
TESTS = ("tests/objectives", "tests/oracles")
ALLOWED_SHARE = 0.02
EXAMPLES = 15
MEMORY = 8 * 2**30


class TooLong(BaseException):
    """A mutant that loops for ever. Not an Exception, so that no test can expect it."""


@contextmanager
def deadline(seconds: float):
    """Raise TooLong in the block after some seconds, and again each second in case it was swallowed."""

    def stop(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(eq=False)
class Test:
    """A collected test that can be run again and again."""

    item: pytest.Item
    seconds: float = 0.1
    calls: set[int] = field(default_factory=set)
    """Identities of the code objects of formulas that it runs."""

    def __post_init__(self):
        function = getattr(self.item, "function", None)
        if hasattr(function, "hypothesis"):
            own = getattr(function, "_hypothesis_internal_use_settings", None) or hypothesis.settings()
            function._hypothesis_internal_use_settings = hypothesis.settings(
                own, max_examples=min(own.max_examples, EXAMPLES), database=None, deadline=None, derandomize=True,
                phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate), report_multiple_bugs=False,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip

    def fails(self) -> BaseException | None:
        """Set up, run and tear down; what was raised. Reports, which take longer than the test, are never made."""
        item, hooks = self.item, self.item.ihook
        if not item._request:
            item._initrequest()
        phases = [("setup", lambda: hooks.pytest_runtest_setup(item=item))]
        phases += [("call", lambda: hooks.pytest_runtest_call(item=item))]
        wrong = None
        try:
            with redirect_stdout(StringIO()), deadline(2 + 10 * self.seconds):
                for when, phase in phases:
                    wrong = wrong or CallInfo.from_call(phase, when=when).excinfo
        except TooLong as late:  # raised between the phases
            wrong = late
        torn = CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(None), when="teardown").excinfo
        item._request, item.funcargs = False, None
        found = wrong or torn
        return getattr(found, "value", found)

    def observe(self, formulas: set[int]) -> BaseException | None:
        """Run once, measuring, and note which formulas are called."""

        def called(frame, event, arg):
            if event == "call" and id(frame.f_code) in formulas:
                self.calls.add(id(frame.f_code))

        self.seconds, began = 60.0, time.perf_counter()
        sys.setprofile(called)
        try:
            return self.fails()
        finally:
            sys.setprofile(None)
            self.seconds = time.perf_counter() - began


def survivors(unit: Unit, mutants: list[Mutant], tests: list) -> list[Mutant]:
    """The mutants that no test notices. tests: anything with `seconds` and `fails()`."""
    killed, left = defaultdict(int), []
    for mutant in mutants:
        with unit.running(mutant.code):
            for test in sorted(tests, key=lambda t: t.seconds / (1 + 3 * killed[t])):
                if test.fails() is not None:
                    killed[test] += 1
                    break
            else:
                left.append(mutant)
    return left


def read_equivalents(path: Path = LIST) -> dict[str, str]:
    """Key -> proof. A key begins its line, the proof stands indented below it."""
    found, key = {}, None
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.strip() and not line.startswith("#"):
            if not line.startswith(" "):
                key = line.strip()
                found[key] = ""
            else:
                found[key] = line.strip()
    return found


class Check:
    """The pytest plugin that takes the place of the test loop."""

    def __init__(self, files: list[Path], function: str | None, limit: int | None):
        self.files, self.function, self.limit = files, function, limit
        self.whole = function is None and limit is None
        self.broken: list[str] = []
        self.bad = False

    def pytest_collectreport(self, report):
        if report.failed:
            self.broken.append(f"{report.nodeid}: {str(report.longrepr).strip().splitlines()[-1]}")

    def pytest_runtestloop(self, session):
        began = time.perf_counter()
        targets = [(path, unit) for path in self.files for unit in units(path, label(path))]
        formulas = {code for _, unit in targets for code in unit.codes()}
        tests = [t for t in map(Test, session.items) if self._is_sound(t, formulas)]
        print(f"{len(tests)} tests call these formulas; observed in {time.perf_counter() - began:.0f} s")
        listed, total, unlisted, used = read_equivalents(), 0, 0, []
        for path in self.files:
            count, left = self._check(path, [u for p, u in targets if p == path], tests)
            known = [m for m in left if m.key in listed]
            total, unlisted, used = total + count, unlisted + len(left) - len(known), used + [m.key for m in known]
            if count == 0:
                continue
            print(f"{label(path):<34}{count:>6} mutants{count - len(left):>6} killed{len(left) - len(known):>5} "
                  f"survived{len(known):>5} equivalent", flush=True)  # fmt: skip
        self.broken += [f"{t.item.nodeid}: passed at first, fails after the mutants" for t in tests if t.fails()]
        self._sum_up(total, unlisted, used, listed, time.perf_counter() - began)
        return True

    def _is_sound(self, test: Test, formulas: set[int]) -> bool:
        """Whether a test calls a formula and passes as things are."""
        wrong = test.observe(formulas)
        if wrong is not None and not isinstance(wrong, pytest.skip.Exception):
            self.broken.append(f"{test.item.nodeid}: {type(wrong).__name__}: {str(wrong).strip()[:120]}")
        return wrong is None and bool(test.calls)

    def _check(self, path: Path, found: list[Unit], tests: list[Test]) -> tuple[int, list[Mutant]]:
        """Number of mutants of a file, and those that survive, printed as they are found."""
        pairs = [(u, m) for u in found if self.function in (None, u.name, u.title, *u.owners) for m in u.mutants()]
        step = max(1, -(-len(pairs) // self.limit)) if self.limit else 1
        pairs, left, listed = pairs[::step], [], read_equivalents()
        for unit in found:
            mine, codes = [m for u, m in pairs if u is unit], unit.codes()
            for mutant in survivors(unit, mine, [t for t in tests if t.calls & codes]) if mine else ():
                left.append(mutant)
                if mutant.key not in listed:
                    print(f"  {label(path)}:{mutant.line}\n    - {mutant.before}\n    + {mutant.after}")
                    print(f"    {mutant.key}", flush=True)
        return len(pairs), left

    def _sum_up(self, total: int, unlisted: int, used: list[str], listed: dict[str, str], seconds: float) -> None:
        names = {label(path) for path in self.files}
        stale = [k for k in listed if self.whole and k.split()[0] in names and k not in used]
        share = len(used) / max(total, 1)
        killed = total - unlisted - len(used)
        print(f"{total} mutants: {killed} killed ({killed / max(total, 1):.1%}), {unlisted} survived, {len(used)} "
              f"listed as equivalent ({share:.1%}); {seconds:.0f} s")  # fmt: skip
        for title, lines in (("listed, but killed or no longer there:", stale),
                             ("without a proof:", [k for k, v in listed.items() if not v]),
                             ("left out, because they fail without any mutation:", self.broken)):  # fmt: skip
            if lines:
                print(title, *lines, sep="\n  ")
                self.bad = True
        self.bad |= bool(unlisted) or (self.whole and len(names) > 1 and share > ALLOWED_SHARE) or not total


def label(path: Path) -> str:
    """A file of formulas as the reader calls it: kl.py, preference/pairs.py."""
    return str(path.relative_to(FORMULAS)) if path.is_relative_to(FORMULAS) else path.name


def paths(names: list[str]) -> list[Path]:
    """Files of formulas by name or path; none: all of them. A file from elsewhere is imported from its folder."""
    found = []
    for name in names:
        if not (path := next((p for p in (FORMULAS / name, Path(name).resolve()) if p.is_file()), None)):
            sys.exit(f"there is no {name} in {FORMULAS}, and no such file")
        found.append(path)
    found = found or sorted(FORMULAS.rglob("*.py"))
    for path in found:
        inside = path.is_relative_to(ROOT)
        sys.path.insert(0, str(ROOT if inside else path.parent))
        parts = path.relative_to(ROOT).with_suffix("").parts if inside else (path.stem,)
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--file", action="append", default=[], help="only this file, such as preference/pairs.py; may be repeated"
    )
    parser.add_argument("--function", help="only this function, Class.method or Class")
    parser.add_argument("--limit", type=int, help="at most so many mutants of each file, spread over it")
    parser.add_argument("--tests", nargs="+", default=[str(ROOT / t) for t in TESTS], help="where the tests are")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    check = Check(paths(options.file), options.function, options.limit)
    plugins = [f"no:{name}" for name in ("terminal", "cacheprovider", "logging", "warnings", "faulthandler")]
    words = ["-s", "--assert=plain", "--continue-on-collection-errors", *(x for p in plugins for x in ("-p", p))]
    status = pytest.main([*words, *options.tests], plugins=[check])
    print(*check.broken[:20] if not check.bad and status else (), sep="\n", end="")
    return 1 if check.bad or status in (2, 3, 4, 5) else 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.exit(main())
