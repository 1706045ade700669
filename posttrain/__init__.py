"""posttrain: the whole of language-model post-training as one library.

Names are loaded when they are first used, so that `import posttrain` is instant and needs no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# fmt: off
_MODULES = ("algorithms", "batch", "chat", "config", "data", "envs", "errors", "evals", "models", "objectives",
            "recipes", "records", "rewards", "rng", "sample", "train")

_NAMES = {
    "Message": "records", "Task": "records", "Example": "records", "Text": "records", "Pair": "records",
    "Ranking": "records", "Judged": "records", "Score": "records", "Segment": "records", "Trajectory": "records",
    "Group": "records", "Stop": "records",
    "PosttrainError": "errors", "ConfigError": "errors", "DataError": "errors", "RunError": "errors",
    "TokenBatch": "batch", "collate": "batch",
    "Run": "train.run", "RunConfig": "train.run", "Learner": "train.learner", "Optim": "train.learner",
    "Schedule": "train.schedule",
}
# fmt: on
"""Public name -> module that defines it. Modules themselves (`posttrain.objectives`) are reached the same way."""

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"posttrain.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"posttrain.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'posttrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
