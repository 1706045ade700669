"""Supervised fine-tuning learns eight examples by heart, learns to stop, and refuses data that teach nothing."""

import random
from dataclasses import replace

import pytest

from algorithms import toy
from posttrain.algorithms import sft
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError
from posttrain.evals.run import answer
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.records import Message, Stop, Task
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Optim


def eight(seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [{"prompt": toy.WORDS[i], "completion": " ".join(draw.choices(toy.WORDS, k=4))} for i in range(8)]


def config(folder, seed: int = 0, **changes) -> sft.Config:
    data = Data(path=toy.rows(folder / "rows.jsonl", eight(seed)))
    base = sft.Config(
        model=toy.model(folder / "model", seed), template="posttrain", data=data, batch_size=8, steps=30, eval_every=0,
        optim=Optim(lr=1e-2), run=toy.quiet(seed),
    )  # fmt: skip
    return replace(base, **changes)


def likelihood(seed: int, folder) -> float:
    """-nll per token of the last step."""
    return -toy.run(sft, config(folder, seed), folder / "run")[1][-1]["nll"]


# `cd tests && python -m algorithms.test_sft`: RECORDED
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_examples_are_learned_by_heart(tmp_path, seed):
    result, metrics = toy.run(sft, config(tmp_path, seed), tmp_path / "run")
    assert metrics[0]["nll"] > 2.5
    assert -metrics[-1]["nll"] > THRESHOLD
    loaded = load(result.model)
    tasks = [Task(str(i), (Message("user", row["prompt"]),)) for i, row in enumerate(eight(seed))]
    said = [g.members[0] for g in answer(TorchSampler(loaded.model), tasks, loaded, max_tokens=8)]
    assert [m.completion.strip() for m in said] == [row["completion"] for row in eight(seed)]
    assert all(m.stop is Stop.END for m in said)


THRESHOLD = -0.05


if __name__ == "__main__":
    toy.record(likelihood=likelihood)
