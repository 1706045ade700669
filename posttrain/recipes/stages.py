"""Stages of a recipe: each is a run of one method in a folder of its own, which is trained, resumed, or reused.

What a stage left behind (`curve`, `seconds`, `checks`) is read by `pages.folder`.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.pages.folder import checks, curve, seconds
from posttrain.train.run import Result, Run

__all__ = ["checks", "curve", "seconds", "stage"]


def stage(folder: Path, method: ModuleType, cfg: Any) -> Result:
    """The result of `method.train(cfg)` in `folder`: at once where it is finished, from its last checkpoint where not.

    Raises ConfigError, with the differences, if the folder was made with another config.
    """
    with Run.open(folder, cfg, command=f"posttrain train {method.__name__.rpartition('.')[2]} --out {folder}") as run:
        return method.train(cfg, run)
