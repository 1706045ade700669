"""R1: cold start, RL, rejection sampling and fine-tuning, RL again, distillation, at laptop size.

What the paper did (DeepSeek-AI 2025, arXiv 2501.12948): (1) fine-tuned DeepSeek-V3-Base on thousands of long, readable
solutions; (2) GRPO on reasoning, with rewards for accuracy and for staying in one language; (3) sampled from that
model, kept 600k right and readable answers, added 200k about everything else, and fine-tuned the *base* again, for two
epochs; (4) GRPO on all kinds of prompts, with rules for reasoning and reward models for the rest. Then it fine-tuned
smaller models on the 800k samples, without RL: distilling into them beat RL on them.

What we do: the same five stages on sums, chains and countdown games, with facts, words and copying as "all kinds of
prompts". R1-Zero's stage runs beside with as many RL steps as stages 2 and 4 have together, so that the two can be
compared. The small model is the base without its last layer but one, which it misses least.

What we left out: the language-consistency reward (our base writes one language), reward models for helpfulness and
harmlessness (all our prompts have exact verifiers), and RL on the small model, which our lopped base is too weak for.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from posttrain import rng
from posttrain.algorithms import best_of_n, group, sft
from posttrain.algorithms.best_of_n import Keep
from posttrain.assets.world import arithmetic, demos
from posttrain.data.rows import Data
from posttrain.data.tasks import tasks
from posttrain.evals.stats import paired
from posttrain.models.decoder import Decoder
from posttrain.models.hf_format import save_folder
from posttrain.models.load import load
from posttrain.recipes import reasoning
from posttrain.recipes.gather import BASE, Setting, Stage, conclude, curves
from posttrain.recipes.reasoning import MAX_TOKENS, OTHERS, PROBLEMS, Reasoned
from posttrain.recipes.stages import stage
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim
from posttrain.train.run import Result
from posttrain.train.schedule import Schedule

STORY = [
    {"to": "r1", "start": "zero", "key": "form", "words": "from R1-Zero to R1, answers in form went"},
    {"to": "r1", "start": "zero", "key": "greedy", "words": "solved problems"},
    {"to": "r1", "start": "zero", "key": "other", "words": "other tasks"},
]
CURVES = {
    "1-cold-start": ("nll",),
    "2-rl": reasoning.RL_CURVES,
    "3-sampling": ("selected_share", "selected_prompt_share"),
    "4-sft": ("nll",),
    "5-rl-all": reasoning.RL_CURVES,
    "0-zero": reasoning.RL_CURVES,
}
LINEAR = Schedule(kind="linear", warmup=5)


@dataclass(frozen=True)
class Size:
    """How much of everything. The story is written once."""

    cold: int
    """Fewer than a thousand do not teach the base to end its turns."""
    rl_steps: int
    all_steps: int
    sampling_steps: int
    """Of 16 prompts, four answers each."""
    general: int
    """Demonstrations of everything else; in the paper a quarter of all."""
    problems: int
    others: int


SIZES = {
    "laptop": Size(1500, rl_steps=100, all_steps=50, sampling_steps=120, general=500, problems=150, others=90),
    "tiny": Size(1500, rl_steps=2, all_steps=2, sampling_steps=8, general=1300, problems=12, others=6),
}
"""laptop: about fifteen minutes on two cores. tiny: to see that everything runs; its figures mean nothing."""


def run(size: Size, at: Setting) -> dict[str, Any]:
    """Train or resume every stage, measure them, write the report, and return what it shows."""
    torch.set_num_threads(at.threads)
    at.say("1/7  cold start: fine-tuning on a few readable solutions")
    cold = stage(
        at.out / "1-cold-start",
        sft,
        tuned(at.write("cold_start.jsonl", lambda: solutions(size.cold, at.seed)), 2.0, at),
    )
    at.say("2/7  RL on problems")
    first = stage(at.out / "2-rl", group, reasoning.rl(cold.model, PROBLEMS, size.rl_steps, at))
    at.say("3/7  rejection sampling: right answers in form, no two with the same equations")
    cfg = best_of_n.Config(
        model=str(first.model), data=Data(path=f"builtin:{'+'.join(PROBLEMS)}", limit=6000), reward="worked",
        keep=Keep(most=2, least=1.0, distinct="equations"), prompts=16, group_size=4, steps=size.sampling_steps,
        sampling=SamplingParams(max_tokens=MAX_TOKENS), epochs=0, run=at.run,
    )  # fmt: skip
    sampled = stage(at.out / "3-sampling", best_of_n, cfg)
    at.say("4/7  fine-tuning the base on them, and on everything else")
    tuned_again = stage(
        at.out / "4-sft",
        sft,
        tuned(at.write("mixture.jsonl", lambda: mixture(sampled, size.general, at.seed)), 2.0, at),
    )
    at.say("5/7  RL on all kinds of tasks")
    last = stage(at.out / "5-rl-all", group, reasoning.rl(tuned_again.model, (*PROBLEMS, *OTHERS), size.all_steps, at))
    at.say("6/7  distillation into a model with a layer fewer")
    distilled = stage(at.out / "6-distilled", best_of_n, replace(
        cfg, model=str(last.model), student=str(smaller(at.out / "small")), epochs=3.0,
        data=replace(cfg.data, path=f"builtin:{'+'.join((*PROBLEMS, *OTHERS))}"),
        keep=Keep(most=2, least=1.0), optim=Optim(lr=1e-3, schedule=LINEAR),
    ))  # fmt: skip
    at.say("7/7  beside it, R1-Zero with as many steps of RL")
    steps = size.rl_steps + size.all_steps
    zero = stage(at.out / "0-zero", group, reasoning.rl("base", PROBLEMS, steps, at, template="plain"))
    stages = [
        BASE, Stage("cold", "cold start", cold.model), Stage("rl", "RL", first.model),
        Stage("sft", "rejection sampling and SFT", tuned_again.model), Stage("r1", "R1", last.model),
        Stage("small", "distilled", distilled.model, note="a layer fewer, no RL"),
        Stage("zero", "R1-Zero", zero.model, "plain", note="as many steps of RL, nothing else"),
    ]  # fmt: skip
    said = reasoning.ask_all(stages, size.problems, size.others, at)
    found = {
        "columns": reasoning.COLUMNS,
        "story": STORY,
        "stages": [reasoning.row(s, said) for s in stages],
        "samples": reasoning.samples(said),
        "curves": curves(at.out, CURVES),
        "notes": notes(said, at.seed),
    }
    return conclude(at, "r1", "R1", found)


def tuned(path: Path, epochs: float, at: Setting) -> sft.Config:
    """Fine-tuning of the base on a file of conversations."""
    optim = Optim(lr=1e-3, schedule=LINEAR)
    return sft.Config(template="posttrain", data=Data(path=str(path)), epochs=epochs, optim=optim, run=at.run)


def solutions(n: int, seed: int) -> list[dict[str, Any]]:
    """Problems that are not held out, with their work written out, always right: what a careful person would write."""
    rows = []
    for i in range(n):
        draw = rng.python(seed, "cold start", i)
        kind = PROBLEMS[i % len(PROBLEMS)]
        task = tasks(kind, 1, rng.fold(seed, "cold", i) % 2**31)[0]
        if kind == "countdown":
            game = arithmetic.Countdown(tuple(task.meta["numbers"]), task.meta["target"], task.answer)
            answer, found = arithmetic.search(game, draw)
            if not found:
                continue
        else:
            terms = tuple(int(t) for t in reasoning.TERM.findall(task.meta["problem"]))
            answer = arithmetic.solve(arithmetic.Problem(terms), "worked", draw).text
        rows.append({"prompt": task.prompt[0].content, "completion": answer})
    return rows


def mixture(sampled: Result, general: int, seed: int) -> list[dict[str, Any]]:
    """The kept answers, and demonstrations about everything but arithmetic."""
    kept = [json.loads(line) for line in (sampled.folder / "round-1/records.jsonl").read_text().splitlines()]
    rows = [{"messages": row["messages"]} for row in kept]
    for example in demos.demonstrations(2 * general, seed):
        if "arithmetic" not in example.meta["topics"] and len(rows) < len(kept) + general:
            rows.append({"messages": [{"role": m.role, "content": m.content} for m in example.messages]})
    return rows


def smaller(folder: Path) -> Path:
    """The base without its last layer but one, as a model folder."""
    if not (folder / "config.json").exists():
        base = load("base", template="posttrain")
        kept = [*base.model.layers[:-2], base.model.layers[-1]]
        model = Decoder(replace(base.model.cfg, num_hidden_layers=len(kept)))
        model.load_state_dict(base.model.state_dict(), strict=False)
        for mine, theirs in zip(model.layers, kept, strict=True):
            mine.load_state_dict(theirs.state_dict())
        save_folder(model, folder, tokenizer=base.chat_tokenizer)
    return folder


def notes(said: dict[str, Reasoned], seed: int) -> list[str]:
    """What the figures must be read with."""

    def right(name: str) -> list[float]:
        return [g.members[0].score.value for g in said[name].problems.greedy]

    gain, small = paired(right("r1"), right("zero"), seed), paired(right("small"), right("cold"), seed)
    return [
        f"R1 against R1-Zero on the same problems: {gain.value:+.0%} solved ({gain.low:+.0%} to {gain.high:+.0%}).",
        f"The distilled small model against the cold start: {small.value:+.0%} ({small.low:+.0%} to "
        f"{small.high:+.0%}).",
        "Of every answer the first line is graded for accuracy; form takes the whole answer.",
        "Problems and other tasks in these figures are held out. One seed; intervals cover the draw of tasks.",
    ]
