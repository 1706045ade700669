"""Mirrors: other people's dashboards that show a run's metrics as well. The run folder alone is the record.

`run.mirror` names them. A mirror gets every metric of every step under its own name, and the config as text. One that
fails is left out with a note (`sinks.py`). Where a run resumes, TensorBoard forgets the steps that are done again; the
others show them twice.
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


class Trackio:
    """The local database of trackio: `trackio show --project posttrain`."""

    def __init__(self, folder: Path, settings: str, done: int):
        import trackio

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
        """One row."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until the rows are stored."""
        self._run.finish()


class Wandb:
    """Weights & Biases. Offline, with files in the run's folder for `wandb sync`, unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, settings: str, done: int):
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            name=title(folder),
            config={"config": settings},
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run's files."""
        self._run.finish()
