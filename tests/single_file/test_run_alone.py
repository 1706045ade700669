"""Each script runs by itself, needs torch alone, is short, learns, and holds the same words as the others."""

import ast
import re
import runpy
import subprocess
import sys

import pytest
from scripts import FOLDER, NAMES, path

MOST_LINES = 250
COMMON = ("token_logprobs", "sample", "descend", "encode", "decode", "imitate", "Block", "GPT")
DIFFER = {("sft", "encode"), ("sft", "decode"), ("agent", "decode"), ("agent", "imitate")}
"""Parts that have the same name for the same purpose, with another content."""
AT_LEAST = {"sft": 0.95, "dpo": 0.77, "ppo": 0.73, "grpo": 0.90, "agent": 0.93}
"""Share of right answers after training: three standard deviations under the mean of ten recorded seeds."""


@pytest.mark.parametrize("name", NAMES)
def test_imports_only_torch_and_the_standard_library(name):
    for node in ast.walk(ast.parse(path(name).read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for module in modules:
                assert module.split(".")[0] in {"torch", *sys.stdlib_module_names}, module
        assert not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("eval", "exec", "__import__")


@pytest.mark.parametrize("name", NAMES)
def test_is_short(name):
    assert len(path(name).read_text().splitlines()) < MOST_LINES


def test_nothing_else_lies_there():
    assert {p.stem for p in FOLDER.glob("*.py")} == set(NAMES)


def parts(name: str) -> dict[str, str]:
    """The functions and classes of a script, as text."""
    body = ast.parse(path(name).read_text()).body
    return {node.name: ast.unparse(node) for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_the_readme_names_files_that_exist():
    """The second table is the way from here to the package."""
    text = (FOLDER / "README.md").read_text()
    named = re.findall(r"`(\w+/[\w/]+\.py)`", text.partition("| here |")[2])
    assert len(named) > 9 and all((FOLDER.parent / "posttrain" / n).exists() for n in named), named
    assert all(f"`python single_file/{name}.py`" in text for name in NAMES)


@pytest.mark.parametrize("part", COMMON)
def test_the_same_part_is_the_same_text(part):
    """What two scripts share is copied, and a repair of one has to reach all."""
    texts = [parts(n)[part] for n in NAMES if part in parts(n) and (n, part) not in DIFFER]
    assert len(texts) > 1 and len(set(texts)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_program(name, monkeypatch, capsys):
    """One step of the whole of it, as the interpreter would run it."""
    monkeypatch.setattr(sys, "argv", [str(path(name)), "--steps", "1", "--seed", "1"])
    runpy.run_path(str(path(name)), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["step"] for line in lines) and any(line.split()[:1] == ["0"] for line in lines)
    assert "before" in lines[-1] and lines[-1].endswith("after")
    assert max(map(len, lines)) <= 120


def test_runs_in_a_process_of_its_own():
    ran = subprocess.run([sys.executable, path("sft"), "--steps", "1"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("after")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_learns(name, seed):
    """As a program, at its defaults: exit code 0, and the effect is there."""
    ran = subprocess.run([sys.executable, path(name), "--seed", str(seed)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    shares = [float(x) / 100 for x in re.findall(r"([\d.]+)%", ran.stdout.splitlines()[-1])]
    before, after = (shares[0], shares[2]) if name == "dpo" else shares
    assert after > AT_LEAST[name] > before
