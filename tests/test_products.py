"""Products by another library are the same products: values and gradients, to float32 rounding, and torch's setting."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from posttrain import products

SHAPES = [(1, 5, 3), (8, 8, 8), (7, 192, 64), (64, 192, 512), (100, 64, 40), (300, 130, 70), (1365, 40, 24)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_and_its_gradients_are_exact_to_rounding(shape, biased):
    m, k, n = shape
    g = torch.Generator().manual_seed(m)
    given = [torch.randn(s, generator=g, dtype=torch.float64) for s in ((m, k), (n, k), (n,), (m, n))]

    def both_ways(of, dtype):
        x, w, b = (v.to(dtype, copy=True).requires_grad_() for v in given[:3])
        y = of(x, w, b if biased else None)
        y.backward(given[3].to(dtype))
        return [t.detach().double() for t in (y, x.grad, w.grad, *([b.grad] if biased else []))]

    exact = both_ways(F.linear, torch.float64)
    for ours, plain, true in zip(both_ways(products.linear, torch.float32), both_ways(F.linear, torch.float32), exact,
                                 strict=True):  # fmt: skip
        slack = 1e-6 * true.abs().max()  # where torch's own happens to be exact
        assert (ours - true).abs().max() <= 4 * (plain - true).abs().max() + slack


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 9, 3)])
def test_any_number_of_dimensions(shape):
    layer, x = products.Linear(3, 4), torch.randn(shape)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torch_s_own(dtype):
    x, w = torch.randn(20, 30).to(dtype), torch.randn(40, 30).to(dtype)
    assert torch.equal(products.linear(x, w), F.linear(x, w))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(products.linear(x.float(), w.float()).to(dtype), F.linear(x.float(), w.float()).to(dtype))
    assert torch.equal(products.mm(x, w.t()), torch.mm(x, w.t()))
    with pytest.raises(RuntimeError):
        products.linear(x, w.float())


@pytest.mark.parametrize("m", [3, 16, 63, 100, 1024, 1365])
def test_what_is_added_to_stays_and_wider_sums_are_of_the_wider_type(m):
    a, b, start = torch.randn(m, 24), torch.randn(m, 32), torch.randn(24, 32)
    exact = start.double() + a.double().t() @ b.double()
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5 * m**0.5)
    close(products.mm_over_rows(a, b, total=start.clone()).double(), exact)
    close(products.mm_over_rows(a, b).double(), exact - start.double())
    kept = start.clone()
    assert products.mm_over_rows(a.bfloat16(), b.bfloat16(), total=kept) is kept and kept.dtype == torch.float32
    torch.testing.assert_close(kept.double(), exact, rtol=0, atol=0.1 * m**0.5)
    wide = products.mm_over_rows(a.bfloat16(), b.bfloat16(), dtype=torch.float32)
    torch.testing.assert_close(wide, kept - start, rtol=0, atol=1e-5 * m**0.5)
    total = torch.randn(m, 32)
    exact = total.double() + a.double() @ start.double()
    close(products.add_mm(total, a, start).double(), exact)


def test_blocks_cover_all_rows_and_have_few_sizes():
    """Every size of a product costs memory that oneDNN keeps for ever."""
    sizes = set()
    for rows in range(16, 16385):
        *blocks, rest = products._blocks(rows)
        stops = [0, *(b.stop for b in blocks), rest.stop]
        assert [b.start for b in (*blocks, rest)] == stops[:-1] and stops[-1] == rows
        assert rest.stop - rest.start < (8 if rows <= 128 else 16)
        sizes |= {b.stop - b.start for b in blocks}
    assert len(sizes) <= 29


def test_it_writes_where_it_is_told_and_leaves_the_setting():
    before = getattr(torch.backends.mkldnn, "matmul", None) and torch.backends.mkldnn.matmul.fp32_precision
    a, out = torch.randn(16, 16), torch.empty(32, 16)
    products.mm(a, torch.eye(16), out=out[16:])
    assert torch.equal(out[16:], a)
    with pytest.raises(RuntimeError):
        products.mm(a, torch.eye(17))
    after = getattr(torch.backends.mkldnn, "matmul", None) and torch.backends.mkldnn.matmul.fp32_precision
    assert after == before


@pytest.mark.parametrize("found", [{}, {"cpu_name": "Intel", "avx512_vp2intersect": True},
                                   {"cpu_name": "AMD", "avx512_vp2intersect": True, "amx_tile": True},
                                   {"cpu_name": "AMD", "avx512_vp2intersect": False}])  # fmt: skip
def test_processors_on_which_it_would_round_or_gain_nothing_keep_torch_s_choice(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    products._usual.cache_clear()
    try:
        assert products.library() in ("MKL", "BLAS")
    finally:
        products._usual.cache_clear()


def test_layers_of_the_decoder_are_torch_s_in_form():
    layer = products.Linear(3, 4, bias=False)
    assert isinstance(layer, torch.nn.Linear) and list(layer.state_dict()) == ["weight"]
