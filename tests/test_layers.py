"""The structure of the package: who may import whom, how long a file may be, what loads without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "posttrain"

LAYERS = (
    "errors",
    "records",
    "rng",
    "schema",
    "config",
    "train.folder",  # what a run folder is, without torch: models are taken from runs by name
    "dist",
    "device",
    "heap",
    "products",
    "sandbox",
    "scale.shared",  # what the next sends its messages through
    "scale.distributed",  # one model over several processes: below all that holds a model
    "objectives",
    "models.tokenizers",  # ids and text, without torch: the templates need to know what a token is
    "chat",
    "models",
    "batch",
    "packing",
    "assets.world",
    "data",
    "sample",
    "envs",
    "rewards",
    "train.metrics",  # the glossary, which pages show
    "pages",  # what a run writes of itself for people
    "train",
    "search",
    "evals",
    "control",
    "algorithms",
    "scale",
    "assets",
    "recipes",
    "lab",
    "exercises",
    "live",
    "cli",
    "__main__",
)
"""A file may import its own folder and anything earlier; type-only imports are free."""

SHELF: tuple[str, ...] = ()
"""Modules that can be deleted without breaking the rest: only cli, recipes, lab and tests import them."""

OBJECTIVES_MAY_IMPORT = {"torch", "posttrain.errors", "posttrain.products", "posttrain.objectives"}

WITHOUT_TORCH = (
    "posttrain",
    "posttrain.errors",
    "posttrain.records",
    "posttrain.rng",
    "posttrain.schema",
    "posttrain.config",
    "posttrain.packing",
    "posttrain.dist",
    "posttrain.chat",
    "posttrain.assets.world",
    "posttrain.pages.run",
    "posttrain.cli.main",
    "posttrain.cli.options",
    "posttrain.cli.config",
    "posttrain.cli.runs",
    "posttrain.cli.doctor",
    "posttrain.cli.train",
    "posttrain.cli.book",
)

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """posttrain/train/run.py -> "train.run"; a folder's __init__ is the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    """Index of the most specific layer that holds a module of ours (written without "posttrain.")."""
    fitting = [name for name in LAYERS if module == name or module.startswith(name + ".")]
    assert fitting, f"{module} has no layer: add its folder to LAYERS in tests/test_layers.py"
    return LAYERS.index(max(fitting, key=len))


def imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, those inside functions included, those under TYPE_CHECKING not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if _is_module(name)]
            yield from modules or [node.module]
        elif not (top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imports(node, top_level=top_level)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path):
    mine = module_name(path)
    if not mine:
        return  # posttrain/__init__.py names modules as text and loads them lazily
    for name in imports(ast.parse(path.read_text())):
        if name.startswith("posttrain."):
            other = name.removeprefix("posttrain.")
            assert layer_of(other) <= layer_of(mine), (
                f"posttrain.{mine} must not import posttrain.{other}, a later layer"
            )
            if other in SHELF:
                assert mine.split(".")[0] in ("cli", "recipes", "lab"), f"{mine} imports {other}, which is on the shelf"


@pytest.mark.parametrize("path", sorted((PACKAGE / "objectives").rglob("*.py")), ids=module_name)
def test_formulas_know_only_tensors(path):
    for name in imports(ast.parse(path.read_text())):
        top = name.split(".")[0]
        allowed = top in sys.stdlib_module_names or any(
            name == known or name.startswith(known + ".") for known in OBJECTIVES_MAY_IMPORT
        )
        assert allowed, (
            f"{module_name(path)} imports {name}; formulas import torch, its products, errors and each other"
        )


def test_the_learner_has_the_only_backward():
    calls = [module_name(p) for p in FILES if ".backward(" in p.read_text()]
    assert calls == ["train.learner"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_is_read_in_one_sitting(path):
    text = path.read_text()
    lines = text.count("\n")
    reason = "Longer than 400 lines because" in (ast.get_docstring(ast.parse(text)) or "")
    assert lines <= (500 if reason else 400), f"{path.name} has {lines} lines: split it, or say why in its docstring"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_function_fits_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            assert lines <= 60, f"{module_name(path)}.{node.name} has {lines} lines without its docstring"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{module_name(path)} has no docstring"
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if public and node.name != "main":
            assert ast.get_docstring(node), f"{module_name(path)}.{node.name} is public and has no docstring"


def test_optional_packages_are_imported_inside_functions():
    optional = {"transformers", "pyarrow", "datasets", "peft", "vllm", "ray", "math_verify", "gymnasium", "markdown_it"}
    optional |= {"tensorboard", "trackio", "wandb"}
    for path in FILES:
        for name in imports(ast.parse(path.read_text()), top_level=True):
            assert name.split(".")[0] not in optional, f"{module_name(path)} imports {name} at its top"


def test_what_loads_without_torch():
    """One process for all, so that one `import torch` anywhere below shows; then the first guilty one is named."""
    names = [n for n in WITHOUT_TORCH if _is_module(n)]
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
