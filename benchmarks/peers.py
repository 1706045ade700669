"""The other side: TRL in environments of its own, and the settings in which it is measured.

    python benchmarks/peers.py        create the environments (about 1.6 GB each, minutes)

`default` is what a trainer does when it is given nothing but our batch, our optimizer and float32; the other names are
settings that its documentation offers for speed. compare.py times each of them once and takes the fastest as "best".
"""

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"  # the same on both sides
ENVIRONMENTS = {
    HERE / ".venv-trl": "trl==1.16.0",
    HERE / ".venv-trl-ppo": "trl==1.10.0",  # the last that has PPO
}

KEEP = {"gradient_checkpointing": False}
"""Activations are kept; by default TRL computes them twice to save memory."""


def _rows(n: int, of: int) -> dict:
    """Micro-batches of n rows."""
    return KEEP | {"per_device_train_batch_size": n, "gradient_accumulation_steps": of // n}


SETTINGS: dict[str, dict[str, dict]] = {
    "sft": {
        "default": {},
        "no checkpointing": KEEP,
        "8 rows": _rows(8, 32),
        "padding-free": KEEP | {"padding_free": True, "max_length": None},
        "padding-free, 8 rows": _rows(8, 32) | {"padding_free": True, "max_length": None},
        "packed": _rows(4, 4) | {"packing": True, "max_length": 512},
        "packed, 1 row": _rows(1, 4) | {"packing": True, "max_length": 512},
    },
    "rm": {"default": {}, "no checkpointing": KEEP, "4 pairs": _rows(4, 16)},
    "dpo": {
        "default": {},
        "no checkpointing": KEEP,
        "precomputed": KEEP | {"precompute_ref_log_probs": True},
        "precomputed, 4 pairs": _rows(4, 16) | {"precompute_ref_log_probs": True},
    },
    "grpo": {"default": {}, "no checkpointing": KEEP, "16 rows": _rows(16, 64), "8 rows": _rows(8, 64)},
    "rloo": {"default": {}, "no checkpointing": KEEP, "16 rows": _rows(16, 64), "8 rows": _rows(8, 64)},
    "ppo": {"default": {}, "no checkpointing": KEEP, "8 rows": _rows(8, 64)},
    "sample": {"default": {}, "static cache": {"cache_implementation": "static"}},
}
"""Job -> name -> fields of the trainer's config, or arguments of `generate`."""


def of(job: str) -> dict[str, dict]:
    """The settings of a job."""
    return SETTINGS["sample" if job.startswith("sample-") else job]


def python(job: str) -> Path:
    """The interpreter of a job's environment. Ends the program where it is missing."""
    folder = HERE / (".venv-trl-ppo" if job == "ppo" else ".venv-trl")
    if not (folder / ".installed").exists():
        sys.exit(f"{folder} is missing or unfinished: run `python benchmarks/peers.py` (or `make bench`) first")
    return folder / "bin" / "python"


def install() -> None:
    """Create what is missing."""
    for folder, package in ENVIRONMENTS.items():
        if (folder / ".installed").exists():
            continue
        print(f"{folder.name}: installing {TORCH} and {package}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, TORCH, package], check=True)
        (folder / ".installed").touch()


if __name__ == "__main__":
    install()
