"""`posttrain eval MODEL`: accuracy, pass@1 and pass@k on held-out builtin tasks or on a file, with intervals."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from posttrain.cli.options import parse
from posttrain.data.formats import Columns
from posttrain.errors import ConfigError, UsageError, nearest
from posttrain.records import Task

if TYPE_CHECKING:
    from posttrain.evals.measure import Answers, Measured
    from posttrain.evals.stats import Interval


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a model. Builtin tasks come from the test split, which training never sees; all models get the same."""

    model: str
    """A model: "base", a run, a demo folder, a Hugging Face folder."""
    tasks: tuple[str, ...] = ()
    """Builtin tasks: sums, chains, countdown, copy, facts, words. Without `data`: sums,chains."""
    data: str | None = None
    """A file of prompts with gold answers, instead of builtin tasks."""
    columns: Columns = Columns()
    """Column names of the file, where they are unusual."""
    reward: str = "auto"
    """Grader: "auto" (a task's own verifier, else the exact number), exact_number, exact_match or file.py:function."""
    n: int = 200
    """Tasks of each kind."""
    k: int = 8
    """Sampled answers per task, beside the greedy one."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" (Q: and A:, for base models) or "chatml"."""
    temperature: float = 1.0
    """Of the sampled answers. 1 measures the model as it is."""
    max_tokens: int = 128
    """Longest answer."""
    seed: int = 0
    """Of the sampled answers; tasks do not depend on it."""
    json: bool = False
    """One JSON object instead of a table."""
    out: Path | None = None
    """Write all answers with their scores to this .jsonl file."""

    def __post_init__(self):
        problems = [f"{name} = {getattr(self, name)}: must be at least 1" for name in ("n", "k", "max_tokens")
                    if getattr(self, name) < 1]  # fmt: skip
        if not self.temperature > 0:
            problems.append(f"temperature = {self.temperature}: must be positive; the greedy answer is measured anyway")
        if self.tasks and self.data:
            problems.append("tasks and data are both given; evaluate them one after the other")
        if problems:
            raise ConfigError("\n".join(problems))


def main(words: Sequence[str]) -> None:
    """Answer, score, print."""
    options = parse(Options, words, "posttrain eval MODEL [--tasks sums,chains | --data FILE] [options]", ("model",))
    from posttrain.cli.sample import writer
    from posttrain.evals.measure import collect, count
    from posttrain.rewards.resolve import rewards_for

    if options.out is not None and not options.out.parent.is_dir():
        raise UsageError(f"--out {options.out}: there is no folder {options.out.parent}. Make it first.")
    sets = {name: (tasks, rewards_for(options.reward, tasks)) for name, tasks in _sets(options).items()}
    loaded, sampler = writer(options.model, options.template)
    found: dict[str, tuple[Answers, Measured]] = {}
    for name, (tasks, rewards) in sets.items():
        answers = collect(
            sampler, tasks, loaded, rewards, k=options.k, max_tokens=options.max_tokens,
            temperature=options.temperature, seed=options.seed,
        )  # fmt: skip
        found[name] = answers, count(answers)
    if options.out is not None:
        _write(options.out, {name: answers for name, (answers, _) in found.items()})
    measured = {name: m for name, (_, m) in found.items()}
    if options.json:
        print(json.dumps({"model": options.model, "tasks": {name: asdict(m) for name, m in measured.items()}}))
    else:
        Console(highlight=False, soft_wrap=True).print(table(measured))
        if options.out is not None:
            print(f"All answers: {options.out}")


def _sets(options: Options) -> dict[str, list[Task]]:
    """Name of a set -> its tasks."""
    from posttrain.data.sources import read
    from posttrain.data.tasks import NAMES, tasks

    if options.data is not None:
        source = read(options.data, "prompt", columns=options.columns, limit=options.n)
        return {Path(options.data).name: list(source.records)}
    names = options.tasks or ("sums", "chains")
    for name in names:
        if name not in NAMES:
            raise ConfigError(f'tasks: there is no task "{name}". {nearest(name, NAMES)} A file goes to --data.')
    return {name: tasks(name, options.n, split="test") for name in names}


def table(measured: "dict[str, Measured]") -> Table:
    """One line per set of tasks; square brackets hold 95 % intervals over tasks."""
    k = next(iter(measured.values())).k
    graded = any(m.reward != m.greedy.value for m in measured.values())  # else accuracy says it all
    columns = ("tasks", "n", "greedy", "pass@1", f"pass@{k}", "stop", "tokens", *(["reward"] if graded else []))
    t = Table(*(Column(c, no_wrap=True) for c in columns), box=None, header_style="bold")
    for name, m in measured.items():
        figures = [percent(x) for x in (m.greedy, m.pass_1, m.pass_k)]
        reward = [f"{m.reward:.2f}"] if graded else []
        t.add_row(name, str(m.tasks), *figures, f"{m.stop_share:.0%}", f"{m.length:.0f}", *reward)
    unscored = sum(m.unscored for m in measured.values())
    t.caption = f"{unscored} answers could not be scored and are left out" if unscored else None
    return t


def percent(x: "Interval", digits: int = 1) -> str:
    """A share with its interval, as rich markup: 67.5% [52, 80]."""
    return rf"{x.value:.{digits}%} \[{100 * x.low:.0f}, {100 * x.high:.0f}]"


def _write(path: Path, found: "dict[str, Answers]") -> None:
    """All answers as JSON lines: the set, greedy or not, and what samples.jsonl of a run holds."""
    from posttrain.train.samples import trajectory

    with open(path, "w", encoding="utf-8") as file:
        for name, answers in found.items():
            for way, groups in (("greedy", answers.greedy), ("sampled", answers.sampled)):
                for m in (m for g in groups for m in g.members):
                    file.write(json.dumps({"set": name, "way": way, **trajectory(m)}, ensure_ascii=False) + "\n")
