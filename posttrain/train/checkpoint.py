"""Checkpoints: folders that are either whole or absent.

A checkpoint is written under a temporary name, forced to disk and renamed, so that a kill at any moment, or a full
disk, leaves the previous one intact. `step-000200` holds the state after 200 steps. The part named "policy" lies in
the folder itself, which is therefore also a model folder that other libraries load; other parts have subfolders.

    checkpoints/step-000200/
      model.safetensors config.json ...   the policy, as its `save_model` writes it (Hugging Face's form, or PEFT's)
      optimizer.pt                        what the policy's `state()` returned
      weights.safetensors                 exact weights, where the model folder is not read back (`Part`)
      critic/...                          another part
      state.json  state.pt                the loop's own state; what is not plain JSON goes to state.pt
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from posttrain import dist
from posttrain.errors import RunError
from posttrain.train.folder import found
from posttrain.train.metrics import lookup


class Part(Protocol):
    """Something that a checkpoint keeps: a learner, a moving reference, a buffer of tensors.

    Weights may be in `state()`, or go through methods that a part offers besides:
    `save_model(folder)` writes an ordinary model folder, for other libraries; with `load_model(folder)` the weights
    come back from it. `save_weights(file)` and `load_weights(file)` keep them exactly in a file of their own, which is
    used where there is no `load_model` (what the model folder holds is rounded or merged, and cannot be read back).
    """

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors and plain values in (nested) dicts, lists and tuples."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned, bit for bit."""
        ...


def write(
    root: Path, steps: int, parts: Mapping[str, Part], state: Mapping[str, Any], record: Mapping[str, Any]
) -> Path:
    """Write `root/step-NNNNNN` atomically and return it. An existing one of this name is kept as it is.

    steps: how many steps are done. record: what the run itself remembers (JSON only); see `read_record`.
    Raises RunError when the disk is full: nothing of the new checkpoint is left then, and older ones are intact.
    """
    final = root / f"step-{steps:06d}"
    if dist.first(final.exists):
        return final
    draft = root / f"{final.name}.tmp"
    if dist.rank():  # the first process writes; the others only bring their shards
        for name, part in parts.items():
            _bring(draft if name == "policy" else draft / name, part)
        return final
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, part in parts.items():
            _write_part(draft if name == "policy" else draft / name, part)
        _write_state(draft, state, record)
        _sync_tree(draft)
        os.rename(draft, final)
        _sync(root)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise full_disk(error, f"writing the checkpoint {final}", root) or error from error
    return final


def read(folder: Path, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Load every part from a checkpoint folder and return the loop's own state.

    Raises RunError if the checkpoint has no such part, which means that it belongs to another kind of run.
    """
    import torch

    for name, part in parts.items():
        home = folder if name == "policy" else folder / name
        if not (home / "optimizer.pt").exists():
            raise RunError(
                f'{folder} holds no part named "{name}": it was written by another kind of run. '
                "Start into a new folder (--out)."
            )
        if hasattr(part, "load_model"):
            part.load_model(home)
        elif hasattr(part, "load_weights"):
            part.load_weights(home / "weights.safetensors")
        part.load_state(torch.load(home / "optimizer.pt", map_location="cpu", weights_only=True))
    state = json.loads((folder / "state.json").read_text())["state"]
    if (folder / "state.pt").exists():
        state |= torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return state


def read_record(folder: Path) -> dict[str, Any]:
    """What the run remembered of itself when it wrote this checkpoint: sizes of its files, the step's metrics."""
    return json.loads((folder / "state.json").read_text())["record"]


def steps_of(folder: Path) -> int:
    """How many steps were done when this checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def best(root: Path, metric: str) -> Path | None:
    """The checkpoint whose own step had the best value of a metric, as the glossary counts; ties: the earlier."""
    scored = [(read_record(path)["metrics"].get(metric), path) for path in found(root)]
    scored = [(value, path) for value, path in scored if value is not None]
    if not scored:
        return None
    sign = -1.0 if lookup(metric).better == "down" else 1.0
    return max(scored, key=lambda pair: sign * pair[0])[1]


def prune(root: Path, keep: int, metric: str | None) -> None:
    """Delete all but the last `keep` checkpoints and the best one by `metric`."""
    paths = found(root)
    spared = set(paths[-keep:]) | ({best(root, metric)} if metric else set())
    for path in paths:
        if path not in spared:
            doomed = path.with_name(path.name + ".old.tmp")  # a kill in the middle must not leave half a checkpoint
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove the drafts that a killed process left."""
    for path in root.glob("step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file atomically: a reader sees the old content or the new, never a part."""
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_text(text)
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise full_disk(error, f"writing {path}", path.parent) or error from error


def full_disk(error: Exception, doing: str, folder: Path) -> RunError | None:
    """The RunError to raise if `error` says that the disk or quota is full, else None.

    torch and safetensors wrap the system's error in their own, so the text counts where the number is lost.
    """
    number = getattr(error, "errno", None)
    text = str(error)
    said = "No space left" in text or "os error 28" in text or "Disk quota" in text
    if number not in (errno.ENOSPC, errno.EDQUOT) and not said and "file write failed" not in text:
        return None
    free = shutil.disk_usage(folder).free / 2**20
    return RunError(
        f"the disk is full: {doing} failed with {free:.0f} MiB free in {folder.resolve()}. What was "
        "checkpointed before is intact. Free some space (older checkpoints are in runs/*/checkpoints, run.keep = 1 "
        "keeps one) and run the same command again: it continues from the last checkpoint."
    )


def _write_part(folder: Path, part: Part) -> None:
    import torch  # here, so that `posttrain runs list` need not load it

    folder.mkdir(exist_ok=True)
    state = _bring(folder, part)
    with open(folder / "optimizer.pt", "wb") as file:
        torch.save(state, file)


def _bring(folder: Path, part: Part) -> dict[str, Any]:
    """Let a part write its weights, and return its state: what all processes of a run do together."""
    if hasattr(part, "save_model"):
        part.save_model(folder)
    if hasattr(part, "save_weights") and not hasattr(part, "load_model"):
        part.save_weights(folder / "weights.safetensors")
    return part.state()


def _write_state(folder: Path, state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """JSON for what survives it unchanged, torch's format for the rest (tensors, tuples, integer keys)."""
    import torch

    plain = {key: value for key, value in state.items() if _survives_json(value)}
    rest = {key: value for key, value in state.items() if key not in plain}
    (folder / "state.json").write_text(json.dumps({"record": dict(record), "state": plain}, indent=1))
    if rest:
        torch.save(rest, folder / "state.pt")


def _survives_json(value: Any) -> bool:
    try:
        return _same(json.loads(json.dumps(value)), value)
    except (TypeError, ValueError):
        return False


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
