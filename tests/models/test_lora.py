"""Low-rank adapters: the formula by hand, exactly the base at the start and with adapters off, and what is refused."""

import math

import pytest
import torch
from torch import nn

from posttrain.errors import ConfigError, ModelError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.heads import ScalarModel
from posttrain.models.load import frozen_copy, frozen_start
from posttrain.models.lora import (
    Lora,
    LoraLinear,
    adapted,
    adapter_of,
    add_adapters,
    alike,
    movable_weights,
    trained_rows,
    without_adapters,
)
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def decoder(seed: int = 0, **changes) -> Decoder:
    shape = {
        "vocab_size": 37, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return Decoder(ModelConfig(**shape | changes)).initialise(seed)


def awake(model: nn.Module, seed: int = 5) -> nn.Module:
    """The model with adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted(model):
        with torch.no_grad():
            layer.lora_B.normal_(0, 0.1, generator=generator)
    for _, table in trained_rows(model):
        with torch.no_grad():
            table.tokens.normal_(0, 0.2, generator=generator)
    return model


RANK_4 = Lora(rank=4)


MARKS = (3, 5, 6, 36)
"""Special tokens of the models below; the last is known to them, the others are as initialised: all alike."""


def newborn(seed: int = 0, **changes) -> Decoder:
    """A model that has never seen three of its special tokens."""
    model = decoder(seed, **changes)
    for table in (model.embed_tokens, model.lm_head):
        if table is not None:
            table.weight.data[list(MARKS[:3])] = table.weight.data[:10].mean(0)
    return model


def with_rows(seed: int = 0, **changes) -> Decoder:
    return add_adapters(newborn(seed, **changes), RANK_4, base="somewhere", seed=seed, marks=MARKS)


def with_lora(seed: int = 0, lora: Lora = RANK_4, **changes) -> Decoder:
    return add_adapters(decoder(seed, **changes), lora, base="somewhere", seed=seed)


def tokens() -> torch.Tensor:
    return torch.randint(37, (3, 20), generator=torch.Generator().manual_seed(1))


# --- the formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rslora, scale", [(False, 6 / 2), (True, 6 / math.sqrt(2))])
def test_the_formula_by_hand(rslora, scale, bias):
    torch.manual_seed(0)
    linear = nn.Linear(3, 4, bias=bias).double()
    layer = LoraLinear(linear, Lora(rank=2, alpha=6, rslora=rslora), seed=1)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 3, dtype=torch.float64)
    w, a, b = (t.tolist() for t in (layer.weight, layer.lora_A, layer.lora_B))
    for n in range(5):
        for i in range(4):
            y = layer.bias[i].item() if bias else 0.0
            for j in range(3):
                y += (w[i][j] + scale * sum(b[i][k] * a[k][j] for k in range(2))) * x[n, j].item()
            assert layer(x)[n, i].item() == pytest.approx(y, abs=1e-12)
    plain = nn.Linear(3, 4, bias=bias).double()
    plain.weight.data, plain.bias = layer.merged().detach(), layer.bias
    for shape in ((3,), (1, 3), (2, 5, 3), (0, 3)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(layer(x), plain(x), atol=1e-12, rtol=0)
    turned = torch.randn(3, 5, 2, dtype=torch.float64).transpose(0, 2)
    torch.testing.assert_close(layer(turned), plain(turned), atol=1e-12, rtol=0)


def test_products_of_16_bits():
    """Where the products of a linear layer are made in bfloat16, those of its adapter are as well."""
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(8, 4), Lora(rank=2), seed=1)
    nn.init.normal_(layer.lora_B, std=0.1)
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.sum().backward()
    assert y.dtype is torch.bfloat16 and layer.lora_A.grad.dtype is torch.float32
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.05)  # 8 bits, twice


def test_gradients():
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(3, 4).double().requires_grad_(False), Lora(rank=2), seed=1)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def at(x, a, b):
        return torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x,))

    assert torch.autograd.gradcheck(at, (x, layer.lora_A, layer.lora_B))


def test_training_begins_at_the_base_with_a_slope_in_b_alone():
    base, model = decoder(), with_lora()
    assert torch.equal(model(tokens()), base(tokens()))
    model(tokens()).square().sum().backward()
    for name, p in model.named_parameters():
        match name.rpartition(".")[2]:
            case "lora_A":
                assert not p.grad.any(), name
                bound = 1 / math.sqrt(p.shape[1])
                assert 0.8 * bound < p.abs().max() <= bound and abs(p.mean()) < bound / 4
            case "lora_B":
                assert p.grad.abs().max() > 0 and not p.any(), name  # in the first layer too, behind a frozen embedding
            case _:
                assert p.grad is None and not p.requires_grad, name


def test_a_is_drawn_by_seed_and_place():
    one, same, other = (dict(adapted(with_lora(seed))) for seed in (0, 0, 1))
    for name in one:
        assert torch.equal(one[name].lora_A, same[name].lora_A)
        assert not torch.equal(one[name].lora_A, other[name].lora_A)
    layers = [one[f"layers.{i}.self_attn.{p}_proj"].lora_A for i in (0, 1) for p in ("k", "v")]
    assert all(not torch.equal(x, y) for i, x in enumerate(layers) for y in layers[:i])


# --- which layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_all_linear_is_every_projection_and_never_the_head(tied):
    model = with_lora(tie_word_embeddings=tied)
    names = [name for name, _ in adapted(model)]
    assert len(names) == 14 and {n.rpartition(".")[2] for n in names} == set(PROJECTIONS)


def test_named_targets():
    model = with_lora(lora=Lora(rank=2, targets=("q_proj", "layers.1.mlp.down_proj")))
    found = [name for name, _ in adapted(model)]
    assert found == ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    ("target", "said"),
    [("q_prj", 'names no linear layer .* Did you mean "q_proj"'), ("lm_head", "is the head"), ("proj", "names no")],
)
def test_a_target_that_means_nothing_is_refused(target, said):
    with pytest.raises(ConfigError, match=f'lora.targets: "{target}" {said}'):
        with_lora(lora=Lora(rank=2, targets=("q_proj", target)), tie_word_embeddings=False)


def test_any_module_with_linear_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))
    add_adapters(model, Lora(rank=2), base="", seed=0)
    assert [name for name, _ in adapted(model)] == ["0", "2.0"]


def test_rank_0_leaves_the_model_as_it_is():
    model = decoder()
    assert add_adapters(model, Lora(), base="", seed=0) is model and adapter_of(model) is None
    assert all(p.requires_grad for p in model.parameters()) and not list(adapted(model))


def test_a_model_without_values_gets_adapters_as_well():
    """To foresee what a run needs, without weights."""
    with torch.device("meta"):
        model = Decoder(decoder().cfg)
    add_adapters(model, RANK_4, base="", seed=0, marks=MARKS)
    want = {name: p.shape for name, p in with_lora().named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == want
    assert all(p.is_meta for p in model.parameters())


def test_adapters_on_adapters_are_refused():
    with pytest.raises(ModelError, match="has adapters already"):
        add_adapters(with_lora(), Lora(rank=2), base="", seed=0)


def test_a_scalar_head_is_trained_beside():
    model = add_adapters(ScalarModel(decoder()), Lora(rank=2), base="", seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert trained == ["score.weight"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": -1}, "rank = -1 cannot be negative"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": math.inf}, "alpha = inf"),
        ({"targets": ()}, "targets is empty"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        Lora(**values)


# --- tokens that the model has never seen --------------------------------------------------------------------------


def test_rows_that_no_training_has_touched():
    w = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert alike(w, [1, 4, 7]) == [] and alike(w, []) == [] and alike(w, [2]) == []
    w[4], w[7], w[8] = w[1] * (1 + 1e-5), 0.0, w[1] * 1.1
    assert alike(w, [7, 4, 1, 8]) == [1, 4, 7]
    assert alike(w, [4, 8]) == []  # of the tokens asked about alone
    assert alike(w.to("meta"), [7, 4, 1, 8]) == []


@pytest.mark.parametrize("tied", [True, False])
def test_their_rows_are_trained_and_no_others(tied):
    """As if the whole embedding (and head) were trained, with the gradient of all other rows struck out."""
    model = awake(with_rows(tie_word_embeddings=tied).double())
    names = [name for name, _ in trained_rows(model)]
    assert names == (["embed_tokens"] if tied else ["embed_tokens", "lm_head"])
    plain = awake(add_adapters(newborn(tie_word_embeddings=tied).double(), RANK_4, base="", seed=0))
    for name, table in trained_rows(model):
        assert table.ids.tolist() == [3, 5, 6]
        other = plain.get_submodule(name).weight
        with torch.no_grad():
            other[table.ids] = table.tokens
        other.requires_grad_()
        assert torch.equal(table.weight, other)
    text = tokens()
    text[0, :6] = torch.tensor([3, 5, 36, 6, 6, 0])
    slope = torch.randn(3, 20, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for m in (model, plain):
        (m.logits(m(text)) * slope).sum().backward()
    assert torch.equal(model(text), plain(text))
    for name, table in trained_rows(model):
        want = plain.get_submodule(name).weight.grad[table.ids]
        torch.testing.assert_close(table.tokens.grad, want, atol=1e-12, rtol=1e-12)
        assert not table.frozen.requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_off_they_are_the_base_as_well(tied):
    base, model = newborn(tie_word_embeddings=tied), with_rows(tie_word_embeddings=tied)
    logits = base.logits(base(tokens()))
    assert torch.equal(model.logits(model(tokens())), logits)
    reference = frozen_start(awake(model))
    assert torch.equal(reference.logits(reference(tokens())), logits)
    assert not torch.allclose(model.logits(model(tokens())), logits)
    shared = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in shared for p in reference.parameters())
    assert [n for n, _ in reference.named_parameters()] == [n for n, _ in base.named_parameters()]
    moved = movable_weights(model)
    assert ("lm_head.weight" in moved) != tied and moved["embed_tokens.weight"].shape == (37, 24)


def test_rows_are_trained_only_where_it_is_needed_and_wanted():
    assert not list(trained_rows(add_adapters(decoder(), RANK_4, base="", seed=0, marks=MARKS)))
    off = Lora(rank=4, tokens="none")
    assert not list(trained_rows(add_adapters(newborn(), off, base="", seed=0, marks=MARKS)))
    head = decoder(tie_word_embeddings=False)
    head.lm_head.weight.data[3] = 0.0  # tokens that can be read and not written
    assert [n for n, _ in trained_rows(add_adapters(head, RANK_4, base="", seed=0, marks=MARKS))] == [
        "embed_tokens",
        "lm_head",
    ]


# --- the reference, and the sampler --------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_without_adapters_it_is_the_base_bit_for_bit_and_costs_no_memory(bias):
    base, model = decoder(attention_bias=bias), awake(with_lora(attention_bias=bias))
    reference = frozen_start(model)
    assert not torch.allclose(model(tokens()), base(tokens()))
    assert torch.equal(reference(tokens()), base(tokens()))
    assert adapter_of(reference) is None and adapter_of(model) is not None and not list(adapted(reference))
    lengths = torch.full((3,), 20)
    assert torch.equal(reference.rows(tokens().flatten(), lengths), base.rows(tokens().flatten(), lengths))

    def memory(*models):
        return sum({p.data_ptr(): p.nbytes for m in models for p in m.parameters()}.values())

    adapters = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert memory(model, reference) == memory(model) == memory(base) + adapters
    assert memory(base, frozen_start(base)) == 2 * memory(base)
    assert [n for n, _ in reference.named_parameters()] == [n for n, _ in base.named_parameters()]


def test_a_copy_of_an_adapted_model_keeps_its_adapters():
    model = awake(with_lora())
    assert torch.equal(frozen_copy(model)(tokens()), model(tokens()))


def test_what_training_may_move():
    model = with_lora(lora=Lora(rank=2, targets=("q_proj",)))
    assert [n.removesuffix(".weight") for n in movable_weights(model)] == [name for name, _ in adapted(model)]
    assert movable_weights(decoder()).keys() == dict(decoder().named_parameters()).keys()
    before = dict(movable_weights(model))
    after = movable_weights(awake(model))
    assert all(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("make", [with_lora, with_rows])
def test_the_sampler_samples_with_the_adapters_on(make):
    """In float64 it writes what a model with merged weights writes, which is not what the base writes."""
    model = awake(make().double())
    merged, base = without_adapters(frozen_copy(model)), without_adapters(model)
    for name, weight in movable_weights(model).items():
        merged.get_parameter(name).copy_(weight)
    prompts, params = [[1, 2, 3], [4, 5], [4, 5]], SamplingParams(max_tokens=12)
    said = [[c.tokens for c in TorchSampler(m).generate(prompts, params, [0, 1, 2])] for m in (model, merged, base)]
    assert said[0] == said[1] != said[2]
