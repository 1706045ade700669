"""The whole pipeline on the embedded base: SFT, reward model, DPO, GRPO, and what each of them changed.

What the papers do (Ouyang et al. 2022; Rafailov et al. 2023; Shao et al. 2024): demonstrations and comparisons by
people, verifiable problems. What we do: the same in a generated world, whose rater is biased on purpose and whose gold
grader only measures. Left out: PPO against the reward model (sections 08 and 14 of the book).
"""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import posttrain
from posttrain.algorithms import group, preference, reward_model, sft
from posttrain.assets.world import demos, people
from posttrain.assets.world.rater import prefers_first
from posttrain.data.rows import Data
from posttrain.envs.rollout import rollout
from posttrain.errors import RunError
from posttrain.evals.stats import Interval, bootstrap, wilson
from posttrain.models.load import Loaded, load
from posttrain.objectives.average import Average
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.presets import PRESETS
from posttrain.recipes import measure
from posttrain.recipes.measure import Answers, Questions
from posttrain.recipes.report import write_report
from posttrain.recipes.stages import checks, curve, seconds, stage
from posttrain.records import Stop, Trajectory
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.checkpoint import write_text
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

MAX_TOKENS = 64
ANSWERS = 8
"""Sampled answers to a prompt, compared two by two."""


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


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    title: str
    folder: Path
    template: str = "auto"
    note: str = ""


def run(out: Path, size: Size, *, seed: int, threads: int, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Train or resume every stage in `out`, measure them, write out/report.html, and return what it shows."""
    began = time.monotonic()
    stages = train_stages(out, size, seed, threads, say)
    questions = Questions.make(size.about, size.problems, size.passes, seed)
    asked: dict[str, tuple[Loaded, Answers]] = {}
    for s in stages:
        say(f"asking {s.title}: {len(questions.about)} held-out portraits, {len(questions.problems)} held-out problems")
        loaded = load(s.folder, template=s.template)
        asked[s.name] = loaded, measure.ask(loaded, questions, max_tokens=MAX_TOKENS, seed=seed)
    data = {
        "title": "posttrain demo",
        "command": command,
        "seed": seed,
        "stages": [row(s, asked, seed) for s in stages],
        "reward_model": judge(out, asked["sft"][0], questions, seed),
        "samples": side_by_side(stages, asked),
        "curves": curves(out),
        "checks": [c for folder in sorted(out.glob("[1-4]-*")) for c in checks(folder)],
        "notes": notes(asked, seed),
        "versions": {"posttrain": posttrain.__version__, "torch": torch.__version__, "threads": threads},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": time.monotonic() - began,
    }
    write_text(out / "demo.json", json.dumps(data, indent=1))
    write_report(data, out / "report.html")
    return data


def train_stages(out: Path, size: Size, seed: int, threads: int, say: Callable[[str], None]) -> list[Stage]:
    """The four training stages; what is finished is reused, what was interrupted goes on."""
    settings = RunConfig(seed=seed, threads=threads, save_every=25, keep=1)
    torch.set_num_threads(threads)

    say("1/4  supervised fine-tuning on demonstrations")
    demonstrations = Data(path="builtin:demonstrations", limit=size.demonstrations, eval_rows=100)
    linear = Schedule(kind="linear", warmup=5)
    cfg = sft.Config(
        model="base", template="posttrain", data=demonstrations, epochs=size.sft_epochs, batch_size=32,
        optim=Optim(lr=1e-3, schedule=linear), run=settings,
    )  # fmt: skip
    first = stage(out / "1-sft", sft, cfg)

    pairs = out / "preferences.jsonl"
    if not pairs.exists():
        say(f"     the rater compares {ANSWERS * size.pair_prompts} answers of the SFT model in pairs")
        write_pairs(pairs, load(first.model), size.pair_prompts, seed)
    comparisons = Data(path=str(pairs), eval_rows=held_out(pairs))

    say("2/4  a reward model from the rater's comparisons")
    cfg = reward_model.Config(
        model=str(first.model),
        data=comparisons,
        epochs=1.0,
        batch_size=16,
        optim=Optim(lr=5e-4, schedule=linear),
        run=settings,
    )
    stage(out / "2-reward-model", reward_model, cfg)

    say("3/4  direct preference optimisation on the same comparisons")
    cfg = preference.Config(
        model=str(first.model), data=comparisons, loss=PreferenceLoss(name="dpo", beta=0.3), epochs=2.0, batch_size=16,
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
        Stage("base", "base", Path("base"), "plain", "asked as a base model is, in the form Q: ... A:"),
        Stage("sft", "SFT", first.model),
        Stage("dpo", "DPO", second.model),
        Stage("grpo", "GRPO", third.model),
    ]


def held_out(pairs: Path) -> int:
    """How many of the comparisons are kept from training: a sixth."""
    return len(pairs.read_text().splitlines()) // 6


def write_pairs(path: Path, loaded: Loaded, prompts: int, seed: int) -> None:
    """Sampled answers to each of `prompts` questions about seen people, two by two, the rater's choice first."""
    asked = demos.about_prompts(people.SEEN, prompts, seed)
    lines = []
    for a, b in (said[i : i + 2] for said in sampled(loaded, asked, ANSWERS, seed) for i in range(0, ANSWERS, 2)):
        person = people.PEOPLE[a.task.meta["person"]]
        if a.completion == b.completion or {a.stop, b.stop} != {Stop.END}:
            continue  # nothing to compare, or no stop token to learn from
        if not prefers_first(person, a.completion, b.completion, seed=seed):
            a, b = b, a
        lines.append(json.dumps({"prompt": a.messages[0].content, "chosen": a.completion, "rejected": b.completion}))
    if len(lines) < 12:
        raise RunError(
            f"only {len(lines)} of {ANSWERS // 2 * prompts} pairs of answers can be compared, since the SFT model "
            "seldom stops: there is nothing to prefer. Train it longer (SIZES in recipes/demo.py)."
        )
    write_text(path, "\n".join(lines) + "\n")


def sampled(loaded: Loaded, asked: list, n: int, seed: int) -> list[tuple[Trajectory, ...]]:
    """n sampled answers to each task."""
    params = SamplingParams(max_tokens=MAX_TOKENS, stop_ids=loaded.stop_ids)
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


def row(s: Stage, asked: dict[str, tuple[Loaded, Answers]], seed: int) -> dict[str, Any]:
    """A line of the table."""
    loaded, answers = asked[s.name]
    reference, start = asked["sft"]
    trained = s.name != "base"
    return {
        "name": s.name,
        "title": s.title,
        "folder": str(s.folder),
        "note": s.note,
        "seconds": seconds(s.folder.parents[1]) if trained else None,
        "well_formed": interval(measure.share_well_formed(answers), len(answers.about) + len(answers.problems)),
        "win_rate_base": interval(measure.win_rate(answers.about, asked["base"][1].about, seed), len(answers.about))
        if trained
        else None,
        "win_rate": interval(measure.win_rate(answers.about, start.about, seed), len(answers.about))
        if s.name != "sft"
        else None,
        "greedy": interval(measure.solved(answers), len(answers.problems)),
        "pass_at_1": {"value": measure.pass_at(answers, 1), "n": len(answers.tries)},
        "pass_at_8": {"value": measure.pass_at(answers, 8), "n": len(answers.tries)},
        "kl_from_sft": measure.kl_from(loaded.model, reference.model, answers) if trained else None,
        "length": measure.mean_length(answers),
    }


def interval(x: Interval, n: int) -> dict[str, float]:
    """An interval as plain JSON; n: of how many."""
    return {"value": x.value, "low": x.low, "high": x.high, "n": n}


def judge(out: Path, loaded: Loaded, questions: Questions, seed: int) -> dict[str, Any]:
    """The reward model on comparisons it has not seen, and as the judge of eight answers of the SFT model."""
    folder = out / "2-reward-model"
    scorer = load(folder).model
    n = held_out(out / "preferences.jsonl")
    accuracy = curve(folder, "eval_accuracy")[-1][1]
    groups = sampled(loaded, questions.about[: questions.passes], 8, seed)
    proxy, real = [], []
    for members in groups:
        proxy.append(reward_model.score_segments(scorer, [m.segments[0] for m in members]).tolist())
        real.append([measure.gold_of(m) for m in members])
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
            "n": len(groups),
        },
    }


def side_by_side(stages: list[Stage], asked: dict[str, tuple[Loaded, Answers]], each: int = 4) -> list[dict[str, Any]]:
    """The first few prompts of each kind with every stage's greedy answer."""
    shown = []
    for kind, field in (("about", "about_greedy"), ("task", "problems")):
        for i in range(each):
            trajectories = {s.name: getattr(asked[s.name][1], field)[i] for s in stages}
            shown.append(
                {
                    "prompt": trajectories["sft"].task.prompt[0].content,
                    "kind": kind,
                    "answers": [
                        {"stage": name, "text": t.completion, **verdict(t)} for name, t in trajectories.items()
                    ],
                }
            )
    return shown


def verdict(t: Trajectory) -> dict[str, Any]:
    """Gold's or the verifier's word on an answer."""
    if "person" in t.task.meta:
        value = measure.gold_of(t)
        return {"verdict": f"gold {value:+.1f}", "good": value >= 2 if value >= 2 or value < 1 else None}
    return {"verdict": "right" if measure.right(t) else f"wrong: it is {t.task.answer}", "good": measure.right(t)}


def curves(out: Path) -> list[dict[str, Any]]:
    """The curves worth a look, a few per stage."""
    wanted = {
        "1-sft": ("nll",),
        "2-reward-model": ("accuracy", "loss"),
        "3-dpo": ("margin", "logp_chosen", "logp_rejected"),
        "4-grpo": ("reward_mean", "entropy", "length_mean", "zero_variance_share"),
    }
    return [
        {"title": f"{name[2:]}: {metric.replace('_', ' ')}", "run": name, "metric": metric, "points": points}
        for name, metrics in wanted.items()
        for metric in metrics
        if (points := curve(out / name, metric))
    ]


def notes(asked: dict[str, tuple[Loaded, Answers]], seed: int) -> list[str]:
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
