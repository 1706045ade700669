"""Where models live: on the CPU, or on the GPU that a run was given.

Only models move (`models.load`), and what a pass through one of them takes (`TokenBatch.to`). Batches, advantages,
losses and checkpoints stay on the CPU, so that nothing else knows of a device. Outside of a run it is the CPU; control
tasks, whose networks are small, never leave it.
"""

from typing import Any

from posttrain.errors import ConfigError

_current = "cpu"


def current() -> str:
    """The kind of device that models are loaded to now: "cpu" or "cuda"."""
    return _current


def use(kind: str) -> str:
    """Load models to this kind of device from now on; returns the kind before."""
    global _current
    before, _current = _current, kind
    return before


def of(cfg: Any) -> str:
    """The kind that a config asks for with `run.device`. Raises ConfigError for a GPU where there is none."""
    asked = getattr(getattr(cfg, "run", None), "device", "auto")
    if asked == "cpu":
        return "cpu"
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ConfigError(
            f'run.device = "cuda", but torch {torch.__version__} finds no CUDA device here. Leave run.device out: '
            '"auto" takes a GPU where there is one.'
        )
    return "cuda" if there else "cpu"
