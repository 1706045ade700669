"""The sampler against the model's plain forward pass, against itself in other company, and against exact laws."""

import dataclasses
import math
import random
from types import SimpleNamespace

import pytest
import torch

from posttrain.errors import ConfigError, DataError, InvariantError, NonFiniteError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.records import Stop
from posttrain.sample import torch as sampling
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler, choose, gap, truncate

VOCAB, CONTEXT = 29, 48


def random_model(dtype=torch.float64, seed: int = 0) -> Decoder:
    cfg = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
    )
    model = Decoder(cfg).to(dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.4 if p.dim() == 2 else 1.0))
    return model


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_model()


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB) for _ in range(draw.randint(1, 12))] for _ in range(n)]


def full_logp(model, prompt, completion, temperature):
    """log softmax(logits / T) of the completion's tokens by the padded path, one row, no cache."""
    tokens = torch.tensor([[*prompt, *completion.tokens]])
    with torch.no_grad():
        logits = model.logits(model(tokens))[0, len(prompt) - 1 : -1]
    logp = (logits / (temperature or 1.0)).log_softmax(-1)
    return logp.gather(-1, torch.tensor(completion.tokens)[:, None])[:, 0]


# --- what is reported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_log_probabilities_are_the_models_own(temperature, dtype, tolerance):
    model = random_model(dtype)
    params = SamplingParams(temperature=temperature, max_tokens=20, stop_ids=(3, 4))
    asked = prompts(23)
    got = TorchSampler(model, slots=5).generate(asked, params, range(23))
    for prompt, completion in zip(asked, got, strict=True):
        want = full_logp(model, prompt, completion, temperature)
        torch.testing.assert_close(torch.tensor(completion.logp, dtype=dtype), want, atol=tolerance, rtol=0)
        assert completion.kept == (0.0,) * len(completion.tokens)


def test_greedy_takes_the_most_probable_token(model):
    params = SamplingParams(temperature=0.0, max_tokens=15)
    asked = prompts(6, seed=2)
    for prompt, completion in zip(asked, TorchSampler(model, slots=4).generate(asked, params, [0] * 6), strict=True):
        tokens = list(prompt)
        for token in completion.tokens:
            assert model.logits(model(torch.tensor([tokens]))[0, -1]).argmax() == token
            tokens.append(token)


def test_completions_end_with_the_stop_token_or_at_the_limit(model):
    stops = (3, 4, 5)
    asked = prompts(60, seed=3)
    got = TorchSampler(model, slots=7).generate(asked, SamplingParams(max_tokens=9, stop_ids=stops), range(60))
    assert {c.stop for c in got} == {Stop.END, Stop.LENGTH}
    for c in got:
        assert not any(t in stops for t in c.tokens[:-1])
        assert (c.tokens[-1] in stops) == (c.stop is Stop.END)
        assert len(c.tokens) == 9 if c.stop is Stop.LENGTH else len(c.tokens) <= 9
        assert len(c.logp) == len(c.kept) == len(c.tokens)


def test_a_stop_token_at_the_limit_is_an_end(model):
    free = TorchSampler(model).generate([[1, 2]], SamplingParams(max_tokens=4), [5])[0]
    assert free.stop is Stop.LENGTH
    params = SamplingParams(max_tokens=free.tokens.index(free.tokens[-1]) + 1, stop_ids=(free.tokens[-1],))
    assert TorchSampler(model).generate([[1, 2]], params, [5])[0].stop is Stop.END


def test_the_context_limits_the_completion(model):
    params = SamplingParams(max_tokens=1000)
    got = TorchSampler(model).generate([[1] * (CONTEXT - 1), [1] * (CONTEXT - 7)], params, [0, 1])
    assert [len(c.tokens) for c in got] == [1, 7]
    short = TorchSampler(model, max_len=20).generate([[1] * 15], params, [0])
    assert len(short[0].tokens) == 5


# --- what cannot change a draw -----------------------------------------------------------------------------------

FREE = SamplingParams(max_tokens=16, stop_ids=(3,))


def same(one, other):
    assert [c.tokens for c in one] == [c.tokens for c in other]
    for a, b in zip(one, other, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-11)


def test_company_changes_nothing(model):
    asked, seeds = prompts(101), list(range(1000, 1101))
    among = TorchSampler(model, slots=16).generate(asked, FREE, seeds)
    alone = [TorchSampler(model).generate([p], FREE, [s])[0] for p, s in zip(asked[::10], seeds[::10], strict=True)]
    same(among[::10], alone)


@pytest.mark.parametrize("slots", [1, 2, 13, 64])
def test_slots_change_nothing(model, slots):
    asked = prompts(40, seed=4)
    same(
        TorchSampler(model, slots=slots).generate(asked, FREE, range(40)),
        TorchSampler(model, slots=128).generate(asked, FREE, range(40)),
    )


def test_order_changes_nothing(model):
    asked, order = prompts(30, seed=5), random.Random(1).sample(range(30), 30)
    want = TorchSampler(model, slots=8).generate(asked, FREE, range(30))
    got = TorchSampler(model, slots=8).generate([asked[i] for i in order], FREE, order)
    same(got, [want[i] for i in order])


def test_small_prefill_passes_change_nothing(model, monkeypatch):
    asked = prompts(30, seed=6)
    want = TorchSampler(model, slots=16).generate(asked, FREE, range(30))
    monkeypatch.setattr(sampling, "_PREFILL_TOKENS", 20)
    same(TorchSampler(model, slots=16).generate(asked, FREE, range(30)), want)


def test_memory_of_an_earlier_call_changes_nothing(model):
    sampler = TorchSampler(model, slots=8)
    first = sampler.generate(prompts(20, seed=7), FREE, range(20))
    sampler.generate([[2] * 30] * 9, SamplingParams(max_tokens=18), range(9))
    same(sampler.generate(prompts(20, seed=7), FREE, range(20)), first)


def test_a_completion_continues_where_it_was_cut(model):
    """Draws belong to places of the sequence: asking on after k tokens gives what would have come anyway."""
    prompt, params = [7, 8, 9], SamplingParams(max_tokens=20)
    whole = TorchSampler(model).generate([prompt], params, [11])[0]
    rest = TorchSampler(model).generate([[*prompt, *whole.tokens[:8]]], SamplingParams(max_tokens=12), [11])[0]
    assert rest.tokens == whole.tokens[8:]


def test_members_of_a_group_differ_and_share_one_prefill(model):
    computed = []
    handle = model.embed_tokens.register_forward_hook(lambda _m, args, _out: computed.append(len(args[0])))
    got = TorchSampler(model, slots=64).generate(
        [[5, 6, 7]] * 32 + [[8, 9]] * 32, SamplingParams(max_tokens=8), range(64)
    )
    handle.remove()
    assert computed == [3 + 2]  # decoding has an embedding of its own
    assert len({c.tokens for c in got[:32]}) == 32


MIXED = (
    FREE,
    SamplingParams(max_tokens=16, stop_ids=(3,), temperature=0.0),
    SamplingParams(max_tokens=5, stop_ids=(4, 5), temperature=0.6),
    SamplingParams(max_tokens=9, top_k=4, top_p=0.7),
    SamplingParams(max_tokens=1),
)


def test_requests_may_each_have_their_own_params(model):
    """In mixed company a request gets what it would get among requests that all ask as it does."""
    asked = prompts(40, seed=11)
    params = [MIXED[i % len(MIXED)] for i in range(40)]
    got = TorchSampler(model, slots=6).generate(asked, params, range(40))
    for i, p in enumerate(MIXED):
        want = TorchSampler(model, slots=6).generate(asked, p, range(40))[i :: len(MIXED)]
        same(got[i :: len(MIXED)], want)
        for a, b in zip(got[i :: len(MIXED)], want, strict=True):
            assert a.kept == pytest.approx(b.kept, abs=1e-11) and a.stop is b.stop
    assert any(k < 0 for c in got[3 :: len(MIXED)] for k in c.kept)


def test_a_list_of_equal_params_is_one_for_all(model):
    asked = prompts(12, seed=12)
    one = TorchSampler(model, slots=5).generate(asked, FREE, range(12))
    assert TorchSampler(model, slots=5).generate(asked, [dataclasses.replace(FREE) for _ in asked], range(12)) == one


def test_a_stop_id_of_one_request_does_not_stop_another(model):
    free = TorchSampler(model).generate([[1, 2]], SamplingParams(max_tokens=12), [5])[0]
    stop = free.tokens[4]
    own = SamplingParams(max_tokens=12, stop_ids=(stop,))
    got = TorchSampler(model).generate([[1, 2]] * 2, [own, SamplingParams(max_tokens=12)], [5, 5])
    assert got[0].tokens == free.tokens[: free.tokens.index(stop) + 1] and got[0].stop is Stop.END
    assert got[1].tokens == free.tokens and got[1].stop is Stop.LENGTH


def test_float32_agrees_with_itself_in_other_company_but_for_rounding():
    model = random_model(torch.float32)
    asked = prompts(64, seed=8)
    one = TorchSampler(model, slots=64).generate(asked, FREE, range(64))
    other = TorchSampler(model, slots=3).generate(asked, FREE, range(64))
    assert sum(a.tokens != b.tokens for a, b in zip(one, other, strict=True)) <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_what_the_cpu_draws(model):
    asked = prompts(70, seed=10)
    want = TorchSampler(model, slots=16).generate(asked, FREE, range(70))
    got = TorchSampler(random_model().cuda(), slots=16).generate(asked, FREE, range(70))
    assert [c.tokens for c in got] == [c.tokens for c in want]
    for a, b in zip(got, want, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-5)  # rotation angles are float32, whose cosines may differ


# --- the law of a draw -------------------------------------------------------------------------------------------


def test_evenly_spread_draws_give_each_token_its_share():
    """u at (i + 1/2) / n cuts [0, 1) evenly, so the count of a token is n p within one: no chance is involved."""
    logits = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    n = 20_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for params in (
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(top_p=0.8),
        SamplingParams(top_k=6),
    ):
        token, logp, kept = choose(logits.expand(n, -1), params, u)
        p = (logits[0] / params.temperature).softmax(-1)
        law = truncate(p[None], params.top_k, params.top_p)[0]
        law = law / law.sum()
        assert (torch.bincount(token, minlength=50) - n * law).abs().max() <= 1 + 1e-6
        torch.testing.assert_close(logp, p.log()[token])
        if kept is not None:
            torch.testing.assert_close((logp - kept).exp(), law[token])


def test_a_token_of_probability_zero_is_never_chosen():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    u = torch.tensor([0.0, 0.25, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert choose(logits.expand(4, -1), SamplingParams(), u)[0].tolist() == [1, 1, 3, 3]


def plain_truncate(p: list[float], top_k: int, top_p: float) -> list[float]:
    """The kept set by its definition: add the most probable tokens until they hold the share."""
    order = sorted(range(len(p)), key=lambda i: -p[i])[: top_k or len(p)]
    whole, mass, kept = sum(p[i] for i in order), 0.0, []
    for i in order:
        if mass >= top_p * whole:
            break
        kept.append(i)
        mass += p[i]
    return [x if i in kept else 0.0 for i, x in enumerate(p)]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 4, 99])
def test_the_kept_set_is_the_smallest_that_holds_the_share(top_k, top_p):
    p = (torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2).softmax(-1)
    want = [plain_truncate(row, top_k, top_p) for row in p.tolist()]
    assert truncate(p, top_k, top_p).tolist() == want


def test_a_cut_is_reported_with_every_token(model):
    params = SamplingParams(max_tokens=12, top_k=5, top_p=0.9, temperature=0.8)
    asked = prompts(12, seed=9)
    for prompt, c in zip(asked, TorchSampler(model, slots=4).generate(asked, params, range(12)), strict=True):
        tokens = torch.tensor([[*prompt, *c.tokens]])
        p = (model.logits(model(tokens))[0, len(prompt) - 1 : -1] / 0.8).softmax(-1)
        kept = truncate(p, 5, 0.9)
        assert c.kept == pytest.approx(kept.sum(-1).log().tolist(), abs=1e-9)
        assert c.logp == pytest.approx(full_logp(model, prompt, c, 0.8).tolist(), abs=1e-9)
        assert (kept.gather(1, torch.tensor(c.tokens)[:, None]) > 0).all()


def test_frequencies_over_seeds_follow_the_model(model):
    """First tokens of 4000 seeds against the model's law: chi-square within five standard deviations of its mean."""
    n, prompt = 4000, [4, 11, 2]
    got = TorchSampler(model, slots=1000).generate([prompt] * n, SamplingParams(max_tokens=1), range(n))
    p = model.logits(model(torch.tensor([prompt]))[0, -1]).softmax(-1).detach()
    count = torch.bincount(torch.tensor([c.tokens[0] for c in got]), minlength=VOCAB)
    common = p * n > 5
    chi2 = ((count - n * p).square() / (n * p))[common].sum()
    assert chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())


# --- weights, errors, the probe ----------------------------------------------------------------------------------


def test_new_weights_are_used_at_once_and_update_takes_the_version():
    model = random_model()
    sampler = TorchSampler(model)
    before = sampler.generate([[1, 2, 3]], FREE, [0])
    with torch.no_grad():
        model.embed_tokens.weight.mul_(-1)
    sampler.update(SimpleNamespace(model=model, version=7))
    after = sampler.generate([[1, 2, 3]], FREE, [0])
    assert sampler.version == 7
    assert before[0].logp != after[0].logp
    same(after, TorchSampler(model).generate([[1, 2, 3]], FREE, [0]))


def test_a_learner_with_another_module_is_refused(model):
    with pytest.raises(InvariantError, match="go on sampling from untrained weights"):
        TorchSampler(model).update(SimpleNamespace(model=random_model(), version=1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([[1], [2] * CONTEXT], f"prompt 1 has {CONTEXT} tokens .it starts with ids 2 2 .*the context holds {CONTEXT}"),
        ([[1], []], "prompt 1 has 0 tokens"),
    ],
)
def test_a_prompt_that_does_not_fit_is_named(model, asked, message):
    with pytest.raises(DataError, match=message):
        TorchSampler(model).generate(asked, FREE, [0, 1])


def test_other_refusals(model):
    with pytest.raises(DataError, match="2 prompts came with 1 seeds"):
        TorchSampler(model).generate([[1], [2]], FREE, [0])
    with pytest.raises(DataError, match="2 prompts came with 3 sampling params; give one for all"):
        TorchSampler(model).generate([[1], [2]], [FREE] * 3, [0, 1])
    with pytest.raises(DataError, match="stop id 99 is outside of the vocabulary of 29"):
        TorchSampler(model).generate([[1]], SamplingParams(stop_ids=(99,)), [0])
    with pytest.raises(ConfigError, match="slots = 0"):
        TorchSampler(model, slots=0)
    assert TorchSampler(model).generate([], FREE, []) == []


def test_weights_that_are_no_numbers_are_told():
    model = random_model()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match="token 0 of completion 0 .* diverged"):
        TorchSampler(model).generate([[1, 2]], FREE, [0])


def test_the_gap_of_equal_sides_is_nothing():
    logp = -torch.rand(4, 7)
    assert dataclasses.astuple(gap(logp, logp)) == pytest.approx((0, 0, 0, 1))


def test_the_gap_by_hand():
    sampled = torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, 5.0]])
    learned = torch.tensor([[9.0, -1.0, -2.0 - math.log(2)], [9.0, -1.0, 5.0]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]])
    found = gap(sampled, learned, mask)  # differences 0, -log 2, 0; ratios 1, 1/2, 1
    assert found.mean == pytest.approx(math.log(2) / 3)
    assert found.largest == found.p99 == pytest.approx(math.log(2))
    assert found.ess == pytest.approx(2.5**2 / (3 * 2.25))


def test_the_gap_needs_tokens_of_equal_shape():
    with pytest.raises(DataError, match="no token that the policy chose"):
        gap(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"\[2, 3\] and \[2, 4\] differ"):
        gap(torch.zeros(2, 3), torch.zeros(2, 4))
