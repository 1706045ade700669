"""The `posttrain` command: finds the verb, runs it, and turns errors into one message and an exit code.

Exit codes: 0 done, 1 the run failed, 2 the request makes no sense, 130 interrupted. Only the verb that is called gets
imported, so `posttrain --help` needs no torch.
"""

import importlib
import signal
import sys
from collections.abc import Sequence

from posttrain.errors import Interrupted, PosttrainError, RunError, UsageError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("posttrain.cli.demo", "the whole pipeline on the embedded base, with a report"),
    "recipe": ("posttrain.cli.recipe", "a paper's whole pipeline, stage by stage: posttrain recipe lists them"),
    "train": ("posttrain.cli.train", "train with one method: posttrain train sft, train group --preset dapo, ..."),
    "plan": ("posttrain.cli.plan", "batch arithmetic and memory of a run before it begins: will it fit?"),
    "config": ("posttrain.cli.config", "a complete commented config of one method"),
    "chat": ("posttrain.cli.chat", "talk to a model or a run"),
    "sample": ("posttrain.cli.sample", "sample answers to a prompt"),
    "eval": ("posttrain.cli.evaluate", "evaluate a model or a run on tasks"),
    "data": ("posttrain.cli.data", "look at data as training sees it, with its mask"),
    "runs": ("posttrain.cli.runs", "list runs, or show one"),
    "doctor": ("posttrain.cli.doctor", "what is installed; what a run's invariants say"),
    "lab": ("posttrain.cli.lab", "golden runs and studies: does each method do what its paper says?"),
    "export": ("posttrain.cli.export", "write a run's model as an ordinary Hugging Face folder"),
    "book": ("posttrain.cli.book", "read the book: serves it to a browser on this machine"),
    "check": ("posttrain.cli.check", "the book's exercises in code: get one, have it graded"),
    "model-card": ("posttrain.cli.card", "the model card of the embedded base"),
    "methods": ("posttrain.cli.methods", "policy-gradient methods as a table; what some do to the same answers"),
}
"""Verb -> module with `main(words)`, and its line in the help."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. words: default `sys.argv[1:]`."""
    words = list(sys.argv[1:] if words is None else words)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(words)
    except PosttrainError as error:
        return _told(error)
    except KeyboardInterrupt:
        return _told(Interrupted("Ctrl-C. What was checkpointed is intact; the same command continues."))
    except BrokenPipeError:  # `posttrain runs list | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # no permission, a path through a file, a name too long: the system's words and the place
        if error.filename is None:
            raise
        return _told(RunError(f"{error.filename}: {error.strerror}. Name another place, or give access to this one."))
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from posttrain import __version__

        print(f"posttrain {__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        raise UsageError(f'there is no verb "{verb}". {nearest(verb, VERBS)} `posttrain --help` lists them all.')
    return importlib.import_module(VERBS[verb][0]).main(words[1:]) or 0


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "posttrain: post-training of language models, from the ground up.",
            "",
            "  posttrain VERB [options]         posttrain VERB --help says more",
            "",
            *lines,
            "",
            "Start with `posttrain demo`: a few minutes on two CPU cores, no network needed.",
        ]
    )


def _told(error: PosttrainError) -> int:
    """Print an error for people, without a traceback."""
    from rich.console import Console
    from rich.text import Text

    message = Text(f"{type(error).__name__}: ", style="bold red").append(str(error), style="default not bold")
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)
    return error.exit_code


def _terminated(number, frame) -> None:
    raise Interrupted("stopped by SIGTERM. What was checkpointed is intact; the same command continues.")
