"""The model in the page against the library: logits, sampling, tokenizer, adapters, and one whole step of GRPO."""

import json
import random

import pytest
import torch

pytest.importorskip("py_mini_racer", reason="the page's code runs in mini-racer, which posttrain[book] brings")

from posttrain import rng  # noqa: E402
from posttrain.assets.world import corpus  # noqa: E402
from posttrain.batch import collate, weigh  # noqa: E402
from posttrain.models.decoder import Decoder, ModelConfig  # noqa: E402
from posttrain.models.hf_format import load_folder, save_folder  # noqa: E402
from posttrain.models.load import load  # noqa: E402
from posttrain.models.lora import Lora, add_adapters  # noqa: E402
from posttrain.models.peft_format import write_adapter  # noqa: E402
from posttrain.objectives.advantages import center, zscore  # noqa: E402
from posttrain.objectives.average import Average  # noqa: E402
from posttrain.objectives.objective import Objective  # noqa: E402
from posttrain.objectives.policy import policy_loss  # noqa: E402
from posttrain.records import Segment  # noqa: E402
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term  # noqa: E402
from posttrain.train.schedule import Schedule  # noqa: E402
from tests.book.pagecode import engine, give  # noqa: E402

MODULES = ("num", "kernel", "lm", "group", "grpo", "tokenizer", "adder", "trainer")
PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
SAMPLE = """(() => {
  const out = [[], [], [], []], logp = [[], [], [], []];
  const how = { temperature: 0.7, most: 12, stop: [0], random: random(5) };
  for (const said of sample(model, PROMPTS, how))
    for (const s of said) { out[s.slot].push(s.token); logp[s.slot].push(s.logp) }
  return JSON.stringify([out, logp]);
})()""".replace("PROMPTS", str(PROMPTS))
KERNELS = pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
BASE = load("base").folder


def page(folder, **how):
    """An engine with the model of a folder as `model`."""
    made = engine(*MODULES)
    give(made, "weights", (folder / "model.safetensors").read_bytes())
    made.eval(f"model = new Model({(folder / 'config.json').read_text()}, tensors(weights), {json.dumps(how)}); null")
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of the shape that section 23 trains, with weights large enough for attention to matter."""
    cfg = ModelConfig(model_type="llama", vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                      num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.15)  # fmt: skip
    folder = tmp_path_factory.mktemp("small")
    save_folder(Decoder(cfg).initialise(3), folder, dtype=torch.float16)
    return folder


@KERNELS
def test_logits_of_the_base(kernel):
    tokens = load("base").tokenizer.encode("Question: what is 47 + 38?\nAnswer: ")
    model = load_folder(BASE)
    want = model.logits(model(torch.tensor([tokens])))[0]
    made = page(BASE, slots=2, length=64, rows=64, kernel=kernel)
    assert made.eval("model.fast") is kernel
    n = len(tokens)
    made.eval(f"model.forward({tokens}, Array({n}).fill(1), [...Array({n}).keys()]); null")
    got = torch.tensor(json.loads(made.eval(f"JSON.stringify([...model.logitsOf([...Array({n}).keys()])])")))
    torch.testing.assert_close(got.view(n, -1), want, rtol=0, atol=1e-4)


@KERNELS
def test_one_token_at_a_time_is_the_whole_sequence(small, kernel):
    made = page(small, slots=3, length=20, rows=40, kernel=kernel)
    draw = random.Random(1)
    rows = [[draw.randrange(16) for _ in range(12)] for _ in range(3)]
    model = load_folder(small)
    for t in range(12):
        made.eval(f"model.forward({[r[t] for r in rows]}, [0, 1, 2], [{t}, {t}, {t}]); null")
    got = torch.tensor(json.loads(made.eval("JSON.stringify([...model.logitsOf([0, 1, 2])])"))).view(3, -1)
    torch.testing.assert_close(got, model.logits(model(torch.tensor(rows)))[:, -1], rtol=0, atol=1e-4)


def test_samples_follow_the_models_probabilities(small):
    made = page(small, slots=4, length=24, rows=64)
    sampled = json.loads(made.eval(SAMPLE))
    model = load_folder(small)
    for prompt, tokens, logp in zip(PROMPTS, *sampled, strict=True):
        assert len(tokens) == 12 or (tokens[-1] == 0 and 0 not in tokens[:-1])
        whole = torch.tensor([prompt + tokens])
        all_of_them = torch.log_softmax(model.logits(model(whole))[0] / 0.7, -1)
        want = [all_of_them[len(prompt) - 1 + t, token] for t, token in enumerate(tokens)]
        torch.testing.assert_close(torch.tensor(logp), torch.stack(want), rtol=0, atol=1e-4)


def test_a_draw_is_the_librarys(small):
    """The first token is where the library's uniform number falls into the distribution."""
    made = page(small, slots=1, length=8, rows=8)
    model = load_folder(small)
    p = model.logits(model(torch.tensor([[3, 4]])))[0, -1].double().softmax(-1).cumsum(0)
    for seed in range(20):
        u = float(rng.uniform(torch.tensor([seed]), torch.tensor([0])))
        got = made.eval(
            f"sample(model, [[3, 4]], {{ most: 1, stop: [], random: random({seed}) }}).next().value[0].token"
        )
        assert got == int((p < u).sum())


def test_adapters_are_merged(tmp_path):
    """A LoRA folder, as training writes it, on top of the base."""
    model = add_adapters(load_folder(BASE), Lora(rank=4), base="base", seed=1, marks=range(1, 14))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
            elif name.endswith("tokens"):
                p.add_(0.1)
    write_adapter(model, tmp_path)
    made = engine(*MODULES)
    give(made, "weights", (BASE / "model.safetensors").read_bytes())
    give(made, "adapter", (tmp_path / "adapter_model.safetensors").read_bytes())
    how = (tmp_path / "adapter_config.json").read_text()
    made.eval(f"""all = tensors(weights); merge(all, tensors(adapter), {how});
      model = new Model({(BASE / "config.json").read_text()}, all, {{ slots: 1, length: 16, rows: 16 }});
      model.forward([20, 3, 40, 50], [0, 0, 0, 0], [0, 1, 2, 3]); null""")
    got = torch.tensor(json.loads(made.eval("JSON.stringify([...model.logitsOf([0, 1, 2, 3])])"))).view(4, -1)
    want = model.logits(model(torch.tensor([[20, 3, 40, 50]])))[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_the_tokenizer():
    tokenizer = load("base").tokenizer
    made = engine(*MODULES)
    made.eval(f"tok = new Tokenizer({(BASE / 'tokenizer.json').read_text()}); null")
    texts = [corpus.validation(n) for n in range(40)]
    texts += ["", " ", "  two  spaces ", "tab\tand\n\nlines\r\n", "I'll can't we've 3's it'S", "x" * 70, "12+345=357"]
    texts += [
        "naïve café 北京 👩\u200d🔬 ½ ٣ Ⅷ",
        "a\u00a0b\u2003c\x85d",
        "<|end|> is only text",
        "\ufeffmark",
        "e\u0301",
    ]
    texts += ["!?...--__''\"\""]
    for text in texts:
        ids = made.eval(f"JSON.stringify(tok.encode({json.dumps(text)}))")
        assert json.loads(ids) == tokenizer.encode(text), text
        assert made.eval(f"tok.decode({ids})") == text
    draw = random.Random(0)
    for _ in range(50):  # any ids, which may cut a character in two
        ids = [draw.randrange(1024) for _ in range(20)]
        assert made.eval(f"tok.decode({ids})") == tokenizer.decode(ids)


def answers(count=6, seed=2):
    """Prompts, answers of unequal length, and rewards of two groups."""
    draw = random.Random(seed)
    said = [
        ([draw.randrange(16) for _ in range(3 + i // 3)], [draw.randrange(16) for _ in range(2 + 2 * (i % 3))])
        for i in range(count)
    ]
    return said, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


@KERNELS
@pytest.mark.parametrize(
    "normalise, average, objective",
    [
        ("std", "answer", Objective(advantage="zscore", average=Average("sequence"))),
        ("none", "token", Objective(advantage="center", average=Average("token"))),
        ("none", "constant", Objective(advantage="center", average=Average("constant", horizon=10))),
    ],
    ids=["grpo", "token", "dr_grpo"],
)
def test_a_whole_step(small, kernel, normalise, average, objective):
    """Advantages, weights, loss, every gradient, and the weights after two steps of AdamW."""
    said, rewards = answers()
    temperature = 0.8
    segments = [Segment(tokens=(*p, *t), mask=(False,) * len(p) + (True,) * len(t)) for p, t in said]
    batch = weigh(collate(segments, group=[0, 0, 0, 1, 1, 1], temperature=[temperature] * 6), objective.average)
    estimate = zscore if objective.advantage == "zscore" else center
    advantage = estimate(torch.tensor(rewards, dtype=torch.float64), batch.group).float()
    made = page(small, slots=6, length=24, rows=80, keep=True, kernel=kernel)
    lengths = [len(t) for _, t in said]
    weights = json.loads(made.eval(f"JSON.stringify(tokenWeights({lengths}, '{average}', 10))"))
    got = [
        x
        for i in (0, 3)
        for x in json.loads(made.eval(f"JSON.stringify(advantages({rewards[i : i + 3]}, '{normalise}'))"))
    ]
    torch.testing.assert_close(torch.tensor(got), advantage, rtol=0, atol=1e-6)
    page_answers = [
        {"prompt": p, "tokens": t, "advantage": a, "weight": w} for (p, t), a, w in zip(said, got, weights, strict=True)
    ]

    def loss(out, b):
        per_token, _ = policy_loss(
            out.logp, out.logp.detach(), advantage[:, None].expand_as(out.logp), b.mask, objective
        )
        return [Term("policy", per_token, b.weights["token"])], {}

    learner = Learner(load_folder(small), Optim(lr=1e-3, schedule=Schedule(kind="constant", warmup=0)), total=10)
    state = "{ t: 0 }"
    for step in range(2):
        metrics = learner.step(Part(batch, loss))
        before = made.eval(f"gradient(model, {json.dumps(page_answers)}, {temperature})")
        assert before == pytest.approx(metrics["loss"][0], abs=1e-6)
        if step == 0:
            check_gradients(made, small, batch, loss, temperature)
            made.eval(f"state = {state}; null")
        norm = made.eval("adamw(model, state, { lr: 1e-3 })")
        assert norm == pytest.approx(metrics["grad_norm"][0] / metrics["grad_norm"][1], rel=1e-4)
    for name, p in hf_parameters(learner.model):
        found = next(x for x in json.loads(made.eval("JSON.stringify(model.names)")) if x["name"] == name)
        got = torch.tensor(
            json.loads(made.eval(f"JSON.stringify([...model.f.subarray({found['at']}, {found['at'] + p.numel()})])"))
        )
        torch.testing.assert_close(got.view_as(p), p.detach(), rtol=0, atol=2e-5)


def check_gradients(made, folder, batch, loss, temperature):
    """Each parameter's gradient to 1e-4 of its largest entry."""
    model = load_folder(folder)
    said = torch.log_softmax(model.logits(model(batch.tokens, batch.attend)) / temperature, -1)
    logp = torch.zeros(batch.tokens.shape)
    logp[:, 1:] = said[:, :-1].gather(2, batch.tokens[:, 1:, None])[..., 0]
    (term,), _ = loss(Outputs(logp=logp), batch)
    (term.value * term.weight).sum().backward()
    for name, p in hf_parameters(model):
        largest = float(p.grad.abs().max())
        assert largest > 0
        torch.testing.assert_close(numbers_at(made, name, p, "model.grad"), p.grad, rtol=0, atol=1e-4 * largest)


def numbers_at(made, name, like, start="0"):
    """A parameter of the page's model, or its gradient."""
    return torch.tensor(
        json.loads(
            made.eval(f"""(() => {{
      const from = {start} + model.names.find((x) => x.name === "{name}").at;
      return JSON.stringify([...model.f.subarray(from, from + {like.numel()})]);
    }})()""")
        )
    ).view_as(like)


def hf_parameters(model):
    from posttrain.models.hf_format import hf_name

    return [(hf_name(name), p) for name, p in model.named_parameters()]


def test_the_poster_is_what_the_page_samples(tmp_path):
    """The group that stands there before any weights are loaded, and the verifier's word on it."""
    from book.models import adder, export

    export.write(tmp_path)
    poster = json.loads((tmp_path / "adder/poster.json").read_text())
    made = page(tmp_path / "adder", slots=64, length=28, rows=64 * 28)
    problems = [poster["digits"]] * poster["size"]
    how = f"{json.dumps(problems)}, {poster['temperature']}, {poster['seed']}"
    said = json.loads(made.eval(f"JSON.stringify(new Trainer(model).sampled({how}))"))
    assert [s["tokens"] for s in said] == poster["answers"]
    right = str(sum(map(int, poster["digits"])))
    texts = ["".join(adder.TOKENS[t] for t in a if t != 1) for a in poster["answers"]]
    assert [s["reward"] for s in said] == [float(t.split(",")[-1] == right) for t in texts]
    assert (tmp_path / "base/model.safetensors").stat().st_size < 3e6


@pytest.mark.slow
def test_training_in_the_page_learns():
    """Twenty steps on three seeds, as section 23 tells it; undone, the weights are as they were."""
    from book.models import adder

    how = "{ size: 8, temperature: 1, normalise: 'std', average: 'answer' }"
    for seed in (3, 4, 5):
        made = page(adder.FOLDER, slots=64, length=28, rows=64 * 28, keep=True)
        made.eval("trainer = new Trainer(model); start = model.f.slice(0, model.parameters); null")
        fresh = f"trainer.sampled(new Array(64).fill('4975'), 1, {seed + 17}).reduce((n, s) => n + s.reward, 0) / 64"
        before = made.eval(fresh)
        for n in range(20):
            made.eval(f"trainer.step('4975', {how}, {1000 * seed + 2 * n}).reward")
        assert 0.2 < before < 0.45 and made.eval(fresh) > 0.65
        assert made.eval("trainer.undo(40)") == 20
        assert made.eval("start.every((x, i) => x === model.f[i])")


@pytest.mark.parametrize("name", ["base", "sums-grpo"])
def test_the_base_answers_in_the_page_as_in_the_library(tmp_path, name):
    """Text in, text out: tokenizer, adapters, cache, draws; four answers, token for token."""
    from book.models import export

    made = engine(*MODULES)
    give(made, "weights", (BASE / "model.safetensors").read_bytes())
    made.eval(f"tok = new Tokenizer({(BASE / 'tokenizer.json').read_text()}); all = tensors(weights); null")
    if name != "base":
        give(made, "adapter", (export.HERE / name / "adapter_model.safetensors").read_bytes())
        made.eval(f"merge(all, tensors(adapter), {(export.HERE / name / 'adapter_config.json').read_text()}); null")
    texts = json.loads(made.eval(f"""(() => {{
      const model = new Model({(BASE / "config.json").read_text()}, all, {{ slots: 4, length: 80, rows: 128 }});
      const ids = [[], [], [], []], prompt = tok.encode("Q: {export.ASKED["question"]}\\nA:");
      const how = {{ most: 40, stop: [6, 0], random: random({export.ASKED["seed"]}) }};
      for (const said of sample(model, ids.map(() => prompt), how)) for (const s of said) ids[s.slot].push(s.token);
      return JSON.stringify(ids.map((x) => tok.decode(x)));
    }})()"""))  # fmt: skip
    assert texts == export.asked(name)
