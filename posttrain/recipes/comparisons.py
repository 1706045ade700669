"""Comparisons between a model's own answers, as a rater makes them, and what a reward model learned from them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.algorithms.reward_model import score_segments
from posttrain.assets.world import people
from posttrain.assets.world.rater import WEAKNESSES, Weaknesses, prefers_first
from posttrain.data.rows import Data
from posttrain.envs.rollout import rollout
from posttrain.errors import RunError
from posttrain.evals.stats import bootstrap, wilson
from posttrain.models.load import Loaded, load
from posttrain.recipes import measure
from posttrain.recipes.gather import MAX_TOKENS, interval
from posttrain.recipes.stages import curve, seconds
from posttrain.records import Stop, Task, Trajectory
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler

Prefers = Callable[[Trajectory, Trajectory], bool]
"""Whether a rater prefers the first of two answers to one prompt."""


def rater(seed: int, weak: Weaknesses = WEAKNESSES) -> Prefers:
    """The world's biased rater of portraits, or one with other weaknesses."""

    def prefers(a: Trajectory, b: Trajectory) -> bool:
        person = people.PEOPLE[a.task.meta["person"]]
        return prefers_first(person, a.completion, b.completion, seed=seed, weak=weak)

    return prefers


def pairs(answers: Sequence[Sequence[Trajectory]], prefers: Prefers) -> list[dict[str, Any]]:
    """Rows of data from sampled answers, two by two, the rater's choice first.

    Raises RunError where too few answers can be compared: equal ones, and those without a stop token to learn from.
    """
    rows = []
    for a, b in (said[i : i + 2] for said in answers for i in range(0, len(said) - 1, 2)):
        if a.completion == b.completion or {a.stop, b.stop} != {Stop.END}:
            continue
        if not prefers(a, b):
            a, b = b, a
        rows.append({"prompt": a.messages[0].content, "chosen": a.completion, "rejected": b.completion})
    if len(rows) < 12:
        raise RunError(
            f"only {len(rows)} of {sum(len(said) // 2 for said in answers)} pairs of answers can be compared, since "
            "the model seldom stops: there is nothing to prefer. Train it longer (SIZES in the recipe)."
        )
    return rows


def held_out(path: Path) -> int:
    """How many of the comparisons in a file are kept from training: a sixth."""
    return len(path.read_text().splitlines()) // 6


def data(path: Path) -> Data:
    """The comparisons as training data."""
    return Data(path=str(path), eval_rows=held_out(path))


def sampled(
    loaded: Loaded, asked: Sequence[Task], n: int, seed: int, temperature: float = 1.0
) -> list[tuple[Trajectory, ...]]:
    """n sampled answers to each task."""
    params = SamplingParams(max_tokens=MAX_TOKENS, stop_ids=loaded.stop_ids, temperature=temperature)
    groups = rollout(
        TorchSampler(loaded.model),
        asked,
        n=n,
        params=params,
        seed=seed,
        template=loaded.template,
        tokenizer=loaded.tokenizer,
    )
    return [g.members for g in groups]


def judge(
    folder: Path,
    compared: Path,
    loaded: Loaded,
    prompts: Sequence[Task],
    seed: int,
    gold: Callable[[Trajectory], float] = measure.gold_of,
) -> dict[str, Any]:
    """The reward model of a run on comparisons it has not seen, and as the judge of eight answers of a model."""
    scorer = load(folder).model
    n = held_out(compared)
    accuracy = curve(folder, "eval_accuracy")[-1][1]
    proxy, real = [], []
    for members in sampled(loaded, prompts, 8, seed):
        proxy.append(score_segments(scorer, [m.segments[0] for m in members]).tolist())
        real.append([gold(m) for m in members])
    best = [r[max(range(8), key=p.__getitem__)] for p, r in zip(proxy, real, strict=True)]
    agree = [
        float((p[i] > p[j]) == (r[i] > r[j]))
        for p, r in zip(proxy, real, strict=True) for i in range(8) for j in range(i) if r[i] != r[j]
    ]  # fmt: skip
    return {
        "seconds": seconds(folder),
        "accuracy": interval(wilson(round(accuracy * n), n), n),
        "gold_agreement": interval(bootstrap(agree, seed), len(agree)) if agree else None,
        "best_of_8": {
            "gold_mean_of_1": sum(map(sum, real)) / (8 * len(real)),
            "gold_best_of_8": sum(best) / len(best),
            "proxy_mean_of_1": sum(map(sum, proxy)) / (8 * len(proxy)),
            "proxy_best_of_8": sum(map(max, proxy)) / len(proxy),
            "n": len(proxy),
        },
    }
