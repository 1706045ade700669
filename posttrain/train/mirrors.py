"""Mirrors: other people's dashboards that show a run's metrics as well. The run folder alone is the record.

`run.mirror` names them. A mirror gets every metric of every step under its own name, and the config as text. One that
fails is left out with a note (`sinks.py`). Where a run resumes, TensorBoard forgets the steps that are done again; the
others cannot, and are not sent them again (`Sent`). What a killed process had not yet sent is then only in the run.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from posttrain.errors import missing_extra

PROJECT = "posttrain"


class Mirror(Protocol):
    """What a mirror does."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step."""

    def close(self) -> None:
        """The run is over, or stops."""


def open_mirror(name: str, folder: Path, settings: str, done: int) -> Mirror:
    """The mirror of that name for a run folder. Raises MissingExtra, and whatever its library raises.

    settings: the run's config as text. done: how many steps are complete.
    """
    kinds = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
    try:
        return kinds[name](folder, settings, done)
    except ImportError:
        raise missing_extra(f"mirroring to {name}", name, f"leave {name} out of run.mirror") from None


def title(folder: Path) -> str:
    """The folder's name; of a run within a run, both."""
    inner = (folder.parent / "config.toml").exists()
    return f"{folder.resolve().parent.name}/{folder.name}" if inner else folder.resolve().name


class TensorBoard:
    """Event files in the run's folder, in `tensorboard/`: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, settings: str, done: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done or None)
        if not done:
            self._writer.add_text("config", "    " + settings.replace("\n", "\n    "))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars under the metrics' names."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Sent:
    """The last step that a mirror was sent, in a small file of the run's folder: steps done again equal the first."""

    def __init__(self, folder: Path, name: str, done: int):
        self._path = folder / f"{name}.sent"
        self._last = int(self._path.read_text()) if done and self._path.exists() else -1

    def is_new(self, step: int) -> bool:
        """Whether the step is to be sent; from here on it counts as sent."""
        if step <= self._last:
            return False
        self._last = step
        self._path.write_text(f"{step}\n")
        return True


class Trackio:
    """The local database of trackio: `trackio show --project posttrain`."""

    def __init__(self, folder: Path, settings: str, done: int):
        import trackio

        self._sent = Sent(folder, "trackio", done)
        self._run = trackio.init(
            project=PROJECT,
            name=title(folder),
            config={"config": settings, "folder": str(folder)},
            resume="allow" if done else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row, once."""
        if self._sent.is_new(step):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until the rows are stored."""
        self._run.finish()


class Wandb:
    """Weights & Biases. Offline, with files in the run's folder for `wandb sync`, unless WANDB_MODE says otherwise.

    A resumed run goes on under its first id. Offline each part has a folder of its own: `wandb sync --append` joins
    them.
    """

    def __init__(self, folder: Path, settings: str, done: int):
        import wandb

        self._sent = Sent(folder, "wandb", done)
        parts = sorted((folder / "wandb").glob("*run-*-*")) if done else []  # [offline-]run-DATE-ID
        self._run = wandb.init(
            id=parts[0].name.rpartition("-")[2] if parts else None,
            resume="allow" if parts else None,
            project=PROJECT,
            name=title(folder),
            config={"config": settings},
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row, once."""
        if self._sent.is_new(step):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run's files."""
        self._run.finish()
