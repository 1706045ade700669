"""Decoding with its own layout of the weights, against the decoder's modules."""

import pytest
import torch
from test_decoder import config, families, ragged, random_model

from posttrain.models.attention import Cache, decode_attention, pack_lengths, prefill_attention
from posttrain.models.decoding import Decoding
from posttrain.models.lora import Lora, adapted, add_adapters


def decoded(model, next_logits, steps=5, lengths=(3, 9, 1, 6)):
    """Logits of `steps` tokens after rows of these lengths, by a function of (tokens, positions, cache)."""
    rows, lengths = ragged([n + steps for n in lengths]), torch.tensor(lengths)
    cache, packing = Cache(model, slots=len(rows) + 2, length=16), pack_lengths(lengths)
    slots = torch.arange(len(rows))
    first = torch.cat([r[:n] for r, n in zip(rows, lengths, strict=True)])
    with torch.inference_mode():
        model.flat(first, packing.positions, prefill_attention(cache, slots, packing))
        return torch.stack([
            next_logits(torch.stack([r[n + i] for r, n in zip(rows, lengths, strict=True)]), lengths + i, cache)
            for i in range(steps)
        ])  # fmt: skip


def plainly(model):
    return lambda tokens, here, cache: model.logits(model.flat(tokens, here, decode_attention(cache, here)))


def by_decoding(model, dtype=None):
    decoding = Decoding(model, dtype)
    decoding.refresh()
    return decoding


@pytest.mark.parametrize("cfg", list(families()), ids=lambda c: c.model_type)
@pytest.mark.parametrize("lengths", [(3, 9, 1, 6), (4, 4), (7,)])
def test_equals_the_modules(cfg, lengths):
    model = random_model(cfg)
    want = decoded(model, plainly(model), lengths=lengths)
    torch.testing.assert_close(decoded(model, by_decoding(model), lengths=lengths), want, atol=1e-10, rtol=1e-10)


def test_equals_the_modules_with_scaled_rotations():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model = random_model(config(rope_scaling=scaling))
    torch.testing.assert_close(decoded(model, by_decoding(model)), decoded(model, plainly(model)), atol=1e-6, rtol=1e-6)


def test_adapters_are_merged_in():
    model = add_adapters(random_model(config()), Lora(rank=4), base="here", seed=0)
    for _, layer in adapted(model):
        torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(decoded(model, by_decoding(model)), decoded(model, plainly(model)), atol=1e-9, rtol=1e-9)


def test_every_change_of_a_weight_is_seen_and_nothing_is_copied_without_one():
    model = random_model(config())
    decoding = by_decoding(model)
    for _, p in model.named_parameters():
        held = decoding._layers
        decoding.refresh()
        assert decoding._layers is held
        with torch.no_grad():
            p.add_(0.1)
        decoding.refresh()
        torch.testing.assert_close(decoded(model, decoding), decoded(model, plainly(model)), atol=1e-9, rtol=1e-9)


def test_an_optimizer_step_is_seen():
    model = random_model(config(), dtype=torch.float32)
    decoding = by_decoding(model)
    before = decoded(model, decoding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.ones(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    decoding.refresh()
    after = decoded(model, decoding)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, decoded(model, plainly(model)), atol=1e-4, rtol=1e-4)


def test_bfloat16_products_are_near():
    model = random_model(config(), dtype=torch.float32)
    want = decoded(model, plainly(model)).log_softmax(-1)
    got = decoded(model, by_decoding(model, torch.bfloat16)).float().log_softmax(-1)
    assert 0 < (got - want).abs().mean() < 0.05
