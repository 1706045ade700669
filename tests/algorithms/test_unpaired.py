"""Single verdicts teach which words are liked; the statistic of a step is made of the whole of it."""

import random
from dataclasses import replace

import pytest
import torch

from algorithms import toy
from algorithms.killed import any_split_learns_the_same, ends_in_the_same_bits
from posttrain.algorithms import unpaired
from posttrain.algorithms.reference import Comparison, Reference
from posttrain.algorithms.unpaired import VerdictLoss
from posttrain.data.rows import Data, verdicts
from posttrain.errors import ConfigError, DataError, InvariantError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.train.learner import Learner, Optim
from posttrain.train.run import RunConfig


def judgements(seed: int) -> list[dict]:
    """Answers of one word, liked in one half of the words and disliked in the other, under four prompts."""
    draw = random.Random(seed)
    liked = set(draw.sample(toy.WORDS, 8))
    rows = [{"prompt": p, "completion": w, "label": w in liked} for p in "abcd" for w in toy.WORDS]
    draw.shuffle(rows)
    return rows


def config(folder, seed: int = 0, name: str = "kto", **changes) -> unpaired.Config:
    data = Data(path=toy.rows(folder / "rows.jsonl", judgements(seed)), eval_rows=16)
    base = unpaired.Config(
        model=toy.model(folder / "model", seed), template="posttrain", data=data,
        loss=VerdictLoss(name=name, beta=0.5), batch_size=16, steps=30, eval_every=30, optim=Optim(lr=3e-3),
        run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def gap(name: str, seed: int, folder) -> float:
    """Mean reward of good held-out answers less that of bad ones, in units of beta."""
    last = toy.run(unpaired, config(folder, seed, name), folder / "run")[1][-1]
    return (last["eval_reward_chosen"] - last["eval_reward_rejected"]) / 0.5


LEAST = 1.0
"""A nat; at the start it is 0. `cd tests && python -m algorithms.test_unpaired` shows ten seeds."""


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_held_out_answers_are_told_apart(tmp_path, name, seed):
    assert gap(name, seed, tmp_path) > LEAST


def test_the_first_step_stands_at_the_reference(tmp_path):
    _, metrics = toy.run(unpaired, config(tmp_path, steps=1), tmp_path / "run")
    assert metrics[0]["loss"] == pytest.approx(0.5, abs=1e-6) and metrics[0]["reference_point"] == 0


def test_z0_is_the_drift_on_answers_of_other_prompts(tmp_path):
    """Written out: each prompt with the answer of the next row that asks something else."""
    cfg = config(tmp_path)
    loaded = load(cfg.model, template="posttrain")
    rows = verdicts(cfg.data, loaded).train
    given = judgements(0)[: len(rows)]
    policy = Learner(loaded.model, cfg.optim, 10)
    compare = Comparison(Reference(), policy, loaded, rows, Lora())
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.1)
    batch, others = unpaired.make_batch(rows[:8], compare)
    point, _ = unpaired.reference_point(policy, batch, others, cfg.loss, {})
    words = loaded.tokenizer
    drift = []
    for i in range(8):
        j = next(k for k in [*range(i + 1, len(given)), *range(i)] if given[k]["prompt"] != given[i]["prompt"])
        own = rows[i].pair[1]
        assert words.decode(own.tokens).count(given[j]["completion"]) >= 1
        logps = []
        for model in (policy.model, load(cfg.model).model):
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([own.tokens])))[0].log_softmax(-1)
            logps.append(sum(float(logits[t - 1, own.tokens[t]]) for t, on in enumerate(own.mask) if on))
        drift.append(logps[0] - logps[1])
    assert point == pytest.approx(max(0.0, sum(drift) / 8), abs=1e-4)


def test_any_split_learns_the_same(tmp_path):
    any_split_learns_the_same(
        unpaired, lambda m: config(tmp_path, steps=4, optim=Optim(lr=1e-3, micro_tokens=m)), tmp_path
    )


@pytest.mark.parametrize(("name", "place", "at"), [("bco", "_append", 9), ("kto", "step", 5)])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, name, place, at):
    run = RunConfig(threads=1, save_every=2, samples=1)
    cfg = config(tmp_path, name=name, steps=6, eval_every=3, run=run, reference=Reference(when="live", every=2))
    ends_in_the_same_bits(unpaired, cfg, tmp_path, monkeypatch, place, at)


def test_one_kind_of_verdict_is_no_lesson(tmp_path):
    rows = [row | {"label": True} for row in judgements(0)]
    cfg = replace(config(tmp_path), data=Data(path=toy.rows(tmp_path / "all.jsonl", rows)))
    with pytest.raises(InvariantError, match="64 good and 0 bad answers.*get both"):
        toy.run(unpaired, cfg, tmp_path / "run")
    same = [row | {"prompt": "a"} for row in judgements(0)]
    with pytest.raises(DataError, match="all 64 rows ask the same"):
        toy.run(unpaired, replace(cfg, data=Data(path=toy.rows(tmp_path / "same.jsonl", same))), tmp_path / "other")


def test_unequal_numbers_are_weighed_by_advice(tmp_path):
    rows = [row for row in judgements(0) if row["label"]] + [row for row in judgements(0) if not row["label"]][:8]
    cfg = replace(config(tmp_path), data=Data(path=toy.rows(tmp_path / "few.jsonl", rows)), steps=2, eval_every=0)
    toy.run(unpaired, cfg, tmp_path / "run")
    (found,) = [c for c in toy.lines(tmp_path / "run" / "invariants.jsonl") if c["check"] == "verdicts_are_balanced"]
    assert not found["ok"] and "undesirable_weight = 4" in found["advice"]


def test_settings_that_mean_nothing():
    with pytest.raises(ConfigError, match='change nothing with "bco"'):
        VerdictLoss(name="bco", desirable_weight=2.0)
    with pytest.raises(ConfigError, match="loss.beta = 0"):
        VerdictLoss(beta=0.0)
    with pytest.raises(ConfigError, match="batch_size = 1"):
        unpaired.Config(batch_size=1)


if __name__ == "__main__":
    toy.record(**{name: lambda s, f, n=name: gap(n, s, f) for name in ("kto", "bco", "apo_zero")})
