"""`posttrain train METHOD`: resolve the config, say what will happen, open the run folder, train."""

import contextlib
import hashlib
import importlib
import inspect
import io
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain import config, dist
from posttrain.cli.options import help_text, wants_help
from posttrain.errors import UsageError, nearest

METHODS: dict[str, str] = {
    "sft": "supervised fine-tuning on demonstrations",
    "reward_model": "a reward model from comparisons",
    "preference": "DPO and its relatives, from stored pairs",
    "unpaired": "KTO and BCO, from single verdicts: thumbs up or down",
    "rrhf": "RRHF: rank several stored answers by likelihood, imitate the best",
    "online_preference": "online and iterative DPO, self-rewarding, XPO, Nash-MD: pairs of the policy's own answers",
    "group": "GRPO, DAPO, RLOO and their relatives: several answers per prompt, graded",
    "reinforce": "the plain policy gradient, with or without a baseline",
    "best_of_n": "best-of-n, RAFT, rejection-sampling fine-tuning, distillation: sample, choose, fine-tune",
    "ppo": "PPO with a critic and a KL leash",
    "vapo": "PPO for long answers: a pre-trained critic, λ by length, and a loss on right answers",
    "control_reinforce": "REINFORCE on a control task of Gymnasium, with or without a baseline",
    "trpo": "TRPO on a control task: natural gradients within a bound on the KL of a step",
    "control_ppo": "PPO on a control task: clipped, penalised, or unclipped for study",
    "segments": "a reward learned from comparisons of clips of a control task, and PPO on it",
}
"""Method -> its line in the help; the module is posttrain.algorithms.<method>, but for control tasks."""

CONTROL: dict[str, str] = {
    "control_reinforce": "reinforce",
    "trpo": "trpo",
    "control_ppo": "ppo",
    "segments": "segments",
}
"""Methods on control tasks: their module in posttrain.control. They train a small policy, not a language model."""

_FLAGS = {
    "--config FILE": "A TOML file that is read before the flags.",
    "--out FOLDER": "The run folder. Default: runs/<date>-<method>-<hash of the config>. An unfinished run continues.",
    "--dry-run": "Print the batch arithmetic and the resolved config, and stop.",
}


def main(words: Sequence[str]) -> None:
    """Train, resume, or report a finished run; under torchrun, all its processes together."""
    with dist.joined(), contextlib.redirect_stdout(io.StringIO() if dist.rank() else sys.stdout):
        _main(words)


def _main(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        print("posttrain train METHOD [options]      posttrain train METHOD --help lists its options\n")
        print(listed())
        if words and not wants_help(words[:1]):
            raise UsageError(f'"{words[0]}" comes before the method. Write: posttrain train METHOD {words[0]} ...')
        return
    name, module = method(words[0])
    if wants_help(words):
        print(help_text(module.Config, f"posttrain train {name} [options]", _FLAGS, about=about(module)))
        return
    rest, out, dry_run = _own_flags(list(words[1:]))
    cfg = config.load(module.Config, None, rest)
    folder = Path(out) if out else default_folder(name, cfg)
    if dry_run:
        print(module.plan(cfg), f"Folder: {folder}", "", config.to_toml(cfg), sep="\n")
        return
    train(module, cfg, folder, shlex.join(["posttrain", "train", *words]))


def train(module: ModuleType, cfg: Any, folder: Path, command: str) -> None:
    """Open the run, train, and say what came of it and what to do next."""
    from posttrain.train.run import Run

    with Run.open(folder, cfg, command) as run:
        if run.finished:
            print(f"{folder} is already finished with this very config.")
        result = module.train(cfg, run)
    print(f"\n{folder}: {result.steps} steps")
    for name, value in result.metrics.items():
        print(f"  {name:<26} {value:.5g}")
    talk = "" if module.__name__.startswith("posttrain.control.") else f"  posttrain chat {folder}\n"
    print(f"\n{talk}  posttrain runs show {folder}\n  posttrain doctor {folder}")


def listed() -> str:
    """The methods with a line about each."""
    return "\n".join(f"  {name:<17} {text}" for name, text in METHODS.items())


def about(module: ModuleType) -> str:
    """What a method is, its paper and its formula, as the module and its loop say."""
    return "\n\n".join(filter(None, (inspect.getdoc(module), inspect.getdoc(module.train))))


def method(name: str) -> tuple[str, ModuleType]:
    """The method of that name (dashes or underscores) and its module. Raises UsageError with the nearest."""
    key = name.replace("-", "_")
    if key not in METHODS:
        raise UsageError(f'there is no method "{name}". {nearest(key, METHODS)} `posttrain train` lists them all.')
    return key, importlib.import_module(
        f"posttrain.control.{CONTROL[key]}" if key in CONTROL else f"posttrain.algorithms.{key}"
    )


def default_folder(name: str, cfg: Any) -> Path:
    """runs/<date>-<method>-<four digits of the config's hash>: asking again for the same config finds the same run."""
    digest = hashlib.blake2b(config.to_toml(cfg).encode(), digest_size=2).hexdigest()
    return Path("runs") / f"{datetime.now(UTC):%Y%m%d}-{name.replace('_', '-')}-{digest}"


def _own_flags(words: list[str]) -> tuple[list[str], str | None, bool]:
    """Take --out and --dry-run, which are about the command and not part of the config, out of the words."""
    rest, out, dry_run = [], None, False
    while words:
        word = words.pop(0)
        if word in ("--dry-run", "--dry_run"):
            dry_run = True
        elif word.startswith("--out="):
            out = word.removeprefix("--out=")
        elif word == "--out":
            if not words or words[0].startswith("--"):
                raise UsageError("--out needs a folder")
            out = words.pop(0)
        else:
            rest.append(word)
    return rest, out, dry_run
