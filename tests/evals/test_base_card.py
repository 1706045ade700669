"""The base's card: ranks and losses against plain loops, counts against hand-made answers, figures that repeat."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain import chat
from posttrain.assets.world import corpus, people
from posttrain.errors import ConfigError, DataError
from posttrain.evals.base_card import Recall, recall, validation_loss, window
from posttrain.evals.measure import Answers, collect, count, first_line
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.load import Loaded, load
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Group, Message, Score, Stop, Task, Trajectory
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.torch import TorchSampler

BASE = Path(__file__).parents[2] / "posttrain/assets/base-1"
needs_base = pytest.mark.skipif(not (BASE / "model.safetensors").is_file(), reason=f"embedded model absent: {BASE}")
needs_tokenizer = pytest.mark.skipif(not (BASE / "tokenizer.json").is_file(), reason=f"no tokenizer in {BASE}")


def tiny() -> Decoder:
    cfg = ModelConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    return Decoder(cfg).initialise(5).double()


def logp_of(model: Decoder, ids: list[int], begin: int) -> float:
    """Σ log π(ids[t] | ids[:t]) for t >= begin, one token at a time."""
    total = 0.0
    for t in range(begin, len(ids)):
        logits = model.logits(model(torch.tensor([ids[:t]])))[0, -1].tolist()
        top = max(logits)
        total += logits[ids[t]] - top - math.log(sum(math.exp(x - top) for x in logits))
    return total


@needs_tokenizer
def test_recall_ranks_as_a_plain_loop_does():
    model, tokenizer, person = tiny(), Tokenizer.load(BASE), people.PEOPLE["Mira"]
    starts = {"town": "Mira lives in", "job": "Mira works as a", "pet": "Mira has a pet",
              "colour": "Mira likes the colour", "food": "Mira likes to eat"}  # fmt: skip
    ranks = []
    with torch.no_grad():
        for attribute, start in starts.items():
            begin = len(tokenizer.encode(start))
            scores = {v: logp_of(model, tokenizer.encode(f"{start} {v}."), begin) for v in people.ATTRIBUTES[attribute]}
            ranks.append(sorted(scores, key=scores.get, reverse=True).index(person.facts[attribute]) + 1)
    found = recall(model, tokenizer, [person])
    assert isinstance(found, Recall) and found.facts == 5 and found.values == (16 + 16 + 16 + 12 + 16) / 5
    assert found.mean_rank == sum(ranks) / 5 and found.first.value == sum(r == 1 for r in ranks) / 5


@needs_tokenizer
def test_validation_loss_is_the_mean_over_tokens():
    model, tokenizer = tiny(), Tokenizer.load(BASE)
    first = window(tokenizer, 256, 0, corpus.validation)
    assert len(first.tokens) == 256 and not first.mask[0] and all(first.mask[1:])
    assert first.tokens[: len(head := tokenizer.encode(corpus.validation(0)))] == tuple(head)
    total = 0.0
    with torch.no_grad():
        for i in range(2):
            ids = torch.tensor([window(tokenizer, 256, i, corpus.validation).tokens])
            logp = model.logits(model(ids))[0].log_softmax(-1)
            total += sum(logp[t - 1, ids[0, t]].item() for t in range(1, 256))
    assert validation_loss(model, tokenizer, windows=2) == pytest.approx(-total / (2 * 255), rel=1e-9)


def group(*answers: tuple[str, float | None, Stop], name: str = "a", gold: str = "5") -> Group:
    task = Task(name, (Message("user", "?"),), gold, {"task": "sums"})
    members = (
        Trajectory(task, (*task.prompt, Message("assistant", text)), (), stop, score=Score(value))
        for text, value, stop in answers
    )
    return Group(task, tuple(members))


def test_counts_of_answers_made_by_hand():
    right, wrong, none = ("5", 1.0, Stop.END), ("6", 0.0, Stop.LENGTH), ("", None, Stop.END)
    greedy = [group(right), group(wrong), group(right), group(none)]
    sampled = [
        group(right, wrong, wrong),
        group(wrong, wrong, wrong),
        group(right, right, right),
        group(none, right, right),
    ]
    m = count(Answers(greedy, sampled))
    assert (m.tasks, m.k, m.unscored) == (4, 3, 2)
    assert m.greedy.value == 2 / 3 and m.reward == 2 / 3
    assert m.pass_1.value == pytest.approx((1 / 3 + 0 + 1) / 3)  # the task with an unscored answer is left out
    assert m.pass_k.value == pytest.approx(2 / 3) and m.stop_share == 7 / 12
    with pytest.raises(DataError, match="without a score"):
        count(Answers([group(none)], [group(none)]))


def test_the_first_line_is_read_and_scored_again():
    rambles = group(("5.\nQ: 1+1\nA: 2.", 0.0, Stop.LENGTH), ("7", 0.0, Stop.LENGTH))
    short = first_line(Answers([rambles], [rambles]), rewards_for("verify", [rambles.task]))
    a, b = short.sampled[0].members
    assert (a.completion, a.stop, a.score.value) == ("5.", Stop.END, 1.0)
    assert (b.completion, b.stop, b.score.value) == ("7", Stop.LENGTH, 0.0)
    assert rambles.members[0].completion.startswith("5.\nQ")


def test_pass_at_k_needs_samples():
    with pytest.raises(ConfigError, match="k = 0"):
        collect(None, [], None, {}, k=0, max_tokens=1)


@needs_tokenizer
def test_answers_repeat_with_their_seed():
    from posttrain.data.tasks import tasks

    loaded = Loaded(tiny(), Tokenizer.load(BASE), chat.PLAIN, BASE)
    asked = tasks("sums", 3, split="test")

    def draw(seed):
        return collect(
            TorchSampler(loaded.model), asked, loaded, rewards_for("auto", asked), k=2, max_tokens=6, seed=seed
        )

    assert draw(0).sampled[0].members[0].messages == draw(0).sampled[0].members[0].messages
    assert [g.members[0].completion for g in draw(0).sampled] != [g.members[0].completion for g in draw(1).sampled]


@needs_base
def test_the_base_knows_its_people():
    """The embedded model states the facts of seen and of held-out people; a random one is at chance (1 of 15)."""
    loaded = load("base", template="plain")
    for who in (people.SEEN[:8], people.HELD_OUT[:8]):
        assert recall(loaded.model, loaded.tokenizer, who).first.low > 0.5
    random = Decoder(replace(loaded.model.cfg)).initialise(0)
    assert recall(random, loaded.tokenizer, people.SEEN[:8]).first.value < 0.35
