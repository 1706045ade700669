"""What recipes share: where they run, their stages as rows of a table, answers side by side, curves, and the report.

A recipe is one function `run(size, at)` in a module of its own: stages one after the other (`stages.stage`), then what
each of them changed, measured on prompts that no stage has asked.
"""

import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import posttrain
from posttrain.evals.stats import Interval
from posttrain.models.load import Loaded, load
from posttrain.recipes import measure
from posttrain.recipes.measure import Answers, Questions
from posttrain.recipes.report import write_report
from posttrain.recipes.stages import checks, curve, seconds
from posttrain.records import Trajectory
from posttrain.train.checkpoint import write_text
from posttrain.train.run import RunConfig

MAX_TOKENS = 64
Asked = Mapping[str, tuple[Loaded, Answers]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a recipe runs, and how."""

    out: Path
    """Its folder: a run per stage, the files between them, and the report."""
    seed: int = 0
    threads: int = 2
    command: str = ""
    """How to call it again, for the report."""
    say: Callable[[str], None] = print
    began: float = field(default_factory=time.monotonic)

    @property
    def run(self) -> RunConfig:
        """The part of every stage's config that is the same."""
        return RunConfig(seed=self.seed, threads=self.threads, save_every=25, keep=1)

    def write(self, name: str, make: Callable[[], Sequence[Mapping[str, Any]]]) -> Path:
        """A file of rows between two stages: made once, and whole or absent."""
        path = self.out / name
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make()))
        return path


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    title: str
    folder: Path
    template: str = "auto"
    note: str = ""

    @property
    def seconds(self) -> float | None:
        """Time that training it took; None for what was not trained here."""
        run = self.folder.parents[1] if self.folder.parent.name == "checkpoints" else None
        return seconds(run) if run else None


BASE = Stage("base", "base", Path("base"), "plain", "asked as a base model is, in the form Q: ... A:")


def ask_all(stages: Sequence[Stage], questions: Questions, seed: int, say: Callable[[str], None]) -> Asked:
    """What every stage answers to the same questions, with the same draws."""
    asked = {}
    for s in stages:
        say(f"asking {s.title}: {len(questions.about)} held-out portraits, {len(questions.problems)} held-out problems")
        loaded = load(s.folder, template=s.template)
        asked[s.name] = loaded, measure.ask(loaded, questions, max_tokens=MAX_TOKENS, seed=seed)
    return asked


def row(s: Stage, asked: Asked, seed: int, start: str = "sft") -> dict[str, Any]:
    """A line of the table. start: the stage that win rates and the KL are measured against."""
    loaded, answers = asked[s.name]
    reference, first = asked[start]
    trained = s.name != "base"
    return {
        "name": s.name,
        "title": s.title,
        "folder": str(s.folder),
        "note": s.note,
        "seconds": s.seconds,
        "well_formed": interval(measure.share_well_formed(answers), len(answers.about) + len(answers.problems)),
        "win_rate_base": interval(measure.win_rate(answers.about, asked["base"][1].about, seed), len(answers.about))
        if trained
        else None,
        "win_rate": interval(measure.win_rate(answers.about, first.about, seed), len(answers.about))
        if s.name != start
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


def side_by_side(stages: Sequence[Stage], asked: Asked, each: int = 4) -> list[dict[str, Any]]:
    """The first few prompts of each kind with every stage's greedy answer."""
    shown = []
    for kind, name in (("about", "about_greedy"), ("task", "problems")):
        for i in range(each):
            shown.append(sample(kind, {s.name: getattr(asked[s.name][1], name)[i] for s in stages}, verdict))
    return shown


def sample(
    kind: str, answers: Mapping[str, Trajectory], judged: Callable[[Trajectory], Mapping[str, Any]]
) -> dict[str, Any]:
    """One prompt with the answers of several stages, each with the word of an exact grader."""
    first = next(iter(answers.values()))
    shown = [{"stage": name, "text": t.completion, **judged(t)} for name, t in answers.items()]
    return {"prompt": first.task.prompt[0].content, "kind": kind, "answers": shown}


def verdict(t: Trajectory) -> dict[str, Any]:
    """Gold's or the verifier's word on an answer."""
    if "person" in t.task.meta and t.task.answer is None:
        value = measure.gold_of(t)
        return {"verdict": f"gold {value:+.1f}", "good": value >= 2 if value >= 2 or value < 1 else None}
    return {"verdict": "right" if measure.right(t) else f"wrong: it is {t.task.answer}", "good": measure.right(t)}


def curves(out: Path, wanted: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The curves worth a look. wanted: run folder -> metrics."""
    return [
        {"title": f"{name[2:]}: {metric.replace('_', ' ')}", "run": name, "metric": metric, "points": points}
        for name, metrics in wanted.items()
        for metric in metrics
        if (points := curve(out / name, metric))
    ]


def conclude(at: Setting, name: str, title: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write <name>.json and report.html, and return what they show. found: stages, curves, notes, ...; see `report`."""
    data = {
        "title": title,
        "command": at.command,
        "seed": at.seed,
        **{part: shown for part, shown in found.items() if part != "notes"},
        "checks": [c for folder in sorted(at.out.glob("[0-9]-*")) for c in checks(folder)],
        "notes": found.get("notes", []),
        "versions": {"posttrain": posttrain.__version__, "torch": torch.__version__, "threads": at.threads},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": time.monotonic() - at.began,
    }
    write_text(at.out / f"{name}.json", json.dumps(data, indent=1))
    write_report(data, at.out / "report.html")
    return data
