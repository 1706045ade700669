"""Where a run comes from: command, code revision, versions, device, and copies of the user's own functions.

Written into meta.json, so that a figure made months later can be traced to the code that made it.
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain import config, device, dist
from posttrain.errors import ConfigError
from posttrain.heap import keep_freed
from posttrain.train import checkpoint

PACKAGES = ("posttrain", "torch", "numpy", "safetensors", "tokenizers", "transformers")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write(folder: Path, cfg: Any, command: str, parent: Path | str | None) -> None:
    """Create or extend `folder/meta.json`; on resume the user's own code must be what it was.

    Raises ConfigError if a `file.py:function` of the config has changed since the run began.
    """
    path = folder / "meta.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    meta = {
        "method": type(cfg).__module__.rpartition(".")[2],
        "config_class": f"{type(cfg).__module__}.{type(cfg).__qualname__}",
        "parent": parent and str(parent),
        "code": _adopt_code(folder, cfg, old.get("code", {})),
        "sessions": [*old.get("sessions", []), _session(command, device.of(cfg))],
    }
    checkpoint.write_text(path, json.dumps(meta, indent=1))


def _session(command: str, kind: str) -> dict[str, Any]:
    from posttrain import products  # which loads torch

    return {
        "started": now(),
        "command": command,
        "revision": revision(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": _device(kind),
        "products": products.library(),
        "processes": dist.world(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The git revision of the package's checkout, "+" appended if files differ from it; None when installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head + ("+" if dirty.strip() else "")


def prepare_torch(threads: int, seed: int) -> None:
    """Set torch's thread count and global generator, on which bitwise repetition depends, and how memory is kept.

    threads: of the machine; processes that share it share them.
    """
    import torch

    keep_freed()
    torch.set_num_threads(max(1, threads // dist.local_world()))
    torch.manual_seed(seed)


def seed_torch(seed: int) -> None:
    """Set torch's global generator (dropout, initialisation) for one step."""
    import torch

    torch.manual_seed(seed)


def _device(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _adopt_code(folder: Path, cfg: Any, known: dict[str, str]) -> dict[str, str]:
    """Copy every `file.py:function` that the config names into `folder/code`, with the file's SHA-256."""
    hashes = {}
    for path in sorted({Path(f) for f in config.user_files(cfg)}):
        if not path.exists():
            raise ConfigError(f"the config names {path}, and there is no such file")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if known.get(str(path), digest) != digest:
            raise ConfigError(
                f"{path} has changed since the run in {folder} began (a copy of the old file is in "
                f"{folder / 'code'}). Restore it, or start into a new folder (--out)."
            )
        (folder / "code").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "code" / f"{digest[:8]}-{path.name}")
        hashes[str(path)] = digest
    return hashes
