"""bfloat16 products and recomputation: how far the first may lie from float32, and that the second changes nothing."""

import math
from dataclasses import replace

import pytest
import torch
from test_learner import CASES, CFG, batch, policy

from posttrain.models.decoder import Decoder
from posttrain.models.heads import ScalarModel
from posttrain.train.learner import Learner, Optim, Part, forward

ROUNDING = 2.0**-8
"""Of one bfloat16 number, relative."""


def gradient(part: Part, optim: Optim):
    """The gradient of one step, by the learner's own pass."""
    model = Decoder(CFG).initialise(3)
    model = ScalarModel(model) if part.needs == ("values",) else model
    if part.needs == ("values",):
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(4))
    learner = Learner(model, replace(optim, lr=1e-9), 10)
    learner.step(part)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("micro_tokens", [None, 24])
@pytest.mark.parametrize("name", CASES)
def test_recomputing_gives_the_same_gradient(name, micro_tokens):
    kept = gradient(CASES[name](), Optim(micro_tokens=micro_tokens))
    again = gradient(CASES[name](), Optim(micro_tokens=micro_tokens, recompute=True))
    assert kept.norm() > 0 and torch.equal(kept, again)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_bfloat16_products_points_the_same_way(name):
    exact, rounded = (gradient(CASES[name](), Optim(precision=p)) for p in ("float32", "bfloat16"))
    angle = torch.nn.functional.cosine_similarity(exact, rounded, dim=0)
    assert not torch.equal(exact, rounded)
    assert angle > 1 - 4 * ROUNDING and abs(math.log(rounded.norm() / exact.norm())) < 8 * ROUNDING


def test_log_probabilities_of_bfloat16_products_are_near_and_float32():
    model, found = Decoder(CFG).initialise(3), {}
    for precision in ("float32", "bfloat16"):
        learner = Learner(model, Optim(precision=precision), 1)
        found[precision] = learner.outputs(batch()).logp
    gap = (found["float32"] - found["bfloat16"]).abs()
    assert found["bfloat16"].dtype == torch.float32 and 0 < gap.mean() < 4 * ROUNDING


def test_recomputing_keeps_less():
    def kept(recompute: bool) -> int:
        model = Decoder(replace(CFG, num_hidden_layers=6)).initialise(3)
        Learner(model, Optim(recompute=recompute), 1)
        seen = {}

        def hold(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            out = forward(model, batch(), ("logp",))
        assert out.logp.requires_grad
        return sum(seen.values()) - sum(p.nbytes for p in model.parameters())

    assert kept(True) < kept(False) / 4


def test_weights_and_moments_stay_float32():
    learner = Learner(Decoder(CFG).initialise(3), Optim(precision="bfloat16"), 1)
    learner.step(Part(batch(), policy))
    moments = [v for s in learner.optimizer.state.values() for v in s.values()]
    assert {x.dtype for x in (*learner.model.parameters(), *moments)} == {torch.float32}
