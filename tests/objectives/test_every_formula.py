"""What is true of every formula, whatever it computes: walked over the table in `formulas`.

Gradients are right, or stopped where the docstring says so; values and gradients stay finite far out and under empty
masks; what a mask hides, padding, the order of rows and the cut into micro-batches change nothing.
"""

import importlib
import inspect
import math
import pkgutil
from types import SimpleNamespace

import pytest
import torch
from formula_row import SIZES
from formulas import EXEMPT, TABLE
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain.objectives
from posttrain.errors import PosttrainError
from posttrain.objectives import peers

FEW = settings(max_examples=3, derandomize=True, deadline=None, database=None)
ROWS = range(SIZES["N"])


def every(rows):
    return pytest.mark.parametrize("row", rows, ids=str)


def values(found):
    """The results, without metrics."""
    return {name: x for name, x in found.items() if name[0].isdigit()}


def measured(row, inputs, weights, names=None):
    """All that comes back, without graph, and the slopes of the weighted sum of the results in some inputs."""
    names = row.sloped if names is None else names
    leaves = inputs | {name: inputs[name].detach().requires_grad_() for name in names}
    found = row(leaves)
    parts = [(weights[name].to(x.dtype) * x).sum() for name, x in values(found).items() if x.requires_grad]
    slopes = torch.autograd.grad(sum(parts), [leaves[n] for n in names], materialize_grads=True) if parts else ()
    found = {name: x.detach() for name, x in found.items()}
    return found | {f"slope in {name}": x for name, x in zip(names, slopes, strict=bool(parts))}


def once(row, inputs):
    """What is measured, with weights made at random; the letters of each shape; the weights."""
    found = row(inputs)
    generator = torch.Generator().manual_seed(1)
    weights = {n: 0.5 + torch.rand(x.shape, generator=generator, dtype=torch.double) for n, x in values(found).items()}
    if row.bare:
        weights = {name: weight * inputs["mask"] for name, weight in weights.items()}
    word = {n: "".join(next((w for w, size in SIZES.items() if size == s), "?") for s in x.shape)
            for n, x in found.items()}  # fmt: skip
    word |= {f"slope in {name}": shape for name, shape in row.shapes.items()}
    return measured(row, inputs, weights), word, weights


def along(x, word, letter, move):
    """x with `move(x, dim)` done along the dimension of that letter, if it has one."""
    return move(x, word.index(letter)) if letter in word else x


def rows_of(tensors, word, rows):
    """Some rows of each tensor that has rows."""
    index = torch.tensor(rows)
    return {n: along(x, word[n], "N", lambda x, dim: x.index_select(dim, index)) for n, x in tensors.items()}


def wider(x, dim, left, right, junk):
    """Columns of junk on both sides."""
    sides = [torch.full((*x.shape[:dim], n, *x.shape[dim + 1 :]), junk, dtype=x.dtype) for n in (left, right)]
    return torch.cat([sides[0], x, sides[1]], dim)


def same(found, wanted):
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, rtol=1e-12, atol=1e-12, equal_nan=True, msg=lambda text, name=name: (
            f"{name}: {text}"))  # fmt: skip


def test_every_public_function_is_in_the_table():
    """Of every file, not only those that `__init__` lists."""
    found = set()
    for info in pkgutil.walk_packages(posttrain.objectives.__path__, "posttrain.objectives."):
        module = importlib.import_module(info.name)
        found |= {f for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == info.name
                  and not name.startswith("_") and "._" not in info.name}  # fmt: skip
    listed = [getattr(module, name) for module in (posttrain.objectives, peers) for name in module.__all__]
    found |= {x for x in listed if inspect.isfunction(x)}
    rows = {row.function for row in TABLE}
    assert found == rows | set(EXEMPT), [f.__name__ for f in found ^ (rows | set(EXEMPT))]
    assert not rows & set(EXEMPT)


@every([row for row in TABLE if row.sloped and row.slope is None])
def test_gradcheck(row):
    inputs = row.make()

    def outputs(*leaves):
        found = row(inputs | dict(zip(row.sloped, leaves, strict=True)))
        graph = [name for name, x in found.items() if x.requires_grad]
        assert graph and set(graph) <= set(values(found)), "results have a gradient, metrics have none"
        return tuple(found[name] for name in graph)

    assert torch.autograd.gradcheck(outputs, [inputs[name].requires_grad_() for name in row.sloped])


@every([row for row in TABLE if row.slope])
def test_the_slope_of_a_surrogate(row):
    """Its value means nothing, so its gradient is compared with that of an expression that is its reason."""
    inputs = row.make()
    found, _, weights = once(row, inputs)
    leaves = inputs | {name: inputs[name].clone().requires_grad_() for name in row.sloped}
    true = row.slope(SimpleNamespace(**leaves), SimpleNamespace(**inputs))
    true = true * inputs["mask"] if "mask" in inputs and true.dim() == 2 else true
    wanted = torch.autograd.grad((weights["0"] * true).sum(), [leaves[name] for name in row.sloped])
    same(found, {f"slope in {name}": x for name, x in zip(row.sloped, wanted, strict=True)})


@every([row for row in TABLE if row.stopped])
def test_what_is_stopped_has_no_gradient(row):
    inputs = row.make()
    found = measured(row, inputs, once(row, inputs)[2], names=row.stopped.split())
    assert not any(x.any() for name, x in found.items() if name.startswith("slope"))


def finite(row, inputs, what):
    try:
        found, _, _ = once(row, inputs)
    except PosttrainError:
        return
    for name, x in found.items():
        assert torch.isfinite(x).all(), f"{what}: {name} = {x}"


def far(kind, x, end):
    """Like x, far out: all at one end, or by chance anywhere."""
    choices = torch.tensor(kind.extremes)
    if end is not None:
        return choices[end].expand_as(x)
    return torch.where(torch.rand_like(x) < 0.2, x, choices[torch.randint(0, len(choices), x.shape)])


@every([row for row in TABLE if any(kind.extremes for kind in row.kinds.values()) and not row.infinite])
def test_extremes(row):
    """All inputs at once in float64; in float32, which reaches 3e38, those of one kind at a time."""
    kinds = {kind for kind in row.kinds.values() if kind.extremes}
    for dtype, moved in ((torch.float64, kinds), *((torch.float32, {kind}) for kind in kinds)):
        for seed, end in enumerate((None, None, 0, -1)):
            inputs = row.make(seed)
            inputs |= {n: far(kind, inputs[n], end) for n, kind in row.kinds.items() if kind in moved}
            inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
            finite(row, inputs, f"{dtype}, end {end}")


@every([row for row in TABLE if row.masks and not row.infinite])
def test_empty_masks(row):
    inputs = row.make()
    for rows in (torch.tensor([2]), torch.tensor(ROWS)):
        emptied = {n: along(inputs[n], row.shapes[n], "N", lambda x, dim, rows=rows: x.index_fill(dim, rows, 0))
                   for n in row.masks}  # fmt: skip
        finite(row, inputs | emptied, f"rows {rows.tolist()} are empty")


@every([row for row in TABLE if row.covered])
def test_what_the_mask_hides_is_not_read(row):
    """Bit for bit."""
    inputs = row.make()
    clean, _, weights = once(row, inputs)
    for junk in (7.0,) if row.bare else (math.nan, math.inf, -math.inf, 1e30):
        spoiled = dict(inputs)
        for name in row.covered:
            x = inputs[name]
            shown = inputs["mask"].reshape(*inputs["mask"].shape, *[1] * (x.dim() - inputs["mask"].dim()))
            spoiled[name] = torch.where(shown, x, junk if x.is_floating_point() else 1)
        found = measured(row, spoiled, weights)
        for name, x in clean.items():
            if row.bare and x.shape == inputs["mask"].shape:
                found[name], x = found[name] * inputs["mask"], x * inputs["mask"]
            assert torch.equal(found[name], x), f"{name} with {junk} hidden: {found[name]} instead of {x}"
        for name in set(row.covered) & set(row.sloped):
            assert not found[f"slope in {name}"][~inputs["mask"]].any()


@every([row for row in TABLE if row.pads and any("T" in word for word in row.shapes.values())])
@FEW
@given(st.integers(0, 9), st.integers(0, 2), st.integers(0, 3))
def test_padding_changes_nothing(row, seed, left, right):
    inputs, left = row.make(seed), left if row.pads == "both" else 0
    clean, word, weights = once(row, inputs)
    junk = {name: 0 if row.bare or name in row.exposed.split() or not x.is_floating_point() else math.nan
            for name, x in inputs.items()}  # fmt: skip
    padded = {n: along(x, row.shapes[n], "T", lambda x, dim, n=n: wider(x, dim, left, right, junk[n]))
              for n, x in inputs.items()}  # fmt: skip
    weights = {n: along(x, word[n], "T", lambda x, dim: wider(x, dim, left, right, 0)) for n, x in weights.items()}
    found = measured(row, padded, weights)
    found = {n: along(x, word[n], "T", lambda x, dim: x.narrow(dim, left, SIZES["T"])) for n, x in found.items()}
    same(found, clean)


@every([row for row in TABLE if any("N" in word for word in row.shapes.values())])
@FEW
@given(st.integers(0, 9), st.permutations(ROWS))
def test_the_order_of_rows_moves_results_along(row, seed, order):
    inputs = row.make(seed)
    clean, word, weights = once(row, inputs)
    found = measured(row, rows_of(inputs, row.shapes, order), rows_of(weights, word, order))
    same(found, rows_of(clean, word, order))


@every([row for row in TABLE if row.coupled != "all" and any("N" in word for word in row.shapes.values())])
@FEW
@given(st.integers(0, 9), st.lists(st.integers(0, 2), min_size=len(ROWS), max_size=len(ROWS)))
def test_micro_batches_add_up(row, seed, part):
    """Weights are made once; any rows may be cut apart, or whole groups where a group is its own baseline."""
    inputs = row.make(seed)
    owner = torch.unique(inputs["group"], return_inverse=True)[1].tolist() if row.coupled else list(ROWS)
    clean, word, weights = once(row, inputs)
    added = {name: torch.zeros_like(x) for name, x in clean.items()}
    for rows in ([n for n in ROWS if part[owner[n]] == k] for k in set(part)):
        if not rows:
            continue
        found = measured(row, rows_of(inputs, row.shapes, rows), rows_of(weights, word, rows))
        for name, x in found.items():
            if "N" in word[name]:
                added[name].index_copy_(word[name].index("N"), torch.tensor(rows), x)
            else:
                added[name] += x
    same(added, {name: x for name, x in clean.items() if "_max" not in name})


@every([row for row in TABLE if row.coupled])
def test_what_is_called_coupled_is(row):
    """Some cut through a group, or through the step, changes something."""
    for seed in range(9):
        inputs = row.make(seed)
        clean, word, _ = once(row, inputs)
        parts = ([0, 1, 3], [2, 4, 5])
        found = (row(rows_of(inputs, row.shapes, rows)) for rows in parts)
        wanted = (rows_of(clean, word, rows) for rows in parts)
        if any(not torch.equal(x, b[name]) for a, b in zip(found, wanted, strict=True) for name, x in a.items()):
            return
    raise AssertionError("nothing changes")
