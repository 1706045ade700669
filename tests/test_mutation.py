"""The mutation check finds the changes that matter, runs them in place of the original, and puts it back."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutants import units
from mutation import TooLong, deadline, read_equivalents, survivors

TOY = '''
import torch
from dataclasses import dataclass


def masked(x, mask):
    return torch.where(mask, x, 0.0)


def loss(x, mask, *, low=0.1):
    """A docstring with 1 - 2."""
    if low < 0:
        raise ValueError(f"low = {low - 1}")
    top = torch.maximum(x, x.detach() * 2 + 1)
    return masked(top[1:], mask[1:]) / (len(x) - 1)


def count(n):
    total = 0
    while n > 0:
        total, n = total + n, n - 1
    return total


@dataclass(frozen=True)
class Box:
    low: float | None = 1.0

    @property
    def edge(self):
        return 1 - self.low if self.low is not None and self.low > 0.5 else 0


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def power(n):
    def of(x):
        return x + n
    return of


MENU = {"double": lambda x: x + x, "next": power(1)}
'''


@dataclass(eq=False)
class Plain:
    """A test that needs no pytest."""

    run: object
    seconds: float = 0.0

    def fails(self):
        try:
            with deadline(0.2):
                assert self.run()
        except (Exception, TooLong) as wrong:
            return wrong


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy_formulas.py"
    path.write_text(TOY)
    spec = importlib.util.spec_from_file_location("toy_formulas", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module, {u.title: u for u in units(path, "toy.py")}
    del sys.modules[spec.name]


def changes(unit) -> list[str]:
    return [m.key.removeprefix(f"toy.py {unit.title}: ") for m in unit.mutants()]


def test_finds_what_may_be_wrong(toy):
    _, found = toy
    assert set(changes(found["loss"])) == {
        "mask = mask.roll(1, -1)",
        "low < 0 => low > 0",
        "low < 0 => low < 1",
        "top = torch.maximum(x, x.detach() * 2 + 1) => top = torch.minimum(x, x.detach() * 2 + 1)",
        "top = torch.maximum(x, x.detach() * 2 + 1) => top = torch.maximum(x, x.detach() * 2 - 1)",
        "top = torch.maximum(x, x.detach() * 2 + 1) => top = torch.maximum(x, x.detach() / 2 + 1)",
        "top = torch.maximum(x, x.detach() * 2 + 1) => top = torch.maximum(x, x * 2 + 1)",
        "top = torch.maximum(x, x.detach() * 2 + 1) => top = torch.maximum(x, x.detach() * 3 + 1)",
        "top = torch.maximum(x, x.detach() * 2 + 1) => top = torch.maximum(x, x.detach() * 2 + 2)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => masked(top[1:], mask[1:]) * (len(x) - 1)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => masked(top[1:], mask[1:]) / (len(x) - 1 + 1)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => top[1:] / (len(x) - 1)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => masked(top[2:], mask[1:]) / (len(x) - 1)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => masked(top[1:], mask[2:]) / (len(x) - 1)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => masked(top[1:], mask[1:]) / (len(x) + 1)",
        "masked(top[1:], mask[1:]) / (len(x) - 1) => masked(top[1:], mask[1:]) / (len(x) - 2)",
    }
    assert "torch.where(mask, x, 0.0) => torch.where(mask, 0.0, x)" in changes(found["masked"])
    assert "torch.where(mask, x, 0.0) => torch.where(mask.roll(1, -1), x, 0.0)" in changes(found["masked"])


def test_weak_tests_leave_survivors_and_good_ones_none(toy):
    module, found = toy
    weak = [Plain(lambda: module.Box().edge == 0)]
    left = [m.key.split(" => ")[1] for m in survivors(found["Box.edge"], found["Box.edge"].mutants(), weak)]
    assert "1 - self.low if self.low is not None and self.low > 1.5 else 0" in left
    assert "1 + self.low if self.low is not None and self.low > 0.5 else 0" not in left
    good = [*weak, Plain(lambda: module.Box(None).edge == 0), Plain(lambda: module.Box(0.4).edge == 0),
            Plain(lambda: module.Box(0.8).edge == 1 - 0.8)]  # fmt: skip
    assert not survivors(found["Box.edge"], found["Box.edge"].mutants(), good)


@pytest.mark.parametrize("name", ["Square.forward", "Square.backward", "power", "lambda:'double'"])
def test_every_kind_of_function_is_swapped_wherever_it_is_kept(toy, name):
    import torch

    module, found = toy
    kept, x = dict(module.MENU), torch.tensor(3.0, requires_grad=True)

    def right():
        y = 2 * module.Square.apply(x)
        return y == 18 and torch.autograd.grad(y, x)[0] == 12 and kept["next"](2) == 3 and kept["double"](1.5) == 3

    mutants = found[name].mutants()
    assert mutants and right()
    assert not survivors(found[name], mutants, [Plain(right)])
    assert right()


def test_an_endless_loop_is_killed(toy):
    module, found = toy
    (loop,) = [m for m in found["count"].mutants() if m.key.endswith("n + 1)")]
    assert not survivors(found["count"], [loop], [Plain(lambda: module.count(3) == 6)])
    assert module.count(3) == 6


def test_the_script_reports_survivors_and_fails(tmp_path):
    (tmp_path / "weakly_tested.py").write_text("def half(x):\n    return x / 2\n\n\ndef more(x):\n    return x + 1\n")
    (tmp_path / "test_weak.py").write_text("""
from weakly_tested import half, more


def test_half():
    assert half(0.0) == 0 and more(1) == 2
""")
    script, words = Path(__file__).with_name("mutation.py"), ("--file", "weakly_tested.py", "--tests", "test_weak.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "5 mutants: 2 killed (40.0%), 3 survived, 0 listed as equivalent" in done.stdout
    assert "weakly_tested.py:2\n    - return x / 2\n    + return x * 2" in done.stdout
    (tmp_path / "test_weak.py").write_text(
        (tmp_path / "test_weak.py").read_text().replace("half(0.0) == 0", "half(2) == 1")
    )
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "5 mutants: 5 killed (100.0%)" in done.stdout, done.stdout + done.stderr


def test_reads_the_list_of_equivalents(tmp_path):
    (tmp_path / "list.txt").write_text("# why\n\nkl.py k3: a => b\n    both are zero\nkl.py k1: c => d\n")
    assert read_equivalents(tmp_path / "list.txt") == {"kl.py k3: a => b": "both are zero", "kl.py k1: c => d": ""}
