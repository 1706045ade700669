"""The decoder against itself by another path, and against hand-made facts; `tests/oracles` has whole golden models."""

import pytest
import torch

from posttrain.errors import ModelError
from posttrain.models.attention import (
    Cache,
    decode_attention,
    pack,
    pack_lengths,
    packed_attention,
    padded_attention,
    prefill_attention,
    row_lengths,
    similar_lengths,
)
from posttrain.models.decoder import Decoder, ModelConfig, RMSNorm, rope_frequencies


def config(**changes) -> ModelConfig:
    shape = {
        "vocab_size": 41,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    return ModelConfig(**shape | changes)


def random_model(cfg: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    """Every parameter random and of ordinary size, norms and biases too, so that a dropped one is seen."""
    model = Decoder(cfg).to(dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.copy_(noise * 0.2 if p.dim() == 2 else 1 + 0.3 * noise)
    return model


def families():
    yield config(model_type="llama", tie_word_embeddings=False)
    yield config(model_type="llama", attention_bias=True, output_bias=True, mlp_bias=True, num_key_value_heads=1)
    yield config(model_type="qwen2", attention_bias=True, num_key_value_heads=4)
    yield config(model_type="qwen3", head_dim=10)


@pytest.fixture(params=list(families()), ids=lambda c: c.model_type + ("-biased" if c.mlp_bias else ""))
def model(request) -> Decoder:
    return random_model(request.param)


# --- the three attention paths agree -----------------------------------------------------------------------------


def ragged(lengths, vocab=41, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=g) for n in lengths]


def pad(rows, side):
    t = max(map(len, rows))
    tokens, attend = torch.zeros(len(rows), t, dtype=torch.long), torch.zeros(len(rows), t, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(t - len(row), t) if side == "left" else slice(0, len(row))
        tokens[i, where], attend[i, where] = row, True
    return tokens, attend


@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_rows_equal_padded_rows_in_values_and_gradients(model, side):
    rows = ragged([7, 1, 12, 3])
    tokens, attend = pad(rows, side)
    upstream = torch.randn(sum(map(len, rows)), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values, gradients = [], []
    for hidden in (model(tokens, attend)[attend], model.rows(torch.cat(rows), torch.tensor([7, 1, 12, 3]))):
        model.zero_grad()
        (hidden * upstream).sum().backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if n != "lm_head.weight"])
        values.append(hidden.detach())
    torch.testing.assert_close(*values, atol=1e-12, rtol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_rows_of_many_lengths_are_laid_on_grids_of_their_own():
    """Values and gradients of 40 rows, of which no two grids hold the same, equal those of the padded pass."""
    lengths = [int(n) for n in torch.randint(1, 60, (40,), generator=torch.Generator().manual_seed(3))]
    model, rows = random_model(config()), ragged(lengths)
    sets = similar_lengths(lengths)
    assert len(sets) > 3 and sorted(i for part, _ in sets for i in part) == list(range(40))
    assert all(longest == max(lengths[i] for i in part) for part, longest in sets)
    tokens, attend = pad(rows, "right")
    packing = pack(attend)
    upstream = torch.randn(sum(lengths), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = []
    for hidden in (
        model(tokens, attend)[attend],
        model.flat(tokens[packing.own], packing.positions, packed_attention(packing)),
    ):
        model.zero_grad()
        (hidden * upstream).sum().backward()
        seen.append([hidden.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_what_rows_of_a_group_begin_with_is_computed_once():
    """Three answers to one prompt, two to another, a row alone: fewer tokens, the same states and gradients."""
    model = random_model(config())
    long, short, alone = ragged([9, 4, 6], seed=5)
    answers = ragged([3, 8, 1, 2, 5], seed=6)
    answers[3][0] = (answers[4][0] + 1) % 41
    rows = [torch.cat((p, a)) for p, a in zip((long, long, long, short, short), answers, strict=True)] + [alone]
    tokens, attend = pad(rows, "right")
    group = torch.tensor([7, 7, 7, 2, 2, 7 + 1])
    packing = pack(attend, tokens, group)
    assert len(packing.positions) == attend.sum() - 2 * len(long) - len(short)
    upstream = torch.randn(*tokens.shape, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = []
    for hidden in (
        model(tokens, attend),
        model.flat(tokens[packing.own], packing.positions, packed_attention(packing))[packing.place],
    ):
        model.zero_grad()
        (hidden * upstream * attend[..., None]).sum().backward()
        seen.append([hidden.detach() * attend[..., None], *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_rows_without_a_group_share_nothing():
    tokens = torch.ones(3, 5, dtype=torch.long)
    attend = torch.ones_like(tokens, dtype=torch.bool)
    assert pack(attend).own.all() and pack(attend, tokens, torch.arange(3)).own.all()
    assert int(pack(attend, tokens, torch.zeros(3)).own.sum()) == 5  # three times the same row


def test_lengths_of_packed_rows_from_their_positions():
    assert row_lengths(torch.tensor([0, 1, 2, 0, 0, 1])).tolist() == [3, 1, 2]
    assert row_lengths(torch.tensor([0])).tolist() == [1]


def test_norms_through_float32_keep_half_the_digits():
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    norm = RMSNorm(8, 1e-3).double()
    with torch.no_grad():
        norm.weight.mul_(torch.arange(1, 9))
    exact = norm(x)
    torch.testing.assert_close(exact, x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight)
    norm.through_float32 = True
    rounded = norm(x)
    assert rounded.dtype == torch.float64
    assert 1e-9 < ((rounded - exact) / exact).abs().max() < 1e-6
    slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (exact, rounded)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-6)


def test_rounding_as_transformers_reaches_every_norm():
    model = random_model(config(model_type="qwen3", head_dim=10))
    assert model.round_as_transformers() is model
    norms = [m for m in model.modules() if isinstance(m, RMSNorm)]
    assert len(norms) == 3 * 4 + 1 and all(m.through_float32 for m in norms)


def test_without_padding_no_mask_is_needed(model):
    tokens = torch.stack(ragged([9, 9]))
    torch.testing.assert_close(model(tokens), model(tokens, torch.ones(2, 9)), atol=1e-12, rtol=1e-12)


def test_tokens_under_padding_change_nothing(model):
    tokens, attend = pad(ragged([5, 8]), "right")
    want = model(tokens, attend)[attend]
    torch.testing.assert_close(model(tokens.masked_fill(~attend, 40), attend)[attend], want, atol=0, rtol=0)


def test_a_token_sees_the_past_alone(model):
    tokens = torch.stack(ragged([10]))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 41
    one, other = model(tokens), model(changed)
    assert torch.equal(one[:, :6], other[:, :6])
    assert (one[:, 6:] - other[:, 6:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("lengths", [[4], [3, 9, 1, 6]])
def test_cached_decoding_equals_the_full_pass(model, lengths):
    rows, steps = ragged([n + 5 for n in lengths]), 5
    cache = Cache(model, slots=len(rows) + 2, length=16)
    lengths = torch.tensor(lengths)
    packing = pack_lengths(lengths)
    slots = torch.arange(len(rows)).flip(0)  # rows need not fill slots in order
    with torch.inference_mode():
        first = torch.cat([r[:n] for r, n in zip(rows, lengths, strict=True)])
        got = [model.flat(first, packing.positions, prefill_attention(cache, slots, packing))]
        torch.testing.assert_close(got[0], model.rows(first, lengths), atol=1e-12, rtol=1e-12)
        for step in range(steps):
            here = (lengths + step)[slots]
            tokens = torch.stack([rows[s][p] for s, p in zip(slots.tolist(), here.tolist(), strict=True)])
            got.append(model.flat(tokens, here, decode_attention(cache, here)))
        full, ends = model.rows(torch.cat(rows), lengths + steps), (lengths + steps).cumsum(0)
        for step in range(steps):
            want = full[ends - steps + step]
            torch.testing.assert_close(got[1 + step], want[slots], atol=1e-12, rtol=1e-12)


# --- facts -------------------------------------------------------------------------------------------------------


def test_rotation_is_float32_in_a_model_of_any_precision():
    cfg = config(rope_theta=1e6)
    want = rope_frequencies(cfg)[0]
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(Decoder(cfg).to(dtype).rope_freq, want)


def test_attention_depends_on_distance_only():
    """One rotation more for every token changes nothing: scores depend on the difference of positions."""
    model = random_model(config())
    tokens = torch.cat(ragged([8]))
    here = torch.arange(8)
    attention = padded_attention(1, 8, None)
    want = model.flat(tokens, here, attention)
    torch.testing.assert_close(model.flat(tokens, here + 11, attention), want, atol=1e-6, rtol=1e-6)


def test_fresh_weights_are_a_function_of_the_seed():
    one, same, other = (Decoder(config()).initialise(s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["embed_tokens.weight"], other["embed_tokens.weight"])
    assert one["layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(one["norm.weight"], torch.ones(24))


def test_heads_that_cannot_share_are_refused():
    with pytest.raises(ModelError, match="4 query heads cannot share 3 key-value heads"):
        config(num_key_value_heads=3)


def test_unknown_rope_scaling_is_refused_with_the_menu():
    with pytest.raises(ModelError, match='"longrope" is not supported.*default, linear, llama3 and yarn'):
        Decoder(config(rope_scaling={"rope_type": "longrope", "factor": 2.0}))
