"""The short runs that studies of proxies and of selection vary: portraits of people, graded by gold.

A model fine-tuned on demonstrations writes portraits of mixed quality; gold grades them exactly, the rater with biases,
and a reward model learns the rater. What a study changes stands in its own file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.algorithms import reward_model, sft
from posttrain.algorithms.reward_model import score_segments
from posttrain.assets.world import demos, people
from posttrain.assets.world.rater import WEAKNESSES, Weaknesses
from posttrain.batch import collate
from posttrain.data.rows import Data
from posttrain.models.decoder import Decoder
from posttrain.models.load import load
from posttrain.recipes import comparisons, measure
from posttrain.recipes.stages import stage
from posttrain.records import Stop, Trajectory
from posttrain.train.checkpoint import write_text
from posttrain.train.learner import Optim, outputs
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

LINEAR = Schedule(kind="linear", warmup=5)


def settings(seed: int, **changes: Any) -> RunConfig:
    """The part of every config that is the same."""
    return RunConfig(**({"seed": seed, "threads": 1, "save_every": 1000, "keep": 1, "samples": 0} | changes))


def start(scratch: Path, seed: int, steps: int) -> Path:
    """The model that all arms begin with: fine-tuned on so many batches of demonstrations."""
    cfg = sft.Config(
        template="posttrain", data=Data(path="builtin:demonstrations", limit=3000), steps=steps,
        optim=Optim(lr=1e-3, schedule=LINEAR), eval_every=0, run=settings(seed),
    )  # fmt: skip
    return stage(scratch / "start", sft, cfg).model


def proxies(
    scratch: Path, model: Path, seed: int, prompts: int, members: int = 1, weak: Weaknesses = WEAKNESSES
) -> list[Path]:
    """Runs of reward models of the rater's comparisons of the model's own answers, each with prompts of its own."""
    loaded, found = load(model), []
    asked = demos.about_prompts(people.SEEN, prompts * members, seed)
    for i in range(members):
        path = scratch / f"comparisons-{i}.jsonl"
        if not path.exists():
            answers = comparisons.sampled(loaded, asked[i * prompts : (i + 1) * prompts], 8, seed)
            rows = comparisons.pairs(answers, comparisons.rater(seed, weak))
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        cfg = reward_model.Config(
            model=str(model), data=comparisons.data(path), batch_size=16,
            optim=Optim(lr=5e-4, schedule=LINEAR), run=settings(seed),
        )  # fmt: skip
        found.append(stage(scratch / f"proxy-{i}", reward_model, cfg).folder)
    return found


def gold_and_proxy(
    model: Path, judges: Sequence[Path], seed: int, prompts: int, n: int
) -> tuple[list[list[float]], list[list[list[float]]], list[tuple[Trajectory, ...]]]:
    """Gold's grades and each judge's scores of n sampled answers to held-out prompts, and the answers."""
    asked = demos.about_prompts(people.TEST, prompts, seed)
    answers = comparisons.sampled(load(model), asked, n, seed)
    gold = [[measure.gold_of(m) for m in members] for members in answers]
    scored = []
    for judge in judges:
        scorer = load(judge).model
        scored.append([score_segments(scorer, [m.segments[0] for m in members]).tolist() for members in answers])
    return gold, scored, answers


def kl_per_answer(policy: Decoder, reference: Decoder, answers: Sequence[Trajectory]) -> float:
    """kl(policy ‖ reference) in nats per answer, from answers that the policy sampled."""
    batch = collate([t.segments[0] for t in answers])
    gap = outputs(policy, batch, ("logp",), 16384).logp - outputs(reference, batch, ("logp",), 16384).logp
    return float((gap * batch.mask).sum()) / len(answers)


def gold_of_samples(folder: Path) -> list[tuple[float, float]]:
    """Gold of all answers of each step of a run that kept them all: of every second one, and of the others."""
    steps: dict[int, list[float]] = {}
    for row in map(json.loads, (folder / "samples.jsonl").read_text().splitlines()):
        person = people.PEOPLE[row["task"].split("-")[1]]
        value = measure.gold(person, row["messages"][-1]["content"], row["stop"] == Stop.END).value
        steps.setdefault(row["step"], []).append(value)
    return [(fmean(values[::2]), fmean(values[1::2])) for _, values in sorted(steps.items())]


def column(cells: Mapping[int, Mapping[str, Any]], name: str) -> list[Any]:
    """One figure of an arm, by seed."""
    return [cells[seed][name] for seed in sorted(cells)]
