"""The adapter between golden cases and the package holds no mathematics of its own."""

import ast
from pathlib import Path

import pytest

TREE = ast.parse(Path(__file__).with_name("adapter.py").read_text())
FORBIDDEN = ("exp", "log", "sigmoid", "softmax", "clamp", "clip", "min", "max", "sort", "std", "var", "where")
"""As a called name or a part of one: `log_softmax`, `logsumexp`, `clamp_min`, `argsort` and `minimum` count too."""
HARMLESS = {"token_logprobs"}


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_no_mathematics():
    torch_calls = [
        (node.lineno, called(node))
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and _is_foreign(node) and _computes(called(node))
    ]
    assert not torch_calls, f"the adapter computes: {torch_calls}; move it into posttrain.objectives"


def _is_foreign(node: ast.Call) -> bool:
    """Whether the call goes to a tensor's method, torch or a builtin rather than to an imported function of ours."""
    ours = {a.asname or a.name for n in ast.walk(TREE) if isinstance(n, ast.ImportFrom)
            and (n.module or "").startswith("posttrain") for a in n.names}  # fmt: skip
    root = node.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return not (isinstance(root, ast.Name) and root.id in ours)


def _computes(name: str) -> bool:
    words = name.lower().replace("_", " ").split()
    return any(word in FORBIDDEN for word in words) or name in (
        "logsumexp", "logsigmoid", "minimum", "maximum", "argsort", "topk", "amin", "amax", "logaddexp", "pow", "tanh",
        "sqrt", "rsqrt", "relu", "sign", "quantile", "median", "argmax", "argmin", "cross_entropy", "softplus", "mean",
    )  # fmt: skip


@pytest.mark.parametrize("node", [n for n in ast.walk(TREE) if isinstance(n, ast.FunctionDef)], ids=lambda n: n.name)
def test_adapters_are_short(node):
    assert node.end_lineno - node.lineno + 1 <= 20
