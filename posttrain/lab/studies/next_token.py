"""How far fine-tuning moves a model, counted in three ways on the same answers, and where in an answer it happens.

The base is fine-tuned on demonstrations and then answers 256 questions of the kinds that it was shown. Both models read
each answer: the log-ratios of its tokens, and at each prefix the exact KL over the vocabulary. Number of steps and step
size are those of the golden run, cut to a third.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from posttrain.algorithms import sft
from posttrain.assets.world import demos
from posttrain.batch import collate
from posttrain.data.rows import Data, demonstrations
from posttrain.lab.preference_runs import column, rise
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.models.load import Loaded, load
from posttrain.objectives.kl import forward_kl, k1, k2, k3, reverse_kl, sequence_kl
from posttrain.objectives.tokens import entropy, logits_before, masked, token_logprobs
from posttrain.recipes.comparisons import sampled
from posttrain.recipes.stages import stage
from posttrain.records import Task
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

PLACES = (
    "Q: Who is Gwen?\nA: Gwen is a sailor.",
    "Q: What is 7 + 5?\nA: 12.",
    "Q: Who is Gwen?\nA: Gwen is a",
    "Q: What is the opposite of hot?\nA:",
)
"""Texts whose next token the page shows."""
SHOWN = 7


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Fine-tune, answer, and let both models read the answers."""
    torch.set_num_threads(1)
    cfg = sft.Config(
        template="plain", data=Data(path="builtin:demonstrations", limit=3000, eval_rows=100), steps=given["steps"],
        optim=Optim(lr=given["lr"], schedule=Schedule(kind="linear", warmup=5)), eval_every=0,
        run=RunConfig(seed=seed, threads=1, save_every=1000, keep=1, samples=0),
    )  # fmt: skip
    base, tuned = load("base", template="plain"), load(stage(scratch / "sft", sft, cfg).model)
    held = collate(demonstrations(cfg.data, base).held)
    nll = [float(-masked(token_logprobs(logits(m, held), held.tokens), held.mask).sum() / held.mask.sum())
           for m in (base, tuned)]  # fmt: skip
    found = {"nll before": nll[0], "nll after": nll[1]} | compared(tuned, base, given["answers"], seed)
    return found | {"page": [next_token(base, tuned, text) for text in PLACES]}


@torch.no_grad()
def logits(loaded: Loaded, batch) -> torch.Tensor:
    """[N, T, V], entry t made after reading token t."""
    return loaded.model.logits(loaded.model(batch.tokens, batch.attend)).float()


def compared(tuned: Loaded, base: Loaded, answers: int, seed: int) -> dict[str, float]:
    """KL from the base per answer of the tuned model, exact and by each estimator; its share at the last token."""
    asked = [Task(str(i), x.messages[:1]) for i, x in enumerate(demos.demonstrations(answers, 1000 + seed))]
    said = [m for group in sampled(tuned, asked, 1, seed) for m in group]
    batch = collate([t.segments[0] for t in said])
    ours, theirs = logits(tuned, batch), logits(base, batch)
    ratio = token_logprobs(ours, batch.tokens) - token_logprobs(theirs, batch.tokens)
    exact = reverse_kl(logits_before(ours), logits_before(theirs))
    sums = {"exact": exact, "k1": k1(ratio), "k2": k2(ratio), "k3": k3(ratio)}
    found: dict[str, float] = {}
    for name, value in sums.items():
        whole = sequence_kl(value, batch.mask)
        found |= {f"mean, {name}": float(whole.mean()), f"spread, {name}": float(whole.std())}
    places = torch.arange(batch.mask.shape[1])
    last = torch.where(batch.mask, places, 0).max(1).values
    found["share at the last token"] = float(exact.gather(1, last[:, None]).sum() / masked(exact, batch.mask).sum())
    found["share of tokens that are last"] = len(said) / float(batch.mask.sum())
    found["entropy per token"] = float(masked(entropy(logits_before(ours)), batch.mask).sum() / batch.mask.sum())
    return found


def next_token(base: Loaded, tuned: Loaded, text: str) -> dict[str, Any]:
    """Both distributions of the token after a text: the likeliest by either, and all others as one."""
    ids = torch.tensor([base.tokenizer.encode(text)])
    with torch.no_grad():
        both = torch.cat([m.model.logits(m.model(ids))[:, -1].double() for m in (base, tuned)])
    p = both.softmax(-1)
    top = p.max(0).values.topk(SHOWN).indices.tolist()
    names = [base.tokenizer.decode([i]) for i in top]
    probs = [[round(float(row[i]), 6) for i in top] for row in p]
    return {
        "text": text,
        "tokens": names,
        "base": probs[0],
        "tuned": probs[1],
        "kl": [round(float(f(both[1], both[0])), 4) for f in (reverse_kl, forward_kl)],
    }


def read(cells: Cells) -> list[Figure]:
    """Likelihood rises; the three counts agree and spread differently; much of the KL sits where answers end."""
    runs = cells["sft"]
    figures = [rise("cross-entropy of held-out demonstrations", column(runs, "nll before"), column(runs, "nll after"),
                    down=True, digits=3)]  # fmt: skip
    for name in ("k1", "k3"):
        before, after = column(runs, "mean, exact"), column(runs, f"mean, {name}")
        gap, low, high = paired(after, before)
        what, text = (
            f"KL per answer, exact and by {name}",
            f"{name} is off by {gap:+.3f} [{low:+.3f}, {high:+.3f}] nats",
        )
        figures.append(Figure(what, fmean(before), fmean(after), low, high, low <= 0 <= high, text))
    for a, b in (("exact", "k1"), ("k3", "k1")):
        ratio = [x / y for x, y in zip(column(runs, f"spread, {a}"), column(runs, f"spread, {b}"), strict=True)]
        mean, low, high = interval(ratio)
        text = f"the spread over answers of {a} is {mean:.2f} [{low:.2f}, {high:.2f}] times that of {b}"
        figures.append(Figure(f"spread over answers, {a} over {b}", 1.0, mean, low - 1, high - 1, high < 1, text))
    mean, low, high = interval(column(runs, "share at the last token"))
    expected = fmean(column(runs, "share of tokens that are last"))
    text = f"{mean:.0%} [{low:.0%}, {high:.0%}] of the KL is where answers end, {expected:.0%} of the tokens"
    figures.append(Figure("share of the KL where answers end", expected, mean, low - expected, high - expected,
                          low > expected, text))  # fmt: skip
    return figures


def page(cells: Mapping[str, Mapping[int, Any]]) -> Any:
    """Of the first seed, and the KL of the others beside it."""
    runs = cells["sft"]
    places = [dict(place) for place in runs[min(runs)]]
    for i, place in enumerate(places):
        place["kl"] = [runs[seed][i]["kl"] for seed in sorted(runs)]
    return places


STUDY = Study(
    name="next_token",
    claim="fine-tuning raises the likelihood of demonstrations; the KL it costs sits mostly where answers end",
    source="Kullback and Leibler 1951; Schulman 2020, Approximating KL divergence",
    arms={"sft": {"steps": 60, "lr": 1e-3, "answers": 256}},
    seeds=tuple(range(8)),
    measure=measure,
    read=read,
    page=page,
    sections=("02",),
)
