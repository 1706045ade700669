"""Backward passes that make values again: values and gradients are those of plain torch."""

import pytest
import torch
import torch.nn.functional as F

from posttrain.models.backward import Gate, GatedLinear, Normalise, NormalisedLinears


def numbers(*shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def same(ours, plain, given, slopes):
    """Hold results and gradients of two functions of the same tensors against each other; None in both is alike."""

    def both_ways(of):
        leaves = [None if x is None else x.detach().clone().requires_grad_(x.requires_grad) for x in given]
        found = of(*leaves)
        sum((y * slope).sum() for y, slope in zip(found, slopes, strict=True)).backward()
        return [*found, *(None if x is None else x.grad for x in leaves)]

    for a, b in zip(both_ways(ours), both_ways(plain), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("in_two", [False, True])
def test_a_gated_product(biased, frozen, in_two):
    gate, up, weight, bias, slope = numbers((9, 12), (9, 12), (5, 12), (5,), (9, 5))
    given = [gate.requires_grad_(), up.requires_grad_(), weight.requires_grad_(not frozen)]
    given.append(bias.requires_grad_() if biased else None)

    def ours(gate, up, weight, bias):
        if in_two:
            return [F.linear(Gate.apply(gate, up), weight, bias)]
        return [GatedLinear.apply(gate, up, weight, bias)]

    same(ours, lambda gate, up, weight, bias: [F.linear(F.silu(gate) * up, weight, bias)], given, [slope])


@pytest.mark.parametrize("shape", [(9, 12), (3, 2, 12)])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_norm(shape, frozen):
    x, weight, slope = numbers(shape, (12,), shape)
    given = [x.requires_grad_(), weight.requires_grad_(not frozen)]
    same(
        lambda x, weight: [Normalise.apply(x, weight, 1e-3)],
        lambda x, weight: [F.rms_norm(x, (12,), weight, 1e-3)],
        given,
        [slope],
    )


@pytest.mark.parametrize("trained", ["all", "matrices", "norm", "one matrix", "biases", "x"])
def test_products_of_a_norm(trained):
    x, weight, first, bias, second, third, other, *slopes = numbers(
        (9, 12), (12,), (5, 12), (5,), (7, 12), (3, 12), (3,), (9, 5), (9, 7), (9, 3)
    )
    chosen = {
        "all": (x, weight, first, bias, second, third, other), "matrices": (first, second, third), "norm": (weight,),
        "one matrix": (second,), "biases": (bias, other), "x": (x,),
    }[trained]  # fmt: skip
    for leaf in chosen:
        leaf.requires_grad_()

    def ours(x, weight, first, bias, second, third, other):
        return NormalisedLinears.apply(x, weight, 1e-3, x.dtype, first, bias, second, None, third, other)

    def plain(x, weight, first, bias, second, third, other):
        y = F.rms_norm(x, (12,), weight, 1e-3)
        return F.linear(y, first, bias), F.linear(y, second), F.linear(y, third, other)

    same(ours, plain, [x, weight, first, bias, second, third, other], slopes)


def test_a_product_that_nobody_uses_has_no_gradient_to_add():
    x, weight, first, second = (t.requires_grad_() for t in numbers((9, 12), (12,), (5, 12), (7, 12)))
    y, _ = NormalisedLinears.apply(x, weight, 1e-3, x.dtype, first, None, second, None)
    y.sum().backward()
    found = x.grad.clone()
    x.grad = None
    F.linear(F.rms_norm(x, (12,), weight, 1e-3), first).sum().backward()
    torch.testing.assert_close(found, x.grad, atol=1e-14, rtol=1e-12)
    assert second.grad is None or not second.grad.any()


def test_products_of_16_bits_give_gradients_of_the_weight_s_type():
    gate, up = (torch.randn(9, 12, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    weight, x, norm = (torch.randn(s, requires_grad=True) for s in ((5, 12), (9, 12), (12,)))
    GatedLinear.apply(gate, up, weight, None).sum().backward()
    assert gate.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    weight.grad = None
    (y,) = NormalisedLinears.apply(x, norm, 1e-6, torch.bfloat16, weight, None)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == norm.grad.dtype == weight.grad.dtype == torch.float32
