"""Measures the embedded base model: what it knows, what it can do when asked plainly, how its answers end.

Everything is a pure function of the weights and the seed. Facts are asked in two ways, since knowing and answering are
different things: as the continuation of a statement (is the true value the most probable of all values?), and as a
question in the form "Q: ... A:" that the corpus uses. A base model runs on after its answer, so each figure of the
tasks is given for the whole answer and for its first line.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from posttrain.assets.world import corpus, people
from posttrain.assets.world.gold import well_formed
from posttrain.batch import collate
from posttrain.data.tasks import NAMES, Split, tasks
from posttrain.evals.measure import Answers, Measured, collect, count, first_line
from posttrain.evals.stats import Interval, wilson
from posttrain.models.decoder import Decoder
from posttrain.models.load import Loaded
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Segment, Stop, Task
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import outputs

WINDOW = 256  # tokens per window of validation text
SETS: tuple[tuple[str, str, Split], ...] = (
    ("facts, seen", "facts", "train"),
    ("facts, held out", "facts", "test"),
    ("words, seen", "words", "train"),
    ("words, held out", "words", "test"),
    *((name, name, "test") for name in NAMES if name not in ("facts", "words")),
)
"""Row of the card, its task and split."""


@dataclass(frozen=True)
class Recall:
    """Facts as continuations of statements, over every attribute of a group of people."""

    facts: int
    first: Interval
    """Share of facts whose true value is the most probable; by chance 1 / `values`."""
    mean_rank: float
    values: float
    """Mean number of values to choose from."""


@dataclass(frozen=True)
class Row:
    """One set of tasks under the plain template."""

    whole: Measured
    """Answers as they are."""
    line: Measured
    """Answers up to their first newline."""
    formed: float
    """Share of sampled answers that are whole, finished sentences of the world and nothing else."""
    formed_line: float
    """The same of their first lines."""


@dataclass(frozen=True)
class BaseCard:
    """All figures of the card."""

    parameters: int
    architecture: Mapping[str, Any]
    vocabulary: int
    corpus: Mapping[str, float]
    """Kind of document to its share of documents."""
    training: Mapping[str, Any] | None
    """What training.json beside the weights says: steps, tokens, seconds."""
    validation_loss: float
    """Nats per token on documents that training never draws."""
    recall: Mapping[str, Recall]
    tasks: Mapping[str, Row]
    seed: int
    seconds: float
    """How long the measurement took; the only figure that is not reproducible."""

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and numbers."""
        return asdict(self)


def measure(loaded: Loaded, *, n: int = 50, k: int = 8, max_tokens: int = 96, seed: int = 0) -> BaseCard:
    """The card of a model. `loaded` must have the plain template, which is how one asks a base model.

    n: tasks of each kind. k: sampled answers per task. About half a minute on one core with the defaults.
    """
    began = time.monotonic()
    model, cfg = loaded.model, loaded.model.cfg
    sampler = TorchSampler(model)
    note = loaded.folder / "training.json"
    keys = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    keys += ("num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings")
    return BaseCard(
        parameters=sum(p.numel() for p in model.parameters()),
        architecture={key: getattr(cfg, key) for key in keys},
        vocabulary=cfg.vocab_size,
        corpus=corpus.kinds(),
        training=json.loads(note.read_text()) if note.is_file() else None,
        validation_loss=validation_loss(model, loaded.tokenizer),
        recall={
            "seen people": recall(model, loaded.tokenizer, people.SEEN),
            "held-out people": recall(model, loaded.tokenizer, people.HELD_OUT),
        },
        tasks={
            row: _row(sampler, loaded, tasks(name, n, seed, split), k, max_tokens, seed) for row, name, split in SETS
        },
        seed=seed,
        seconds=time.monotonic() - began,
    )


def _row(sampler: TorchSampler, loaded: Loaded, asked: list[Task], k: int, max_tokens: int, seed: int) -> Row:
    rewards = rewards_for("verify", asked)
    answers = collect(sampler, asked, loaded, rewards, k=k, max_tokens=max_tokens, seed=seed)
    line = first_line(answers, rewards)
    return Row(count(answers), count(line), _formed(answers), _formed(line))


def _formed(answers: Answers) -> float:
    return fmean(well_formed(m.completion, m.stop is Stop.END) for g in answers.sampled for m in g.members)


@torch.inference_mode()
def recall(model: Decoder, tokenizer: Tokenizer, group: Iterable[people.Person]) -> Recall:
    """Rank of each true value among all values of its attribute, by the probability of the statement's end.

    The statement is the first verb phrase, "Mira lives in Tolva."; value and full stop are scored given the words
    before them. Rank 1 is best; values as probable as the true one do not count against it.
    """
    ranks: list[int] = []
    sizes: list[int] = []
    for person in group:
        for attribute, values in people.ATTRIBUTES.items():
            logp = _ends(model, tokenizer, f"{person.name} {people.VERB_PHRASES[attribute][0]}", values)
            true = logp[values.index(person.facts[attribute])]
            ranks.append(1 + int((logp > true).sum()))
            sizes.append(len(values))
    return Recall(len(ranks), wilson(sum(r == 1 for r in ranks), len(ranks)), fmean(ranks), fmean(sizes))


def _ends(model: Decoder, tokenizer: Tokenizer, phrase: str, values: Iterable[str]) -> torch.Tensor:
    """[values] log-probability of each value with its full stop, after the phrase's beginning."""
    begin = len(tokenizer.encode(phrase.partition(" {}")[0]))
    ids = [tuple(tokenizer.encode(phrase.format(value) + ".")) for value in values]
    segments = [Segment(row, tuple(t >= begin for t in range(len(row)))) for row in ids]
    return outputs(model, collate(segments), ("logp",), None).logp.sum(1)


def window(tokenizer: Tokenizer, size: int, stream: int, documents: Callable[[int], str]) -> Segment:
    """Whole documents, each ended by <|endoftext|>, until `size` tokens are full; the last one is cut.

    Every window begins at the beginning of a document, so position 0 looks as it does in a prompt.
    """
    tokens: list[int] = []
    n = 0
    while len(tokens) < size:
        tokens += [*tokenizer.encode(documents(stream * 64 + n)), tokenizer.eos_id]
        n += 1
    return Segment(tokens=tuple(tokens[:size]), mask=(False,) + (True,) * (size - 1))


@torch.inference_mode()
def validation_loss(model: Decoder, tokenizer: Tokenizer, windows: int = 64) -> float:
    """Mean cross-entropy in nats per token on documents that training never draws."""
    batch = collate([window(tokenizer, WINDOW, i, corpus.validation) for i in range(windows)])
    out = outputs(model, batch, ("logp",), 16384)
    return float(-(out.logp * batch.mask).sum() / batch.mask.sum())
