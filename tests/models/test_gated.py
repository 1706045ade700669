"""The MLP's second half makes its input again: values and gradients are those of plain torch."""

import pytest
import torch
import torch.nn.functional as F

from posttrain.models.decoder import _Gate, _GatedLinear


def plainly(gate, up, weight, bias):
    return F.linear(F.silu(gate) * up, weight, bias)


def with_two_steps(gate, up, weight, bias):
    return F.linear(_Gate.apply(gate, up), weight, bias)


@pytest.mark.parametrize("of", [_GatedLinear.apply, with_two_steps])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_value_and_gradients_are_plain_torch_s(of, biased, frozen):
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(s, generator=g, dtype=torch.float64) for s in ((9, 12), (9, 12), (5, 12), (5,), (9, 5))]

    def both_ways(of):
        gate, up, weight, bias = (x.clone().requires_grad_() for x in given[:4])
        weight.requires_grad_(not frozen)
        y = of(gate, up, weight, bias if biased else None)
        y.backward(given[4])
        return [x for x in (y.detach(), gate.grad, up.grad, weight.grad, bias.grad) if x is not None]

    ours, plain = both_ways(of), both_ways(plainly)
    assert len(ours) == len(plain) == 3 + (not frozen) + biased
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-14, rtol=1e-13)


def test_products_of_16_bits_give_gradients_of_the_weight_s_type():
    gate, up = (torch.randn(9, 12, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, 12, requires_grad=True)
    _GatedLinear.apply(gate, up, weight, None).sum().backward()
    assert gate.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
