"""The decoder against golden fixtures, against itself by another path, and against hand-made facts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.errors import ModelError
from posttrain.models import decoder
from posttrain.models.decoder import Cache, Decoder, ModelConfig, decode_attention, prefill_attention, rope_frequencies

ORACLES = Path(__file__).parents[2] / ".." / "shared" / "oracles"
FAMILIES = ("llama", "qwen2", "qwen3")
needs_oracles = pytest.mark.skipif(
    not (ORACLES / "models").is_dir(), reason="../shared/oracles/models is absent: golden fixtures cannot be read"
)


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


# --- golden fixtures ---------------------------------------------------------------------------------------------


def float32_norm(self, x):
    """The fixtures' library rounds every norm to float32 even in a float64 model; everything else is float64."""
    y = x.float()
    return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


@pytest.fixture(params=FAMILIES)
def golden(request, monkeypatch):
    monkeypatch.setattr(decoder.RMSNorm, "forward", float32_norm)
    case = next(
        c
        for c in json.loads((ORACLES / "manifest.json").read_text())["cases"]
        if c["id"] == f"models__{request.param}__0"
    )
    arrays = {k: torch.tensor(v) for k, v in np.load(ORACLES / case["file"]).items()}
    h = case["hyperparameters"]
    keys = set(ModelConfig.__dataclass_fields__)
    cfg = ModelConfig(
        model_type=request.param,
        attention_bias=request.param == "qwen2",
        **{"head_dim": h["hidden_size"] // h["num_attention_heads"]} | {k: v for k, v in h.items() if k in keys},
    )
    model = Decoder(cfg).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(arrays["in__w__" + ("" if name.startswith("lm_head") else "model.") + name])
    return model, arrays


@needs_oracles
@pytest.mark.parametrize("side", ["left", "right"])
def test_golden_logits_under_padding(golden, side):
    model, a = golden
    attend = a[f"in__mask_{side}"].bool()
    logits = model.logits(model(a["in__ids"], attend))
    torch.testing.assert_close(logits[attend], a[f"out__logits_{side}"][attend], atol=1e-9, rtol=1e-9)


@needs_oracles
def test_golden_packed_rows(golden):
    model, a = golden
    starts = (a["in__packed_positions"][0] == 0).nonzero()[:, 0].tolist() + [a["in__packed_ids"].shape[1]]
    lengths = torch.tensor(starts).diff()
    logits = model.logits(model.rows(a["in__packed_ids"][0], lengths))
    torch.testing.assert_close(logits, a["out__packed_logits"][0], atol=1e-9, rtol=1e-9)


@needs_oracles
def test_golden_loss_and_gradient(golden):
    model, a = golden
    ids, attend = a["in__ids"], a["in__mask_right"].bool()
    logp = model.logits(model(ids, attend)).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    loss = -logp[attend[:, 1:]].mean()
    loss.backward()
    torch.testing.assert_close(loss, a["out__loss"], atol=1e-9, rtol=1e-9)
    for name, p in model.named_parameters():
        want = a["out__g__" + ("" if name.startswith("lm_head") else "model.") + name]
        torch.testing.assert_close(p.grad, want, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@needs_oracles
def test_golden_greedy_continuation(golden):
    model, a = golden
    for ids, attend, want in zip(a["in__ids"], a["in__mask_left"].bool(), a["out__greedy"], strict=True):
        tokens = ids[attend][None]
        for _ in want:
            tokens = torch.cat((tokens, model.logits(model(tokens)[:, -1]).argmax(-1, keepdim=True)), 1)
        assert tokens[0, -len(want) :].tolist() == want.tolist()


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
    positions = torch.cat([torch.arange(n) for n in lengths])
    slots = torch.arange(len(rows)).flip(0)  # rows need not fill slots in order
    with torch.inference_mode():
        first = torch.cat([r[:n] for r, n in zip(rows, lengths, strict=True)])
        got = [model.flat(first, positions, prefill_attention(cache, slots, lengths, positions))]
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
    attention = decoder.padded_attention(1, 8, None)
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
