"""What a person sees while a run goes on: one live line on a terminal, about twenty plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from posttrain.train.metrics import HEADLINE


class Bar:
    """The progress display of one run. Writes to standard error, so that results can be piped."""

    def __init__(self, label: str, total: int, done: int):
        self._total = total
        self._every = max(1, total // 20)
        self._label = label
        self._console = Console(stderr=True, highlight=False)
        self._live = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[line]}"),
            )
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task(label, total=total, completed=done, line="")
            self._live.start()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` is done and said `metrics`."""
        line = headline(metrics)
        if self._live:
            self._live.update(self._task, completed=step + 1, line=line)
        elif (step + 1) % self._every == 0 or step == 0 or step + 1 == self._total:
            self.say(f"{self._label}: step {step + 1}/{self._total}  {line}")

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Without the live line, which would write over a question and its answer."""
        if self._live:
            self._live.stop()
        try:
            yield
        finally:
            if self._live:
                self._live.start()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None


def headline(metrics: Mapping[str, float], limit: int = 6) -> str:
    """The few metrics worth a glance, as "name value" with three or four digits."""
    shown = [name for name in HEADLINE if name in metrics][:limit]
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in shown)
