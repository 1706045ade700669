"""The five scripts as modules, loaded by their paths: they belong to no package and must not need one."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "single_file"
NAMES = ("sft", "dpo", "ppo", "grpo", "agent")


def path(name: str) -> Path:
    """single_file/<name>.py"""
    return FOLDER / f"{name}.py"


@functools.cache
def load(name: str) -> ModuleType:
    """The script as a module; its main block does not run."""
    spec = importlib.util.spec_from_file_location(f"single_file_{name}", path(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
