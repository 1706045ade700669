"""The learner: any split of a step gives the same gradient, packed rows equal padded ones, and it refuses no-ops."""

import math

import pytest
import torch
from torch import Tensor

from posttrain.batch import TokenBatch, collate, collate_pairs, weigh, weigh_rows
from posttrain.errors import InvariantError, NonFiniteError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.heads import ScalarModel
from posttrain.objectives.average import Average
from posttrain.objectives.tokens import token_logprobs
from posttrain.records import Segment
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term, forward, outputs

CFG = ModelConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=4, initializer_range=0.3,
)  # fmt: skip


def segment(seed: int, length: int, prompt: int = 2) -> Segment:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 31, (length,), generator=g).tolist()
    logp = [math.nan] * prompt + (-torch.rand(length - prompt, generator=g)).tolist()
    return Segment(tokens=tuple(tokens), mask=(False,) * prompt + (True,) * (length - prompt), logp=tuple(logp))


def batch(n: int = 8) -> TokenBatch:
    segments = [segment(i, 5 + (3 * i) % 9) for i in range(n)]
    b = weigh(collate(segments, group=[i // 2 for i in range(n)]), Average("sequence"))
    g = torch.Generator().manual_seed(0)
    return b.with_(advantage=torch.randn(b.tokens.shape, generator=g))


def policy(out: Outputs, b: TokenBatch):
    ratio = torch.exp(out.logp - out.logp.detach())
    return [Term("policy", -ratio * b.advantage, b.weights["token"])], {}


def entropy(out: Outputs, b: TokenBatch):
    return [Term("nll", -out.logp, b.weights["token"]), Term("entropy", -0.1 * out.entropy, b.weights["token"])], {}


def sorted_match(out: Outputs, b: TokenBatch):
    """Couples all rows through a sort, as AOT does."""
    sums = (out.logp * b.mask).sum(1)
    target = torch.linspace(-9, -1, len(sums), dtype=sums.dtype)
    return [Term("sorted", (sums.sort().values - target) ** 2, torch.full_like(sums, 1 / len(sums)))], {}


def pairwise(out: Outputs, b: TokenBatch):
    sums = (out.logp * b.mask).sum(1)
    chosen = b.label > 0
    margin = sums[chosen] - sums[~chosen]
    return [Term("pair", -torch.nn.functional.logsigmoid(margin), b.weights["pair"][chosen])], {}


def value(out: Outputs, b: TokenBatch):
    return [Term("value", (out.values - b.advantage) ** 2 * b.mask, b.weights["token"])], {}


def pair_batch() -> TokenBatch:
    pairs = [(segment(2 * i, 6 + i), segment(2 * i + 1, 12 - i)) for i in range(5)]
    return weigh_rows(collate_pairs(pairs), Average("pair"), "pair")


CASES = {
    "policy": lambda: Part(batch(), policy),
    "entropy": lambda: Part(batch(), entropy, needs=("logp", "entropy")),
    "coupled": lambda: Part(batch(), sorted_match, coupled=True),
    "pair": lambda: Part(pair_batch(), pairwise, together="group"),
    "value": lambda: Part(batch(), value, needs=("values",)),
}


def gradient(case: str, micro: int | None, dtype: torch.dtype) -> Tensor:
    model = Decoder(CFG).initialise(0).to(dtype)
    if case == "value":
        model = ScalarModel(model).to(dtype)
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    part = CASES[case]()
    part = part._replace(batch=part.batch.with_(weights={k: w.to(dtype) for k, w in part.batch.weights.items()}))
    learner = Learner(model, Optim(lr=1e-3, max_grad_norm=0, micro_tokens=micro), total=1)
    learner.step(part)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_any_split_gives_the_same_gradient(case, dtype, tolerance):
    whole = gradient(case, None, dtype)
    for micro in (1, 17, 40):
        split = gradient(case, micro, dtype)
        assert (split - whole).norm() <= tolerance * whole.norm(), f"micro_tokens={micro}"


def test_gradient_is_that_of_the_padded_model():
    """The learner packs rows; plain padded logits, the one shift and a plain sum must give the same gradient."""
    b = batch()
    packed = gradient("policy", None, torch.float64)
    model = Decoder(CFG).initialise(0).double()
    logp = token_logprobs(model.logits(model(b.tokens, b.attend)), b.tokens)
    ratio = torch.exp(logp - logp.detach())
    (b.weights["token"] * -ratio * b.advantage).sum().backward()
    padded = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (packed - padded).norm() <= 1e-10 * padded.norm()


def test_outputs_equal_the_padded_model_at_any_split():
    b = batch()
    model = Decoder(CFG).initialise(0).double()
    want = token_logprobs(model.logits(model(b.tokens, b.attend)), b.tokens) * b.mask
    for micro in (None, 1, 20):
        out = outputs(model, b, ("logp",), micro)
        assert torch.allclose(out.logp, want, atol=1e-12)


def test_values_stand_at_their_tokens():
    b = batch()
    model = ScalarModel(Decoder(CFG).initialise(0)).double()
    torch.nn.init.normal_(model.score.weight)
    want = model.score(model.decoder(b.tokens, b.attend)).squeeze(-1) * b.attend
    assert torch.allclose(outputs(model, b, ("values",), 20).values, want, atol=1e-12)


def test_junk_outside_the_mask_changes_nothing():
    b = batch()
    clean = gradient("policy", None, torch.float64)
    model = Decoder(CFG).initialise(0).double()
    junk = b.with_(
        tokens=torch.where(b.attend, b.tokens, 7),
        advantage=torch.where(b.mask, b.advantage, 1e6),
        weights={k: w.double() for k, w in b.weights.items()},
    )
    Learner(model, Optim(max_grad_norm=0), total=1).step(Part(junk, policy))
    dirty = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.equal(clean, dirty)


def test_parts_add_up():
    def both(first: Part, second: Part | None) -> Tensor:
        model = Decoder(CFG).initialise(0).double()
        Learner(model, Optim(max_grad_norm=0), total=1).step(*(p for p in (first, second) if p))
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    a, b = CASES["policy"](), CASES["entropy"]()
    sum_ = both(a, b)
    assert (sum_ - both(a, None) - both(b, None)).norm() <= 1e-10 * sum_.norm()


def test_non_finite_loss_stops_and_names_the_term_and_row():
    def broken(out: Outputs, b: TokenBatch):
        v = -out.logp.clone()
        v[1, 3] = torch.nan
        return [Term("policy", v, b.weights["token"])], {}

    model = Decoder(CFG).initialise(0)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match=r'step 0: the term "policy" is nan at row 1, token 3'):
        Learner(model, Optim(), total=1).step(Part(batch(), broken))
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_a_first_step_that_changes_nothing_is_an_error():
    def nothing(out: Outputs, b: TokenBatch):
        return [Term("policy", 0 * out.logp, b.weights["token"])], {}

    with pytest.raises(InvariantError, match="changed no weight"):
        Learner(Decoder(CFG).initialise(0), Optim(), total=1).step(Part(batch(), nothing))


def test_a_frozen_model_is_refused():
    model = Decoder(CFG)
    model.requires_grad_(False)
    with pytest.raises(InvariantError, match="no trainable parameter"):
        Learner(model, Optim(), total=1)


def test_state_and_weights_continue_bit_for_bit(tmp_path):
    def run(learner: Learner, n: int):
        for _ in range(n):
            learner.step(Part(batch(), entropy, needs=("logp", "entropy")))

    unbroken = Learner(Decoder(CFG).initialise(0), Optim(lr=1e-2), total=6)
    run(unbroken, 6)
    first = Learner(Decoder(CFG).initialise(0), Optim(lr=1e-2), total=6)
    run(first, 3)
    first.save_model(tmp_path)
    second = Learner(Decoder(CFG).initialise(5), Optim(lr=1e-2), total=6)
    second.load_model(tmp_path)
    second.load_state(first.state())
    run(second, 3)
    for a, b in zip(unbroken.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["policy", "value"])
def test_two_threads_give_the_same_bits_every_time(name):
    """Rows of a group share their prompt's states; what they send back must be added in one order."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.cat((torch.full((800, 3), 5), torch.randint(0, 31, (800, 9), generator=g)), 1)
    rows = [
        Segment(tokens=tuple(row), mask=(False,) * 3 + (True,) * 9, logp=(math.nan,) * 3 + (-1.0,) * 9)
        for row in tokens.tolist()
    ]
    b = weigh(collate(rows, group=[i % 50 for i in range(800)]), Average("sequence"))
    b = b.with_(advantage=torch.randn(b.tokens.shape, generator=g))
    model = Decoder(CFG).initialise(3)
    model, loss, needs = (model, policy, ("logp",)) if name == "policy" else (ScalarModel(model), value, ("values",))
    if name == "value":
        torch.nn.init.normal_(model.score.weight, generator=g)
    seen, threads = set(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(12):
            model.zero_grad()
            terms, _ = loss(forward(model, b, needs), b)
            sum((w * v).sum() for _, v, w in terms).backward()
            seen.add(b"".join(p.grad.numpy().tobytes() for p in model.parameters()))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1
