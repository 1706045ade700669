"""The whole pipeline on the embedded base: SFT, reward model, DPO, GRPO, and what each of them changed.

What the papers do (Ouyang et al. 2022; Rafailov et al. 2023; Shao et al. 2024): demonstrations and comparisons by
people, verifiable problems. What we do: the same in a generated world, whose rater is biased on purpose and whose gold
grader only measures. Left out: PPO against the reward model (sections 08 and 14 of the book).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from posttrain.algorithms import group, preference, reward_model, sft
from posttrain.assets.world import demos, people
from posttrain.data.rows import Data
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.presets import PRESETS
from posttrain.recipes import comparisons, measure
from posttrain.recipes.gather import (
    BASE,
    MAX_TOKENS,
    Asked,
    Setting,
    Stage,
    ask_all,
    conclude,
    curves,
    row,
    side_by_side,
)
from posttrain.recipes.measure import Questions
from posttrain.recipes.stages import stage
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule

ANSWERS = 8
"""Sampled answers to a prompt, compared two by two."""
CURVES = {
    "1-sft": ("nll",),
    "2-reward-model": ("accuracy", "loss"),
    "3-dpo": ("margin", "logp_chosen", "logp_rejected"),
    "4-grpo": ("reward_mean", "entropy", "length_mean", "zero_variance_share"),
}
"""The curves worth a look, a few per stage."""


@dataclass(frozen=True)
class Size:
    """How much of everything. The story is written once."""

    demonstrations: int
    sft_epochs: float
    pair_prompts: int
    grpo_steps: int
    about: int
    problems: int
    passes: int


SIZES = {
    "full": Size(3000, 2.0, 1056, 100, about=220, problems=200, passes=100),
    "tiny": Size(960, 4.0, 96, 3, about=32, problems=16, passes=8),
}
"""full: about five minutes on two cores. tiny: seconds, to see that everything runs; its figures mean nothing."""


def run(out: Path, size: Size, *, seed: int, threads: int, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Train or resume every stage in `out`, measure them, write out/report.html, and return what it shows."""
    at = Setting(out=out, seed=seed, threads=threads, command=command, say=say)
    stages = train_stages(size, at)
    questions = Questions.make(size.about, size.problems, size.passes, seed)
    asked = ask_all(stages, questions, seed, say)
    found = {
        "stages": [row(s, asked, seed) for s in stages],
        "reward_model": comparisons.judge(
            out / "2-reward-model", out / "preferences.jsonl", asked["sft"][0], questions.about[: size.passes], seed
        ),
        "samples": side_by_side(stages, asked),
        "curves": curves(out, CURVES),
        "notes": notes(asked, seed),
    }
    return conclude(at, "demo", "posttrain demo", found)


def train_stages(size: Size, at: Setting) -> list[Stage]:
    """The four training stages; what is finished is reused, what was interrupted goes on."""
    out, seed, say, settings = at.out, at.seed, at.say, at.run
    torch.set_num_threads(at.threads)

    say("1/4  supervised fine-tuning on demonstrations")
    demonstrations = Data(path="builtin:demonstrations", limit=size.demonstrations, eval_rows=100)
    linear = Schedule(kind="linear", warmup=5)
    cfg = sft.Config(
        model="base", template="posttrain", data=demonstrations, epochs=size.sft_epochs, batch_size=32,
        optim=Optim(lr=1e-3, schedule=linear), run=settings,
    )  # fmt: skip
    first = stage(out / "1-sft", sft, cfg)

    def compare() -> list[dict[str, Any]]:
        say(f"     the rater compares {ANSWERS * size.pair_prompts} answers of the SFT model in pairs")
        asked = demos.about_prompts(people.SEEN, size.pair_prompts, seed)
        return comparisons.pairs(comparisons.sampled(load(first.model), asked, ANSWERS, seed), comparisons.rater(seed))

    compared = comparisons.data(at.write("preferences.jsonl", compare))

    say("2/4  a reward model from the rater's comparisons")
    cfg = reward_model.Config(
        model=str(first.model),
        data=compared,
        epochs=1.0,
        batch_size=16,
        optim=Optim(lr=5e-4, schedule=linear),
        run=settings,
    )
    stage(out / "2-reward-model", reward_model, cfg)

    say("3/4  direct preference optimisation on the same comparisons")
    cfg = preference.Config(
        model=str(first.model), data=compared, loss=PreferenceLoss(name="dpo", beta=0.3), epochs=2.0, batch_size=16,
        optim=Optim(lr=2e-4, schedule=linear), run=settings,
    )  # fmt: skip
    second = stage(out / "3-dpo", preference, cfg)

    say("4/4  reinforcement learning on verifiable problems")
    cfg = group.Config(
        model=str(second.model), data=Data(path="builtin:sums+chains", limit=4000, eval_rows=0),
        objective=replace(PRESETS["dr_grpo"], average=Average("constant", horizon=MAX_TOKENS)),
        prompts=8, group_size=16, steps=size.grpo_steps, sampling=SamplingParams(max_tokens=MAX_TOKENS),
        optim=Optim(lr=5e-4, schedule=Schedule(kind="constant", warmup=5)), run=settings,
    )  # fmt: skip
    third = stage(out / "4-grpo", group, cfg)
    return [
        BASE,
        Stage("sft", "SFT", first.model),
        Stage("dpo", "DPO", second.model),
        Stage("grpo", "GRPO", third.model),
    ]


def notes(asked: Asked, seed: int) -> list[str]:
    """What the figures must be read with."""
    base, final = asked["base"][1], asked["grpo"][1]
    before, after = measure.pass_at(base, 8), measure.pass_at(final, 8)
    likeliest = measure.win_rate(asked["dpo"][1].about_greedy, asked["sft"][1].about_greedy, seed)
    return [
        "Of every answer to a problem the first line is graded. Reading all it says, the base solves "
        f"{measure.solved_as_said(base):.0%}, since it goes on to other questions.",
        f"Pass@8 was {before:.0%} in the base and is {after:.0%} in the final model: much of the rise in accuracy is a "
        "change of style (to write the steps down, and to stop), not a new skill.",
        f"Wins compare portraits sampled at temperature 1. Of greedy ones DPO wins {likeliest.value:.0%} "
        f"({likeliest.low:.0%} to {likeliest.high:.0%}).",
        "The settings of DPO were chosen on six other held-out people; those of GRPO while looking at these problems.",
        "People and problems in these figures were held out of every question in pre-training and in all four stages; "
        "the held-out people's facts stand in the base's corpus as plain statements.",
        "One seed. Intervals cover the draw of prompts (for win rates: of people), not of seeds.",
    ]
