"""Zephyr: direct distillation of LM alignment, Tunstall et al. 2023 (arXiv 2310.16944), at laptop size.

What the paper did: Mistral 7B fine-tuned on UltraChat, dialogues written by a larger model (dSFT); UltraFeedback, where
four models answer each prompt and GPT-4 scores the answers, of which the best is paired with one of the others at
random (AIF); and DPO with beta 0.1 from the SFT model, for three epochs (dDPO). No person rated anything.

What we do: the same three steps in the generated world. The four answers to a prompt come from the SFT model at two
temperatures, from an early checkpoint's temperament (temperature 1.3), and from the base model itself; the judge is the
world's rater, who gives scores, with biases; the best is paired with one of the others at random; DPO, beta 0.1.

What we left out: a judge that is a language model (it would need one larger than ours), and MT-Bench. Gold, an exact
grader that the judge only resembles, measures.
"""

from dataclasses import dataclass
from typing import Any

import torch

from posttrain import rng
from posttrain.algorithms import preference, sft
from posttrain.assets.world import demos, people
from posttrain.assets.world.rater import rating
from posttrain.data.rows import Data
from posttrain.errors import RunError
from posttrain.models.load import load
from posttrain.objectives.preference import PreferenceLoss
from posttrain.recipes import comparisons, measure
from posttrain.recipes.gather import BASE, Asked, Setting, Stage, ask_all, conclude, curves, row, side_by_side
from posttrain.recipes.measure import Questions
from posttrain.recipes.stages import stage
from posttrain.records import Stop, Trajectory
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule

WRITERS = (("sft", 0.7), ("sft", 1.0), ("sft", 1.3), ("base", 1.0))
"""Who answers each prompt, at which temperature."""
STORY = [
    {"to": "sft", "start": "base", "key": "well_formed", "words": "distilled demonstrations took well-formed answers"},
    {"to": "dpo", "key": "win_rate", "words": "AI feedback brought a win rate of {} against the SFT model"},
]
CURVES = {"1-sft": ("nll",), "2-dpo": ("margin", "accuracy", "logp_chosen", "logp_rejected")}


@dataclass(frozen=True)
class Size:
    """How much of everything. The story is written once."""

    demonstrations: int
    epochs: float
    prompts: int
    about: int
    problems: int
    passes: int


SIZES = {
    "laptop": Size(3000, 2.0, 1056, about=220, problems=120, passes=60),
    "tiny": Size(960, 4.0, 96, about=32, problems=16, passes=8),
}
"""laptop: about four minutes on two cores. tiny: to see that everything runs; its figures mean nothing."""


def run(size: Size, at: Setting) -> dict[str, Any]:
    """Train or resume every stage, measure them, write the report, and return what it shows."""
    torch.set_num_threads(at.threads)
    linear = Schedule(kind="linear", warmup=5)
    at.say("1/2  distilled supervised fine-tuning")
    cfg = sft.Config(
        template="posttrain", data=Data(path="builtin:demonstrations", limit=size.demonstrations, eval_rows=100),
        epochs=size.epochs, optim=Optim(lr=1e-3, schedule=linear), run=at.run,
    )  # fmt: skip
    first = stage(at.out / "1-sft", sft, cfg)

    at.say(f"     AI feedback: {len(WRITERS)} writers answer {size.prompts} prompts, the judge scores them")
    pairs = at.write("feedback.jsonl", lambda: feedback({"sft": first.model, "base": "base"}, size.prompts, at.seed))
    at.say("2/2  direct preference optimisation")
    cfg = preference.Config(
        model=str(first.model), data=comparisons.data(pairs), loss=PreferenceLoss(name="dpo", beta=0.1), epochs=3.0,
        batch_size=16, optim=Optim(lr=2e-4, schedule=linear), run=at.run,
    )  # fmt: skip
    second = stage(at.out / "2-dpo", preference, cfg)

    stages = [BASE, Stage("sft", "dSFT", first.model), Stage("dpo", "dDPO", second.model)]
    questions = Questions.make(size.about, size.problems, size.passes, at.seed)
    asked = ask_all(stages, questions, at.seed, at.say)
    found = {
        "story": STORY,
        "stages": [row(s, asked, at.seed) for s in stages],
        "samples": side_by_side(stages, asked),
        "curves": curves(at.out, CURVES),
        "notes": notes(asked, at.seed),
    }
    return conclude(at, "zephyr", "Zephyr", found)


def feedback(models: dict[str, Any], prompts: int, seed: int) -> list[dict[str, Any]]:
    """The judge's best answer to each prompt against one of the others; answers that do not end are not compared.

    Raises RunError where hardly any prompt has two different answers that end.
    """
    asked = demos.about_prompts(people.SEEN, prompts, seed)
    loaded = {name: load(path, template="plain" if name == "base" else "auto") for name, path in models.items()}
    said: list[list[Trajectory]] = [[] for _ in asked]
    for i, (name, temperature) in enumerate(WRITERS):
        draws = rng.fold(seed, "writer", i)
        for answers, (one,) in zip(said, comparisons.sampled(loaded[name], asked, 1, draws, temperature), strict=True):
            answers.append(one)
    rows = []
    for task, answers in zip(asked, said, strict=True):
        person = people.PEOPLE[task.meta["person"]]
        scored = {t.completion: rating(person, t.completion, seed=seed) for t in answers if t.stop is Stop.END}
        if len(scored) < 2:
            continue
        best = max(scored, key=scored.__getitem__)
        other = rng.python(seed, "other", task.id).choice([text for text in scored if text != best])
        rows.append({"prompt": task.prompt[0].content, "chosen": best, "rejected": other,
                     "score_chosen": scored[best], "score_rejected": scored[other]})  # fmt: skip
    if len(rows) < 12:
        raise RunError(
            f"only {len(rows)} of {prompts} prompts have two different answers that end, so there is nothing to "
            "compare. Train the SFT model longer (SIZES in recipes/zephyr.py)."
        )
    return rows


def notes(asked: Asked, seed: int) -> list[str]:
    """What the figures must be read with."""
    likeliest = measure.win_rate(asked["dpo"][1].about_greedy, asked["sft"][1].about_greedy, seed)
    return [
        f"Wins compare portraits sampled at temperature 1. Of greedy ones DPO wins {likeliest.value:.0%} "
        f"({likeliest.low:.0%} to {likeliest.high:.0%}).",
        "The judge's biases (length, politeness) are learned with its taste; gold, which measures, has none of them.",
        "Problems are no part of the feedback: what changes in their column is what DPO does to the rest.",
        "People and problems in these figures were held out of every question in pre-training and in both stages.",
        "One seed. Intervals cover the draw of prompts (for win rates: of people), not of seeds.",
    ]
