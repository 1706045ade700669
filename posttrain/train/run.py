"""A run is a folder: its configuration, every number it logged, samples to read, checkpoints, and its result.

A folder with `result.json` is complete. One without resumes: a run killed at any moment and called again equals an
unbroken one in weights, optimizer state, metrics.jsonl and samples.jsonl, bit for bit, on the same machine, torch build
and number of threads. A run that failed leaves `failed.json` with the reason and resumes as well. Wall-clock times are
in timing.jsonl and log.txt only, which are no part of that promise. Where several processes train together
(`posttrain.dist`), the first writes and speaks; the others run through the same lines in silence.

    with Run.open(folder, cfg) as run:                   # creates, resumes, or returns the finished run
        state = run.load({"policy": policy}, {"cursor": 0})
        for step in run.steps(cfg.steps):                # 0, 1, ...; from the checkpoint's step when resumed
            ...
            run.log(step, metrics)
            run.keep_samples(step, groups)
            run.save(step, {"policy": policy}, state)    # every step; it writes when a checkpoint is due
        return run.finish()
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from posttrain import config, device, dist, rng
from posttrain.errors import ConfigError, Interrupted, InvariantError, NonFiniteError, OutOfMemory, RunError, UsageError
from posttrain.pages.run import write_run
from posttrain.train import checkpoint, provenance
from posttrain.train.folder import Result, compare, lock_folder, never_began, read_result, refuse_foreign
from posttrain.train.invariants import Check
from posttrain.train.machine import lacking_memory
from posttrain.train.metrics import lookup, mean
from posttrain.train.progress import Bar, headline
from posttrain.train.samples import Kept, row_mark
from posttrain.train.sinks import Sinks
from posttrain.train.stopping import Stopping

if TYPE_CHECKING:
    from posttrain.batch import TokenBatch
    from posttrain.records import Trajectory

Row = TypeVar("Row")

MAY_CHANGE = {"may_change": True}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has in common. The field of this type is called `run` in each method's config."""

    seed: int = 0
    """All randomness of the run is a pure function of this number and a position."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=MAY_CHANGE)
    """Where models are trained and sampled from; auto: a GPU where there is one. Control tasks stay on the CPU."""
    threads: int = field(default=2, metadata=MAY_CHANGE)
    """CPU threads of torch, shared by the processes on a machine. Runs repeat bit for bit only with the same number."""
    save_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = field(default=2, metadata=MAY_CHANGE)
    """How many of the latest checkpoints stay on disk."""
    best: str | None = field(default=None, metadata=MAY_CHANGE)
    """A metric, such as eval_reward; the checkpoint with its best value stays too, and becomes the run's model."""
    samples: int = field(default=4, metadata=MAY_CHANGE)
    """Whole trajectories written to samples.jsonl per step."""
    mirror: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = field(default=(), metadata=MAY_CHANGE)
    """Dashboards that get the metrics as well, such as tensorboard,trackio. One that fails never stops a run."""
    probe: Literal["off", "sizes", "step"] = field(default="sizes", metadata=MAY_CHANGE)
    """sizes: refuse a run that by its sizes cannot fit in memory. step: also try its largest micro-batch first."""

    def __post_init__(self):
        for name in ("threads", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.samples < 0:
            raise ConfigError(f"samples = {self.samples} cannot be negative; 0 writes none")
        if self.best is not None:
            try:
                lookup(self.best)
            except KeyError as error:
                raise ConfigError(f"best: {error.args[0]}") from None


class Run:
    """A run folder that is being written. Made by `Run.open`; use it in a `with` statement."""

    def __init__(self, folder: Path, cfg: Any, lock: int):
        self.folder = folder
        self.cfg = cfg
        self.settings: RunConfig = getattr(cfg, "run", None) or RunConfig()
        self.done = 0
        """How many steps are complete."""
        self.result = read_result(folder)
        """The result if the run was already finished with this very configuration; training is skipped then."""
        self._lock, self._device_before = lock, "cpu"
        self._checkpoints = folder / "checkpoints"
        self._sinks = Sinks(folder)
        self._samples = Kept()
        self._bar: Bar | None = None
        self._total = 0
        self._last: tuple[int, dict[str, float]] = (-1, {})
        self._latest: Path | None = None
        self._loaded = False
        self._stop = Stopping()
        self._step_began = time.monotonic()
        self._cleanup = contextlib.ExitStack()

    @classmethod
    def open(cls, folder: Path | str, cfg: Any, command: str = "", *, parent: Path | str | None = None) -> "Run":
        """Create a run folder, resume the one that is there, or return it as finished (`run.result` is set).

        cfg: the method's config; its field `run: RunConfig` holds seed, threads and checkpoint settings.
        command: how to repeat the run, for meta.json. parent: the run whose model this one starts from, if any.

        Raises UsageError if the folder is no run, RunError if another process has it open, and ConfigError with the
        list of differences if it was made with another config. Fields marked may_change may differ; that is logged.
        A run that failed before its first step has nothing to keep: it begins anew, under the config asked for.
        """
        opened: list[Run] = []
        device.of(cfg)  # before anything is made

        def begin() -> tuple[Path, int, tuple[int, dict[str, float]], Path | None, Result | None]:
            run = cls._begin(Path(folder), cfg, command, parent)
            opened.append(run)
            return run.folder, run.done, run._last, run._latest, run.result

        place, *found = dist.first(begin)
        run = opened[0] if opened else cls(place, cfg, -1)
        run.done, run._last, run._latest, run.result = found
        provenance.prepare_torch(run.settings.threads, run.seed(0, "setup"))
        return run

    @classmethod
    def _begin(cls, folder: Path, cfg: Any, command: str, parent: Path | str | None) -> "Run":
        is_run = (folder / "config.toml").exists()
        if not is_run and folder.exists():
            refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        try:
            if is_run and never_began(folder):
                (folder / "meta.json").unlink(missing_ok=True)
                is_run = False
            changes = compare(folder, cfg) if is_run else []
            if changes and (folder / "result.json").exists():
                (folder / "result.json").unlink()  # the request changed, so the run is not complete any more
            run = cls(folder, cfg, lock)
            provenance.write(folder, cfg, command, parent)
            if changes or not is_run:
                checkpoint.write_text(folder / "config.toml", config.to_toml(cfg))
            run._find_place()
            (folder / "failed.json").unlink(missing_ok=True)
        except BaseException:
            os.close(lock)
            raise
        for line in changes:
            run.note(f"changed since the run began: {line}")
        return run

    def __enter__(self) -> "Run":
        self._device_before = device.use(device.of(self.cfg))
        return self

    def __exit__(self, kind, error, trace) -> None:
        before, error = error, error and (dist.lost(error) or lacking_memory(error, self.folder) or error)
        if error is not None and not isinstance(error, (UsageError, Interrupted, KeyboardInterrupt)):
            reason = {"step": self.done, "error": type(error).__name__, "message": str(error)}
            with contextlib.suppress(Exception):  # the original error matters more than a disk that is full as well
                if dist.rank() == 0:
                    checkpoint.write_text(self.folder / "failed.json", json.dumps(reason, indent=1))
                self.note(f"stopped at step {self.done}: {type(error).__name__}: {error}")
        self.close()
        if isinstance(error, OutOfMemory) and error is not before:
            raise error from before

    def close(self) -> None:
        """Close files, restore signal handlers and the terminal, and release the folder."""
        device.use(self._device_before)
        self._cleanup.close()
        with contextlib.suppress(OSError, RunError):
            self._write_samples()
        self._sinks.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def finished(self) -> bool:
        """True if the folder already holds the result of this very configuration."""
        return self.result is not None

    def seed(self, step: int, *stream: int | str) -> int:
        """The seed of a step, or of one named stream within it: a pure function of the run's seed."""
        return rng.fold(self.settings.seed, "step", step, *stream)

    def load(self, parts: Mapping[str, checkpoint.Part], default: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bring `parts` to where the run stopped and return the loop's state; `default` in a fresh run.

        Call it once, before `steps`, with the same parts that `save` gets.
        """
        self._loaded = True
        if self._latest is None:
            return dict(default or {})
        state = checkpoint.read(self._latest, parts)
        self.note(f"resumed from {self._latest.name}")
        return state

    def steps(self, n: int) -> Iterator[int]:
        """The step indices still to do, up to n - 1, with a progress line.

        The first Ctrl-C, or SIGTERM, stops between two steps, right after a checkpoint: Interrupted is raised, in all
        processes of the run. The second Ctrl-C stops at once.

        torch's global generator is set from (seed, step), so it needs no saving.
        """
        assert self._loaded or self._latest is None, "call run.load(parts) before run.steps: this run is resumed"
        self._total = n
        self._stop.catch_signals(self._cleanup, lambda: f"in the middle of step {self.done}. {self.folder}")
        self._bar = Bar(self.folder.name, n, self.done) if dist.rank() == 0 else None
        self._cleanup.callback(self._close_bar)
        if dist.rank() == 0 and self.done < n:
            self._sinks.open_mirrors(self.settings.mirror, config.to_toml(self.cfg), self.done, self.note)
        for step in range(self.done, n):
            provenance.seed_torch(self.seed(step, "torch"))
            self._step_began = time.monotonic()
            yield step
            self.done = step + 1
            saved = self._latest is not None and checkpoint.steps_of(self._latest) == self.done
            reason = self._stop.reason(self.done)
            if reason and (saved or step + 1 == n):
                raise Interrupted(
                    f"{reason} after step {step}. {self.folder} continues from "
                    f"{self._latest.name if self._latest else 'the start'} with the same command."
                )
        self._cleanup.close()

    def due(self, step: int, every: int) -> bool:
        """Whether something done every so many steps (0: never) is due after `step`; the last step always is."""
        return every > 0 and ((step + 1) % every == 0 or step + 1 == self._total)

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Append one line to metrics.jsonl, and return it as floats. Call it once per step, before `save`.

        metrics: (sum, count) pairs or plain numbers. Names must be in the glossary (train/metrics.py).
        Raises KeyError for an unknown name and NonFiniteError for a value that is NaN or infinite.
        """
        assert step > self._last[0], f"step {step} was logged before; merge its metrics into one call"
        values = mean(metrics)
        for name, value in values.items():
            lookup(name)
            if value != value or value in (float("inf"), float("-inf")):
                raise NonFiniteError(
                    f"{name} = {value} in step {step}: the run stops here, since every later step would "
                    f"build on it. Look at step {step} in samples.jsonl; a lower learning rate or "
                    "tighter gradient clipping is the usual remedy."
                )
        self._append("metrics.jsonl", {"step": step, **values})
        seconds = time.monotonic() - self._step_began
        self._append("timing.jsonl", {"step": step, "seconds": round(seconds, 4), "time": provenance.now()})
        self._sinks.mirror(step, values)
        self._last = (step, values)
        if self._bar:
            self._bar.show(step, values)
        return values

    def plan(self, text: str) -> None:
        """What the run is going to do, in words: plan.txt, which its report shows."""
        if dist.rank() == 0:
            checkpoint.write_text(self.folder / "plan.txt", text + "\n")

    def took(self, step: int, rows: list[Row]) -> list[Row]:
        """The rows of data that a step took, as they are: a mark of each goes into rows.jsonl, for `runs diff`."""
        self._append("rows.jsonl", {"step": step, "rows": [row_mark(row) for row in rows]})
        return rows

    def keep_samples(self, step: int, items: Iterable[Any]) -> None:
        """Keep a few of a step's trajectories for samples.jsonl, chosen by (seed, step). Call it before `save`.

        items: Groups, Trajectories, or plain dicts. They are written when the step ends, or the run stops.
        """
        self._write_samples()
        self._samples = Kept(step, items, self.settings.samples, self.seed(step, "samples"))

    def keep_advantages(self, members: Sequence["Trajectory"], batch: "TokenBatch") -> None:
        """Add to the step's samples what each of their tokens was reinforced with.

        members: the trajectories that `batch.trajectory` counts; the batch has advantages.
        """
        self._samples.credit(members, batch)

    def check(self, step: int, *checks: Check) -> None:
        """Record invariants in invariants.jsonl; a failed one is said aloud, a failed fatal one stops the run.

        Raises InvariantError with the advice of all fatal checks that failed.
        """
        for check in checks:
            self._append("invariants.jsonl", {"step": step, **check.record()})
            if not check.ok:
                self.note(f"check failed in step {step}: {check.name}: {check.value}. {check.advice}")
        fatal = [check for check in checks if check.fatal and not check.ok]
        if fatal:
            raise InvariantError(" ".join(f"{c.name}: {c.value} in step {step}. {c.advice}" for c in fatal))

    def note(self, text: str) -> None:
        """A line for people: into log.txt with the time, and onto the screen."""
        if dist.rank():
            return
        self._append("log.txt", f"{provenance.now()} {text}")
        bar = self._bar or Bar("", 0, 0)
        bar.say(text)
        if bar is not self._bar:
            bar.close()

    def aside(self) -> contextlib.AbstractContextManager:
        """The terminal without the progress line, while a person is asked something."""
        return self._bar.aside() if self._bar else contextlib.nullcontext()

    def save(
        self, step: int, parts: Mapping[str, checkpoint.Part], state: Mapping[str, Any] | None = None
    ) -> Path | None:
        """Write a checkpoint if one is due after `step`: every `save_every` steps, at the last, or when interrupted.

        Call it at the end of every step. parts: what to keep, by name ("policy" becomes the model folder itself).
        state: the loop's own plain dict. Returns the folder written, or None. Raises RunError on a full disk.
        """
        self._write_samples()
        done = step + 1
        if done % self.settings.save_every and done != self._total and not self._stop.reason(done):
            return None
        metrics = self._last[1] if self._last[0] == step else {}
        record = {"steps": done, "sizes": self._sinks.sizes(), "metrics": metrics, "seed": self.settings.seed}
        self._latest = checkpoint.write(self._checkpoints, done, parts, state or {}, record)
        if dist.rank() == 0:
            checkpoint.prune(self._checkpoints, self.settings.keep, self.settings.best)
        return self._latest

    def finish(self, metrics: Mapping[str, Any] | None = None, model: Path | None = None) -> Result:
        """Write result.json, last of all, and return it. metrics: a final evaluation, (sum, count) or numbers.

        model: what the run made, where it lies elsewhere in its folder than in the last checkpoint.
        """
        self.result = dist.first(lambda: self._conclude(metrics, model or self._latest))
        return self.result

    # -- inside -------------------------------------------------------------------------------------------------------

    def _conclude(self, metrics: Mapping[str, Any] | None, model: Path | None) -> Result:
        final = self._last[1] | mean(metrics or {})
        for name in final:
            lookup(name)
        best = checkpoint.best(self._checkpoints, self.settings.best) if self.settings.best else None
        if self.settings.best and best is None:
            measured = ", ".join(name for name in final if name.startswith("eval_")) or "nothing"
            self.note(
                f'run.best = "{self.settings.best}", but no checkpoint was written at a step that measured it: the '
                f"last is the run's model. Measured last: {measured}. Let run.save_every be a multiple of eval_every."
            )
        text = {
            "status": "finished",
            "steps": self.done,
            "metrics": final,
            "checkpoint": model and str(model.relative_to(self.folder)),
            "best": best and str(best.relative_to(self.folder)),
            "finished": provenance.now(),
        }
        (self.folder / "failed.json").unlink(missing_ok=True)
        self.note(f"finished after {self.done} steps  {headline(final)}")
        checkpoint.write_text(self.folder / "result.json", json.dumps(text, indent=1))
        try:
            write_run(self.folder)
        except Exception as error:  # a page for people must not make a finished run a failed one
            self.note(f"no report was written: {type(error).__name__}: {error}")
        return Result(self.folder, self.done, final, model, best)

    def _find_place(self) -> None:
        """Find the last checkpoint, and cut the files back to what they held when it was written."""
        checkpoint.sweep(self._checkpoints)
        whole = checkpoint.found(self._checkpoints)
        self._latest = whole[-1] if whole else None
        record = checkpoint.read_record(self._latest) if self._latest else {"steps": 0, "sizes": {}, "metrics": {}}
        self.done = record["steps"]
        self._last = (self.done - 1, record["metrics"])
        self._sinks.cut_back(record["sizes"], self._latest, finished=self.result is not None)

    def _append(self, name: str, record: Mapping[str, Any] | str) -> None:
        if dist.rank() == 0:
            self._sinks.append(name, record)

    def _write_samples(self) -> None:
        kept, self._samples = self._samples, Kept()
        for record in kept.records():
            self._append("samples.jsonl", record)

    def _close_bar(self) -> None:
        if self._bar:
            self._bar.close()
        self._bar = None
