"""R1-Zero: reinforcement learning straight from a base model, DeepSeek-AI 2025 (arXiv 2501.12948), at laptop size.

What the paper did: GRPO on DeepSeek-V3-Base, with no fine-tuning before it; rewards from rules alone, accuracy and
format in equal parts; 16 answers to each of 32 questions a step, for 10,400 steps. Accuracy on AIME rose from 15.6 to
77.9 %, answers grew from hundreds to ten thousand tokens, and were hard to read.

What we do: the same from our base, which has never seen a chat template and hardly ever stops, on sums, chains and
countdown games; the form asked for is the world's own, "12+30=42, 42-7=35, so 35.", where the paper asks for <think>
and <answer>. Prompts are written as a base model knows them, "Q: ... A:".

What we left out: code and its compiler, the exchange of the reference every 400 steps (a run is shorter than that),
and the growing length limit.
"""

from dataclasses import dataclass
from typing import Any

import torch

from posttrain.algorithms import group
from posttrain.recipes import reasoning
from posttrain.recipes.gather import BASE, Setting, Stage, conclude, curves
from posttrain.recipes.stages import stage

STORY = [
    {"to": "zero", "start": "base", "key": "form", "words": "rewards alone took answers in form"},
    {"to": "zero", "start": "base", "key": "greedy", "words": "and solved problems"},
]


@dataclass(frozen=True)
class Size:
    """How much of everything. The story is written once."""

    steps: int
    problems: int
    others: int


SIZES = {"laptop": Size(steps=150, problems=150, others=90), "tiny": Size(steps=3, problems=12, others=6)}
"""laptop: about three minutes on two cores. tiny: to see that everything runs; its figures mean nothing."""


def run(size: Size, at: Setting) -> dict[str, Any]:
    """Train or resume the one stage, measure it, write the report, and return what it shows."""
    torch.set_num_threads(at.threads)
    at.say("1/1  reinforcement learning from the base model")
    cfg = reasoning.rl("base", reasoning.PROBLEMS, size.steps, at, template="plain")
    zero = stage(at.out / "1-rl", group, cfg)
    stages = [BASE, Stage("zero", "R1-Zero", zero.model, "plain")]
    said = reasoning.ask_all(stages, size.problems, size.others, at)
    found = {
        "columns": reasoning.COLUMNS,
        "story": STORY,
        "stages": [reasoning.row(s, said) for s in stages],
        "samples": reasoning.samples(said),
        "curves": curves(at.out, {"1-rl": reasoning.RL_CURVES}),
        "notes": [
            "Of every answer the first line is graded for accuracy; form takes the whole answer.",
            "Pass@8 before and after says how much of the gain is a better choice among what the base could do.",
            "Problems in these figures are held out; those of training never repeat them. One seed; intervals cover "
            "the draw of problems.",
        ],
    }
    return conclude(at, "r1_zero", "R1-Zero", found)
