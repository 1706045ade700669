"""What a mutation is: every small change that a formula's test should notice, as compiled code.

A unit is one function, method or lambda of a source file. `Unit.mutants` changes one node of its syntax tree at a time:
the sign of a sum, a factor into a divisor, a comparison, a minimum, a detach, a mask by one place (where it meets
values, and for the whole function), a bound of a slice, a divisor or a constant by one, a keyword left out, the
branches of where, a condition. Messages of errors, annotations, default arguments and shape patterns are no mathematics
and are left alone.
"""

import ast
import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import CodeType, FunctionType

PAIRS = [
    ("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"), ("clamp_min", "clamp_max"),
    ("cummin", "cummax"), ("fmin", "fmax"), ("any", "all"), ("floor", "ceil"), ("zeros", "ones"),
    ("zeros_like", "ones_like"), ("logical_and", "logical_or"), ("sum", "mean"),
]  # fmt: skip
SWAPPED = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE,
    ast.GtE: ast.LtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
DROPPED = ("detach", "abs", "masked", "masked_fill", "reversed")
"""Calls that are replaced by what they were applied to."""
KEPT_KEYWORDS = ("device", "dtype", "strict")
"""Say where and how exactly, not what."""
NO_MATHEMATICS = (ast.Raise, ast.Assert, ast.JoinedStr, ast.arguments)
CONTEXT = 70
"""A change is named by the smallest expression around it that is not longer than this."""


@dataclass(frozen=True)
class Mutant:
    """One change of one unit."""

    key: str
    """file, function and change, the same as long as neither changes: what the list of equivalents holds."""
    line: int
    before: str
    after: str
    """The source lines of the change."""
    code: CodeType = field(repr=False)


@dataclass(frozen=True, eq=False)
class Unit:
    """A function, method or lambda of a file, with every live function object that runs its code."""

    file: str
    label: str
    """The file as the list of equivalents calls it."""
    name: str
    node: ast.FunctionDef | ast.Lambda = field(repr=False)
    owners: tuple[str, ...]
    source: list[bytes] = field(repr=False)

    def compile(self) -> CodeType:
        """The code of the node as it now is."""
        if isinstance(self.node, ast.Lambda):
            return _inner(compile(ast.Expression(self.node), self.file, "eval"))
        bare = ast.FunctionDef(self.node.name, self.node.args, self.node.body, [], self.node.returns, None)
        tree = ast.copy_location(bare, self.node)
        for owner in reversed(self.owners):
            tree = ast.copy_location(ast.ClassDef(owner, [], [], [tree], []), self.node)
        code = compile(ast.Module([tree], []), self.file, "exec")
        for _ in (*self.owners, self.name):
            code = _inner(code)
        return code

    @cached_property
    def live(self) -> list[tuple[FunctionType, int]]:
        """Function objects that run this code or code nested in it, with the index of theirs in `_family`."""
        mine = self.compile()
        found = _functions(self.file)
        bodies = {f.__code__ for f in found if self._is(f, mine)}
        nested = {id(code): i for body in bodies for i, code in enumerate(_family(body))}
        return [(f, nested[id(f.__code__)]) for f in found if id(f.__code__) in nested]

    def _is(self, f: FunctionType, mine: CodeType) -> bool:
        if isinstance(self.node, ast.Lambda):
            return f.__code__ == mine
        return f.__code__.co_qualname == ".".join((*self.owners, self.name))

    def codes(self) -> set[int]:
        """Identities of the code objects that belong to this unit."""
        return {id(code) for f, i in self.live if i == 0 for code in _family(f.__code__)} | {
            id(f.__code__) for f, _ in self.live
        }

    @contextmanager
    def running(self, code: CodeType) -> Iterator[None]:
        """Let every importer's function run another code."""
        before, family = [f.__code__ for f, _ in self.live], _family(code)
        try:
            for f, i in self.live:
                if i < len(family) and family[i].co_freevars == f.__code__.co_freevars:
                    f.__code__ = family[i]
            yield
        finally:
            for (f, _), code in zip(self.live, before, strict=True):
                f.__code__ = code

    def mutants(self) -> list[Mutant]:
        """All mutants of this unit whose code differs from the unit's."""
        parents = {child: node for node in ast.walk(self.node) for child in ast.iter_child_nodes(node)}
        original, seen, found = self.compile(), Counter(), list(self._shifted_masks())
        for parent, name, index, node in list(_places(self.node)):
            for new in _variants(node, parent, name):
                context = _context(node, parents)
                before, old_text = ast.unparse(context), self._text(node)
                ast.fix_missing_locations(ast.copy_location(new, node))
                _put(parent, name, index, new)
                after = ast.unparse(new if context is node else context)
                code = self.compile()
                _put(parent, name, index, node)
                if code == original:
                    continue
                key = f"{self.label} {self.title}: {before} => {after}"
                seen[key] += 1
                key += f"  #{seen[key]}" if seen[key] > 1 else ""
                found.append(Mutant(key, node.lineno, old_text, self._text(node, new), code))
        return found

    def _shifted_masks(self) -> Iterator[Mutant]:
        """The whole function with one of its masks moved by a place."""
        if isinstance(self.node, ast.Lambda):
            return
        body, first = self.node.body, 1 if ast.get_docstring(self.node) else 0
        for argument in (*self.node.args.args, *self.node.args.kwonlyargs):
            if "mask" in argument.arg:
                value = _rolled(ast.Name(argument.arg, ast.Load()))
                shift = ast.copy_location(ast.Assign([ast.Name(argument.arg, ast.Store())], value), body[0])
                body.insert(first, ast.fix_missing_locations(shift))
                code, text = self.compile(), ast.unparse(body[first])
                del body[first]
                line = " ".join(self.source[self.node.lineno - 1].decode().split())
                yield Mutant(f"{self.label} {self.title}: {text}", self.node.lineno, line, f"{line} {text}", code)

    @property
    def title(self) -> str:
        return ".".join((*self.owners, self.name))

    def _text(self, node: ast.AST, new: ast.AST | None = None) -> str:
        """The lines of a node as they stand, or with the text of a new node in its place."""
        first, last = self.source[node.lineno - 1], self.source[node.end_lineno - 1]
        if new is None:
            text = b" ".join(self.source[node.lineno - 1 : node.end_lineno])
        else:
            text = first[: node.col_offset] + ast.unparse(new).encode() + last[node.end_col_offset :]
        return " ".join(text.decode().split())


def units(path: Path, label: str) -> list[Unit]:
    """Every function, method and module-level lambda of a file whose module is loaded, in order."""
    source = path.read_bytes()
    lines, found = source.split(b"\n"), []

    def walk(node: ast.AST, owners: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                found.append(Unit(str(path), label, child.name, child, owners, lines))
            elif isinstance(child, ast.Lambda):
                found.append(Unit(str(path), label, f"lambda:{_names(node, child)}", child, owners, lines))
            else:
                walk(child, (*owners, child.name) if isinstance(child, ast.ClassDef) else owners)

    walk(ast.parse(source), ())
    return found


def _names(parent: ast.AST, child: ast.Lambda) -> str:
    """What a lambda is called where it stands: its key in a dictionary or its keyword."""
    if isinstance(parent, ast.Dict) and child in parent.values:
        return ast.unparse(parent.keys[parent.values.index(child)])
    return getattr(parent, "arg", None) or str(child.lineno)


@cache
def _functions(file: str) -> list[FunctionType]:
    """All function objects made from a file, wherever they are kept."""
    return [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename == file]


def _inner(code: CodeType) -> CodeType:
    return next(c for c in code.co_consts if isinstance(c, CodeType))


def _family(code: CodeType) -> list[CodeType]:
    """A code object and those nested in it, outermost first."""
    return [code, *(c for inner in code.co_consts if isinstance(inner, CodeType) for c in _family(inner))]


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index, node) for every node below that may be mutated."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "pattern"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, NO_MATHEMATICS) or _is_no_choice(child):
                continue
            yield node, name, index, child
            yield from _places(child)


def _is_no_choice(node: ast.AST) -> bool:
    """A docstring, the call that compares shapes, or a keyword about precision."""
    match node:
        case ast.Expr(ast.Constant()):
            return True
        case ast.keyword():
            return node.arg in KEPT_KEYWORDS
        case _:
            return isinstance(node, ast.Call) and _called(node) == "check_shapes"


def _put(parent: ast.AST, name: str, index: int | None, new: ast.AST) -> None:
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new


def _context(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """The largest short piece of one line around a node: an expression, an assignment or what is returned."""
    up = parents.get(node)
    while isinstance(up, (ast.expr, ast.keyword, ast.Slice, ast.Assign, ast.Return)) and not isinstance(up, ast.Lambda):
        if len(ast.unparse(up)) > CONTEXT:
            break
        node, up = up, parents.get(up)
    return node.value if isinstance(node, ast.Return) else node


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _variants(node: ast.AST, parent: ast.AST, name: str) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    match node:
        case ast.BinOp(left, op, right) if not any(map(_is_text, (left, right))):
            if type(op) in OPERATORS:
                yield ast.BinOp(left, OPERATORS[type(op)](), right)
            if isinstance(op, (ast.Div, ast.FloorDiv)):
                yield ast.BinOp(left, op, ast.BinOp(right, ast.Add(), ast.Constant(1)))
        case ast.AugAssign(target, op, value) if type(op) in OPERATORS:
            yield ast.AugAssign(target, OPERATORS[type(op)](), value)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OPERATORS[type(op)](), values)
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                yield ast.Compare(left, [*ops[:i], OPERATORS[type(op)](), *ops[i + 1 :]], comparators)
        case ast.UnaryOp(ast.USub(), ast.Constant(int(value))) if not isinstance(value, bool):
            yield ast.UnaryOp(ast.USub(), ast.Constant(value + 1))  # a dimension or the end of a slice
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield operand
        case ast.Constant(value) if isinstance(value, (bool, int, float)):
            yield from _other_constants(value, parent)
        case ast.Call():
            yield from _other_calls(node)
        case ast.Slice(lower, upper, step):
            for i, bound in enumerate((lower, upper)):
                if bound is not None and not isinstance(bound, (ast.Constant, ast.UnaryOp)):
                    moved = ast.BinOp(bound, ast.Add(), ast.Constant(1))
                    yield ast.Slice(*((moved, upper), (lower, moved))[i], step)
        case ast.Name(id=found, ctx=ast.Load()) if "mask" in found and _meets_values(parent, name):
            yield _rolled(node)
    if name in ("test", "ifs", "guard") and not isinstance(node, (ast.UnaryOp, ast.Compare)):
        yield ast.UnaryOp(ast.Not(), node)
    if name in ("test", "ifs", "guard") and isinstance(node, ast.Compare) and len(node.ops) > 1:
        yield ast.UnaryOp(ast.Not(), node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _meets_values(parent: ast.AST, name: str) -> bool:
    """Whether a mask at this place chooses among values; its own sum or shape does not care for a shift."""
    if isinstance(parent, ast.Call):
        return name == "args" and _called(parent) in ("masked", "where", "masked_fill", "masked_select")
    return name in ("left", "right", "slice") and isinstance(parent, (ast.BinOp, ast.Subscript))


def _rolled(mask: ast.Name) -> ast.Call:
    one_place = [ast.Constant(1), ast.UnaryOp(ast.USub(), ast.Constant(1))]
    return ast.Call(ast.Attribute(mask, "roll", ast.Load()), one_place, [])


def _other_constants(value: bool | int | float, parent: ast.AST) -> Iterator[ast.Constant]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif not isinstance(parent, ast.UnaryOp) or isinstance(value, float):
        yield ast.Constant(value + 1 if abs(value) < 10 else value * 2)


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    called = _called(node)
    method = isinstance(node.func, ast.Attribute)
    subject = node.func.value if method and ast.unparse(node.func.value) not in ("torch", "F", "math") else None
    if called in SWAPPED and (called != "sum" or method):
        other = SWAPPED[called]
        func = ast.Attribute(node.func.value, other, ast.Load()) if method else ast.Name(other, ast.Load())
        yield ast.Call(func, node.args, node.keywords)
    if called in DROPPED and (subject or node.args):
        yield subject or node.args[0]
    if called == "where" and (branches := node.args[-2:]) and len(node.args) >= 2:
        yield ast.Call(node.func, [*node.args[:-2], *branches[::-1]], node.keywords)
    bounds = {"min": "max", "max": "min"}
    if called.startswith(("clamp", "clip")) and any(k.arg in bounds for k in node.keywords):
        yield ast.Call(node.func, node.args, [ast.keyword(bounds.get(k.arg, k.arg), k.value) for k in node.keywords])
    if called in ("clamp", "clip") and subject and len(node.args) == 2:
        yield ast.Call(node.func, node.args[::-1], node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in KEPT_KEYWORDS:
            yield ast.Call(node.func, node.args, [*node.keywords[:i], *node.keywords[i + 1 :]])
