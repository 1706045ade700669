"""What a plan says a run holds in memory is what it holds: counted storage by storage while real steps are made."""

from itertools import cycle

import pytest
import torch

from algorithms import broad
from algorithms.counting import LiveBytes
from posttrain.algorithms.plan import demand, rows_of
from posttrain.batch import collate, collate_pairs, weigh
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import save_folder
from posttrain.models.lora import Lora, add_adapters
from posttrain.objectives.average import Average
from posttrain.records import Segment
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.demand import Demand, Trained, moments, peak
from posttrain.train.invariants import fingerprint
from posttrain.train.learner import Learner, Optim, Part, Term, forward
from posttrain.train.memory import cache_bytes, decoding_bytes, saved, sizes, weight_bytes

CASES = {
    "qwen3": {},
    "llama, untied": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2, biases": {"model_type": "qwen2", "attention_bias": True},
    "every head its own keys": {"num_key_value_heads": 4},
    "wide MLP, deep": {"intermediate_size": 320, "num_hidden_layers": 6},
    "large vocabulary": {"vocab_size": 4001},
    "entropy": {"vocab_size": 4001, "needs": ("logp", "entropy")},
    "scalar head": {"needs": ("values",)},
    "adapters": {"lora": Lora(rank=8), "num_hidden_layers": 6},
    "adapters on two projections": {"lora": Lora(rank=8, targets=("q_proj", "v_proj")), "num_hidden_layers": 6},
    "bfloat16": {"optim": {"precision": "bfloat16"}, "num_hidden_layers": 6},
    "bfloat16, llama": {"optim": {"precision": "bfloat16"}, "model_type": "llama", "num_key_value_heads": 4},
    "bfloat16, adapters": {"optim": {"precision": "bfloat16"}, "lora": Lora(rank=8), "num_hidden_layers": 6},
    "recomputed": {"optim": {"recompute": True}, "num_hidden_layers": 6},
    "recomputed, bfloat16": {"optim": {"recompute": True, "precision": "bfloat16"}, "num_hidden_layers": 6},
    "rows of an embedding": {"lora": Lora(rank=8), "num_hidden_layers": 6, "marks": (3, 4)},
}


def made(needs=("logp",), lora=None, marks=(), optim=None, **changes):
    """A random model."""
    shape = {
        "vocab_size": 211, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    model = Decoder(ModelConfig(**shape | changes)).initialise(0)
    if marks:
        with torch.no_grad():
            model.embed_tokens.weight[list(marks)] = 0.0  # tokens that training has never seen
    model = ScalarModel(model) if "values" in needs else model
    return model if lora is None else add_adapters(model, lora, base="x", seed=0, marks=marks)


def segments(n: int, length: int, vocab: int = 211) -> list[Segment]:
    """Rows of about that length, of which all but two tokens are learned."""
    out = []
    for i in range(n):
        size = length - i % 5
        tokens = torch.randint(0, vocab, (size,), generator=torch.Generator().manual_seed(i)).tolist()
        out.append(Segment(tokens=tuple(tokens), mask=(False,) * 2 + (True,) * (size - 2)))
    return out


def loss(out, b):
    """Something of every output."""
    values = [x for x in out if x is not None]
    return [Term("sum", sum(values), b.weights["token"])], {}


@pytest.mark.parametrize("case", CASES)
def test_a_forward_pass_keeps_what_the_formula_counts(case):
    needs, optim = CASES[case].get("needs", ("logp",)), CASES[case].get("optim", {})
    batch = weigh(collate(segments(8, 60)), Average("token"))
    with LiveBytes() as live:
        model = made(**CASES[case])
        Learner(model, Optim(**optim), total=1)  # sets the model's precision
        before = live.now
        terms, _ = loss(forward(model, batch, needs), batch)
        counted = live.now - before
    predicted = saved(model, sizes(batch), needs, **optim).kept
    assert terms and 0.97 < predicted / counted < 1.04


@pytest.mark.parametrize(("case", "micro"), list(zip(CASES, cycle((None, 200)), strict=False)))
def test_a_step_holds_what_the_formulas_count(case, micro):
    needs, optim = CASES[case].get("needs", ("logp",)), CASES[case].get("optim", {})
    batch = weigh(collate(segments(8, 60)), Average("token"))
    with LiveBytes() as live:
        model = made(**CASES[case])
        learner = Learner(model, Optim(micro_tokens=micro, **optim), total=3)
        for _ in range(2):  # the moments are there from the second step on
            live.peak = 0
            learner.step(Part(batch, loss, needs))
    trained = Trained(name="policy", model=model, batch=batch, rows=8, needs=needs, optim=learner.optim)
    assert 0.95 < peak(Demand(trained=(trained,))).tensors / live.peak < 1.1


def test_where_gradients_are_larger_than_activations_the_end_of_the_backward_pass_counts():
    batch = weigh(collate(segments(4, 12)), Average("token"))
    with LiveBytes() as live:
        model = made(hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
        learner = Learner(model, Optim(), total=3)
        for _ in range(2):
            live.peak = 0
            learner.step(Part(batch, loss))
    trained = Trained(name="policy", model=model, batch=batch, rows=4, optim=learner.optim)
    assert 0.95 < peak(Demand(trained=(trained,))).tensors / live.peak < 1.1


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_weights_gradients_and_moments_are_exact(lora):
    model = made(lora=lora)
    learner = Learner(model, Optim(), total=3)
    learner.step(Part(weigh(collate(segments(4, 12)), Average("token")), loss))
    assert weight_bytes(model) == sum(p.untyped_storage().nbytes() for p in model.parameters())
    gradients = sum(p.grad.untyped_storage().nbytes() for p in model.parameters() if p.grad is not None)
    assert weight_bytes(model, trained=True) == gradients
    state = [x for s in learner.optimizer.state.values() for name, x in s.items() if name != "step"]
    assert sum(x.untyped_storage().nbytes() for x in state) == 2 * gradients


def test_the_sampler_holds_its_matrices_and_while_it_writes_its_cache():
    with LiveBytes() as live:
        model = made()
        before = live.now
        sampler = TorchSampler(model, slots=8, max_len=64)
        sampler.generate([[1, 2, 3]] * 20, SamplingParams(max_tokens=20), range(20))
        held, most = live.now - before, live.peak - before
    assert 0.97 < decoding_bytes(model) / held < 1.03
    assert most > cache_bytes(model, 8, 23) + decoding_bytes(model)


@pytest.mark.parametrize(("method", "micro"), [*((m, 600) for m in broad.METHODS), ("sft", 16384), ("group", 16384)])
def test_a_run_holds_what_its_plan_says(method, micro, tmp_path):
    """From loading to the last check, by the true `train`, whose rows a plan only knows by their longest."""
    names = ("optim", "critic_optim")[: 1 + (method in ("ppo", "vapo"))]
    optim = {name: Optim(lr=1e-3, micro_tokens=micro) for name in names}
    cfg = broad.config(method, tmp_path, **optim)
    planned = demand(cfg, rows_of(cfg))
    with LiveBytes() as live:
        broad.run(method, cfg, tmp_path / "run")
    assert 0.9 < peak(planned).tensors / live.peak < 1.15, [(m.name, m.parts) for m in moments(planned)]


def test_pairs_share_their_prompt_and_rows_that_may_come_apart_do_not():
    prompt = tuple(range(20))
    rows = [Segment(tokens=(*prompt, *range(30 + i, 40 + i)), mask=(False,) * 20 + (True,) * 10) for i in range(8)]
    pairs = collate_pairs(list(zip(rows[::2], rows[1::2], strict=True)))
    whole = Trained(name="", model=made(), batch=pairs, rows=8, optim=Optim(micro_tokens=60), together="group")
    piece, n = whole.piece()
    assert n == 4 and sizes(piece) == (2, 30, 60, 40, 60, 20)  # rows, longest, real, computed, cells, learned
    apart = Trained(name="", model=made(), batch=pairs, rows=8, optim=Optim(micro_tokens=60))
    assert apart.piece()[1] == 4 and sizes(apart.piece()[0]).tokens == 60
    together = Trained(name="", model=made(), batch=pairs, rows=8, optim=Optim(micro_tokens=None))
    assert sizes(together.piece()[0]).tokens == 160


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_the_checks_of_a_run_hold_no_second_model(tmp_path, lora):
    """What moved since the start, adapters merged, and whether the first step changed anything."""
    with LiveBytes() as live:
        model = made(num_hidden_layers=20)
        save_folder(model, tmp_path / "start")
        model = model if lora is None else add_adapters(model, lora, base="x", seed=0)
        learner = Learner(model, Optim(), total=3)
        learner.step(Part(weigh(collate(segments(2, 12)), Average("token")), loss))
        before = live.peak = live.now
        moved = learner.moved_since(tmp_path / "start")
        fingerprint(model.named_parameters())
    assert len(moved) == (22 if lora is None else 20) and all(moved[f"layers.{i}"] > 0 for i in range(20))
    assert live.peak - before < 0.3 * weight_bytes(model)
