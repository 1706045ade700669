"""Every public formula says what it computes: its equation, where it comes from, shapes, and the section that tells it.

Reads the source of `posttrain/objectives` (public functions of its public modules, and whatever a folder takes from
its private ones). What is asked of a docstring is what a reader with the paper in the other hand needs.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "posttrain/objectives"

NO_FORMULA = {
    "tokens.check_shapes": "compares shapes",
    "tokens.detached": "cuts metrics from the graph",
    "tokens.masked": "chooses by a mask",
}
"""Helpers that need neither equation nor reference, and why."""

OWN_DEFINITION = {
    "average.row_weights": "the averages of token_weights for losses with one number per row",
    "average.weight_total": "the divisors of token_weights",
    "distill.with_rest": "one probability for all that is left",
    "kl.sequence_kl": "the chain rule",
    "surrogate.bounded_exp": "an exponential that stays finite",
    "tokens.answers": "the probability of a text is the product over its tokens",
    "tokens.logits_before": "the one shift",
    "tokens.logprobs_from_hidden": "log-softmax",
    "tokens.predicting": "the one shift",
    "tokens.token_logprobs": "log-softmax and the one shift",
    "tokens.values_before": "the one shift",
}
"""Formulas with an equation but nobody to cite, and why."""

PEERS = ("TRL", "verl", "OpenRLHF", "transformers", "torchrl", "RLax", "SkyRL", "prime-rl", "alignment-handbook")
_NAME = r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)?"
REFERENCE = re.compile(
    r"arXiv:? ?\d{4}\.\d{4,5}"
    rf"|{_NAME}(?:,? (?:et al\.?|and {_NAME}))?,? \(?(?:19|20)\d\d\b"
    rf"|\b(?:{'|'.join(PEERS)})\b"
)
MATHEMATICS = re.compile(r"[=Σ∏∫∂∇√·‖≤≥≈∝←→]| [-+/<>] |\^")
SECTION = re.compile(r"\bSections? ((?:\d\d?(?:, | and |,? to )?)+)", re.I)
ENTRY = re.compile(r"(?:^ *|(?<=[.;:,)\]] ))(\*{0,2}\w+(?:(?:,\s+| and )\w+)*): ", re.M)
SHAPE = r"(?:\[[^\]]*\]|\bscalars?\b|\bshaped?\b)"
RESULT = re.compile(rf"\bReturns\b[^.]*?{SHAPE}|\b(?:results|metrics) as `")


@dataclass(frozen=True)
class Formula:
    """A public function as its source shows it."""

    name: str
    """module.function, the module as below objectives/."""
    text: str
    module_text: str
    tensors: tuple[str, ...]
    """Arguments annotated as tensors and as nothing else."""
    gives_tensor: bool


def formulas() -> Iterator[Formula]:
    """All public functions of the folder."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    exported = {(node.module.removeprefix("posttrain.objectives."), alias.name)
                for path, tree in trees.items() if path.name == "__init__.py"
                for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    for path, tree in trees.items():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        private = any(part.startswith("_") and part != "__init__" for part in module.split("."))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if public and (not private or (module, node.name) in exported):
                yield _formula(node, module, ast.get_docstring(tree) or "")


def _formula(node: ast.FunctionDef, module: str, module_text: str) -> Formula:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
    tensors = [a.arg for a in arguments if a and a.annotation and _is_tensor(a.annotation)]
    gives = node.returns is not None and "Tensor" in ast.unparse(node.returns)
    text = cleandoc(ast.get_docstring(node, clean=False) or "")
    return Formula(f"{module}.{node.name}", text, module_text, tuple(tensors), gives)


def _is_tensor(annotation: ast.expr) -> bool:
    """Tensor, Tensor | None, or a container of them; a number or a tensor may be described as a number."""
    text = ast.unparse(annotation)
    return "Tensor" in text and not re.search(r"\b(float|int)\b", text)


def lacks(formula: Formula) -> list[str]:
    """What a docstring should say and does not."""
    missing = []
    if not formula.text:
        return ["docstring"]
    if formula.name not in NO_FORMULA:
        if not has_equation(formula.text):
            missing.append("equation")
        if formula.name not in OWN_DEFINITION and not REFERENCE.search(formula.text):
            missing.append("reference")
    missing += [f"shape of {name}" for name in formula.tensors if not has_shape(formula.text, name)]
    if formula.gives_tensor and formula.name not in NO_FORMULA and not RESULT.search(formula.text):
        missing.append("shape of what it returns")
    if not sections(formula.text) and not sections(formula.module_text):
        missing.append("section")
    return missing


def has_equation(text: str) -> bool:
    """Whether a paragraph of the text is indented by four and contains mathematics."""
    return any(part.startswith("    ") and MATHEMATICS.search(part) for part in re.split(r"\n\s*\n", text))


def has_shape(text: str, argument: str) -> bool:
    """Whether `argument: ...` or `this, argument: ...` stands in the text, with a shape after it.

    A shape is [N, T] or the word, behind the argument itself or after "both" or "all" in the same paragraph.
    """
    for part in re.split(r"\n\s*\n", text):
        entries = list(ENTRY.finditer(part))
        for entry, following in zip_longest(entries, entries[1:]):
            said = part[entry.end() : following.start() if following else len(part)]
            shared = re.search(rf"\b(both|all)\b[^.]*{SHAPE}", part[entry.end() :])
            if argument in re.findall(r"\w+", entry.group(1)) and (shared or re.search(SHAPE, said)):
                return True
    return False


def sections(text: str) -> list[int]:
    """Numbers of the book's sections that a text names."""
    return [n for found in SECTION.findall(text) for n in map(int, re.findall(r"\d+", found)) if 1 <= n <= 27]


FORMULAS = {f.name: f for f in formulas()}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_public_formula_explains_itself(name):
    missing = ", ".join(lacks(FORMULAS[name]))
    assert not missing, f"the docstring of {name} lacks: {missing}"


def test_exceptions_exist():
    gone = {*NO_FORMULA, *OWN_DEFINITION} - set(FORMULAS)
    assert not gone, f"no such function: {gone}"


GOOD = '''
def dpo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimization.

        L = -log σ(β (c - r))

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    chosen, rejected: [B] in nats. beta: of the leash.

    Returns [B]. At 0 the loss is log 2. Section 16.
    """
'''


@pytest.mark.parametrize(
    "old, new, missing",
    [
        ("", "", []),
        ("        L = -log σ(β (c - r))\n\n", "", ["equation"]),
        ("        L =", "    L =", ["equation"]),
        ("Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.", "A famous paper.", ["reference"]),
        ("Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.", "Williams 1992.", []),
        (": [B] in nats", ": in nats", ["shape of chosen", "shape of rejected"]),
        ("chosen, rejected:", "chosen:", ["shape of rejected"]),
        ("Returns [B]", "Returns a loss", ["shape of what it returns"]),
        ("Section 16", "Section 28", ["section"]),
        ("Section 16", "Sections 2, 16 and 17", []),
    ],
)
def test_the_check_sees_what_is_missing(old, new, missing):
    (node,) = ast.parse(GOOD.replace(old, new)).body
    assert lacks(_formula(node, "x", "")) == missing
