"""InstructGPT: training language models to follow instructions with human feedback, Ouyang et al. 2022 (arXiv
2203.02155), at laptop size.

What the paper did: (1) fine-tuned GPT-3 on 13k demonstrations; (2) had labelers rank 4 to 9 answers to 33k prompts and
trained a 6B reward model on all pairs of a prompt together, one epoch; (3) PPO against it, the critic begun as the
reward model, a KL charge of 0.02 per nat towards the SFT model, and pre-training gradients mixed in (PPO-ptx), since
PPO alone lost on public tasks: the alignment tax.

What we do: the same three steps in the generated world, whose rater is biased on purpose and compares portraits of
people; and PPO twice, without the pre-training text and with it, so that the tax and its cure can be read off two rows:
the text's cross-entropy, and arithmetic problems that no step after the first has trained. Gold, an exact grader, takes
the place of the judges.

What we left out: rankings of more than two answers, a second round of comparisons, EMA weights, and 175B parameters.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from posttrain.algorithms import ppo, reward_model, sft
from posttrain.assets.world import corpus, demos, people
from posttrain.batch import collate
from posttrain.chat.render import render_text
from posttrain.data.rows import Data
from posttrain.evals.stats import bootstrap, paired
from posttrain.models.load import Loaded, load
from posttrain.objectives.presets import PRESETS
from posttrain.recipes import comparisons, report
from posttrain.recipes.gather import (
    BASE,
    MAX_TOKENS,
    Asked,
    Setting,
    Stage,
    ask_all,
    conclude,
    curves,
    interval,
    row,
    side_by_side,
)
from posttrain.recipes.measure import Questions
from posttrain.recipes.stages import stage
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim, outputs
from posttrain.train.schedule import Schedule

ANSWERS = 8
TEXT = report.Column(
    "text_nll", "Text", "cross-entropy on pages like those of pre-training, nats per token; lower is better", False, 3
)
COLUMNS = [vars(c) for c in (*report.COLUMNS[:5], TEXT, *report.COLUMNS[5:])]
STORY = [
    {"to": "sft", "start": "base", "key": "well_formed", "words": "demonstrations took well-formed answers"},
    {"to": "ppo_ptx", "key": "win_rate", "words": "PPO-ptx wins {} of portraits against the SFT model"},
    {"to": "ppo_ptx", "start": "ppo", "key": "text_nll", "digits": 3,
     "words": "and the pre-training text took the cross-entropy on such text"},
]  # fmt: skip
PPO_CURVES = ("reward_mean", "kl_ref_k1", "length_mean", "explained_variance", "ptx_nll")
CURVES = {"1-sft": ("nll",), "2-reward-model": ("accuracy",), "3-ppo": PPO_CURVES, "4-ppo-ptx": PPO_CURVES}


@dataclass(frozen=True)
class Size:
    """How much of everything. The story is written once."""

    demonstrations: int
    epochs: float
    pair_prompts: int
    ppo_steps: int
    about: int
    problems: int
    passes: int
    pages: int


SIZES = {
    "laptop": Size(3000, 2.0, 1056, 60, about=220, problems=120, passes=60, pages=200),
    "tiny": Size(960, 4.0, 96, 2, about=32, problems=16, passes=8, pages=10),
}
"""laptop: about eight minutes on two cores. tiny: to see that everything runs; its figures mean nothing."""


def run(size: Size, at: Setting) -> dict[str, Any]:
    """Train or resume every stage, measure them, write the report, and return what it shows."""
    torch.set_num_threads(at.threads)
    linear = Schedule(kind="linear", warmup=5)
    at.say("1/4  supervised fine-tuning on demonstrations")
    cfg = sft.Config(
        template="posttrain", data=Data(path="builtin:demonstrations", limit=size.demonstrations, eval_rows=100),
        epochs=size.epochs, optim=Optim(lr=1e-3, schedule=linear), run=at.run,
    )  # fmt: skip
    first = stage(at.out / "1-sft", sft, cfg)

    at.say("2/4  a reward model from the rater's comparisons of its answers")
    compared = at.write("comparisons.jsonl", lambda: compare(load(first.model), size.pair_prompts, at.seed))
    cfg = reward_model.Config(
        model=str(first.model), data=comparisons.data(compared), batch_size=16,
        optim=Optim(lr=5e-4, schedule=linear), run=at.run,
    )  # fmt: skip
    judge = stage(at.out / "2-reward-model", reward_model, cfg)

    at.say("3/4  PPO against the reward model")
    leash = replace(PRESETS["ppo"].kl, beta=0.02)
    cfg = ppo.Config(
        model=str(first.model), critic=str(judge.model), reward=f"model:{judge.model}",
        data=Data(path="builtin:about", limit=4000), objective=replace(PRESETS["ppo"], kl=leash), prompts=64,
        epochs=1, minibatches=4, steps=size.ppo_steps, sampling=SamplingParams(max_tokens=MAX_TOKENS), eval_every=0,
        optim=Optim(lr=3e-4, schedule=linear), critic_optim=Optim(lr=5e-4), run=at.run,
    )  # fmt: skip
    plain = stage(at.out / "3-ppo", ppo, cfg)
    at.say("4/4  the same, with pre-training text in every step (PPO-ptx)")
    mixed = stage(
        at.out / "4-ppo-ptx", ppo, replace(cfg, ptx=ppo.Ptx(weight=0.5, data=replace(cfg.ptx.data, max_len=128)))
    )

    stages = [BASE, Stage("sft", "SFT", first.model), Stage("ppo", "PPO", plain.model),
              Stage("ppo_ptx", "PPO-ptx", mixed.model)]  # fmt: skip
    return conclude(at, "instructgpt", "InstructGPT", found(stages, size, at))


def compare(loaded: Loaded, prompts: int, seed: int) -> list[dict[str, Any]]:
    """Eight portraits of a seen person, two by two."""
    asked = demos.about_prompts(people.SEEN, prompts, seed)
    return comparisons.pairs(comparisons.sampled(loaded, asked, ANSWERS, seed), comparisons.rater(seed))


def found(stages: list[Stage], size: Size, at: Setting) -> dict[str, Any]:
    """Everything that the report shows."""
    questions = Questions.make(size.about, size.problems, size.passes, at.seed)
    asked = ask_all(stages, questions, at.seed, at.say)
    pages = {s.name: page_nlls(asked[s.name][0], size.pages) for s in stages}
    rows = [
        row(s, asked, at.seed) | {"text_nll": interval(bootstrap(pages[s.name], at.seed), size.pages)} for s in stages
    ]
    return {
        "columns": COLUMNS,
        "story": STORY,
        "stages": rows,
        "reward_model": comparisons.judge(
            at.out / "2-reward-model",
            at.out / "comparisons.jsonl",
            asked["sft"][0],
            questions.about[: size.passes],
            at.seed,
        ),
        "samples": side_by_side(stages, asked),
        "curves": curves(at.out, CURVES),
        "notes": notes(asked, pages, at.seed),
    }


def page_nlls(loaded: Loaded, pages: int) -> list[float]:
    """Cross-entropy per token of each of the first validation pages of the world."""
    rows = [render_text(corpus.validation(i), loaded.tokenizer, max_len=loaded.context, where="a page")
            for i in range(pages)]  # fmt: skip
    batch = collate(rows)
    logp = outputs(loaded.model, batch, ("logp",), 16384).logp
    return (-(logp * batch.mask).sum(1) / batch.mask.sum(1)).tolist()


def notes(asked: Asked, pages: dict[str, list[float]], seed: int) -> list[str]:
    """What the figures must be read with."""
    tax = {name: paired(pages[name], pages["sft"], seed) for name in ("ppo", "ppo_ptx")}
    cure = paired(pages["ppo_ptx"], pages["ppo"], seed)
    return [
        *(f"Cross-entropy on pages against the SFT model: {name.replace('_', '-')} {x.value:+.3f} "
          f"({x.low:+.3f} to {x.high:+.3f}) nats per token." for name, x in tax.items()),
        f"PPO-ptx against PPO on the same pages: {cure.value:+.3f} ({cure.low:+.3f} to {cure.high:+.3f}).",
        "Problems are no part of PPO here: what changes in their column is what PPO does to the rest.",
        "People and problems in these figures were held out of every question in pre-training and in all stages.",
        "One seed. Intervals cover the draw of prompts (for win rates: of people), not of seeds.",
    ]  # fmt: skip
