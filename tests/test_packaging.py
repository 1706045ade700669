"""What is shipped: the wheel installs into an empty environment and its demo runs; names and versions agree."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import posttrain
from posttrain.cli import doctor
from posttrain.cli.main import VERBS
from posttrain.cli.train import CONTROL, METHODS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)


def requirement(text: str) -> tuple[str, str]:
    """ "numpy>=1.26" -> ("numpy", "1.26")"""
    name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", text).groups()
    return name, version


def numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)]


def test_one_version():
    assert PROJECT["version"] == posttrain.__version__


def test_what_is_required_is_pinned_high_enough():
    pins = {name.lower(): version for name, version in PINS.items()}
    wanted = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e][0] for e in ("hf", "data", "dev"))]
    for name, version in map(requirement, wanted):
        assert numbers(pins[name]) >= numbers(version), name
    assert PINS["torch"] == "2.13.0"


def test_the_core_needs_few_packages():
    names = {requirement(text)[0] for text in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "safetensors", "tokenizers", "jinja2", "rich"}


def test_every_extra_that_a_message_names_exists():
    extras = set(PROJECT["optional-dependencies"])
    assert set(doctor.EXTRAS) == extras
    for path in (ROOT / "posttrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "missing_extra":
                named = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
                assert set(named) <= extras, f"{path.name} names the extra {named}"


def test_every_verb_and_method_exists():
    for module, _ in VERBS.values():
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for name in METHODS:
        home = f"control/{CONTROL[name]}" if name in CONTROL else f"algorithms/{name}"
        assert (ROOT / f"posttrain/{home}.py").exists(), name


def test_public_names_exist():
    for name in posttrain.__all__:
        if name in posttrain._MODULES and not (ROOT / "posttrain" / name).exists():
            assert (ROOT / f"posttrain/{name}.py").exists(), f"posttrain.{name} is announced and missing"
        assert getattr(posttrain, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        posttrain.Trainer  # noqa: B018


def test_installed_metadata_is_of_this_checkout():
    try:
        installed = importlib.metadata.version("posttrain")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("posttrain is not installed in this environment (make test installs it)")
    assert installed == posttrain.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that no stale build folder can leak into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "posttrain", source / "posttrain", ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", source / "dist", source], source)
    (path,) = (source / "dist").glob("posttrain-*.whl")
    return path


def run(words, cwd) -> str:
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """The environment without what could lend our checkout to the child."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}


@pytest.mark.packaging
def test_the_wheel_holds_the_package_and_the_base_model(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        size = sum(info.file_size for info in file.infolist())
    for needed in ("config.json", "model.safetensors", "tokenizer.json"):
        assert f"posttrain/assets/base-1/{needed}" in names
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "posttrain").rglob("*.py")}
    assert ours <= names
    assert not any(name.startswith(("tests/", "book/", "benchmarks/")) for name in names)
    assert size < 20 * 2**20


@pytest.mark.packaging
def test_the_wheel_runs_the_demo_in_an_empty_environment(wheel, tmp_path):
    run([sys.executable, "-m", "venv", tmp_path / "env"], tmp_path)
    python = tmp_path / "env/bin/python"
    run([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], tmp_path)
    installed = run([python, "-m", "pip", "list", "--format", "freeze"], tmp_path).lower()
    for absent in ("transformers", "pytest", "datasets", "accelerate"):
        assert f"\n{absent}==" not in installed, f"the core pulls in {absent}"
    where = run([python, "-c", "import posttrain; print(posttrain.__file__)"], tmp_path)
    assert where.startswith(str(tmp_path / "env"))
    run([tmp_path / "env/bin/posttrain", "doctor"], tmp_path)
    run([tmp_path / "env/bin/posttrain", "demo", "--size", "tiny"], tmp_path)
