"""Adapter folders in PEFT's format, written and read without peft.

A folder holds adapter_config.json, adapter_model.safetensors and the tokenizer's files; the weights that it belongs to
are those of another folder, which it names. PEFT opens what is written here. What PEFT wrote is read if it changes
linear layers by W + s · B A, rows of single tokens, a scalar head, and nothing else; an adapter with a further feature
is refused by the feature's name, since leaving it out would give another model without a word.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from posttrain import dist
from posttrain.errors import ModelError
from posttrain.models.decoder import Decoder
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import generation_of, hf_name, read_tensors
from posttrain.models.lora import TABLES, Adapter, Lora, LoraLinear, adapted, adapter_of, trained_rows, updated

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SCORE = "score.weight"
_ROWS = ".token_adapter.trainable_tokens_delta"  # PEFT's name; they are the rows themselves
_SCALAR = "SEQ_CLS"
_READ = {
    "base_model_name_or_path", "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "target_modules",
    "trainable_token_indices",
}  # fmt: skip
_NO_EFFECT = {
    "auto_mapping", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
}  # fmt: skip
"""Keys that say how an adapter was made or found, and change nothing in what it computes. Any other must be empty."""
_HEADS = {"classifier", "score"}
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin A and B that leave the base as it is; others (PiSSA, OLoRA, LoftQ, ...) change it before training."""


@dataclass(frozen=True)
class Stored:
    """The content of an adapter folder."""

    folder: Path
    base: str
    """Name or folder of the model that it belongs to."""
    scale: float
    targets: tuple[str, ...] | str
    """Names of the layers that are adapted, as PEFT counts them: last parts, or a pattern for the whole name."""
    updates: dict[str, tuple[Tensor, Tensor]]
    """Layer, by Hugging Face's name, to A [r, in] and B [out, r]."""
    rows: dict[str, tuple[list[int], Tensor]]
    """Embedding or head, by Hugging Face's name, to ids [n] and rows [n, D] of single tokens."""
    score: Tensor | None
    """Weight of the scalar head, where the adapted model has one."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters. ModelError where whole weights lie beside them: which are meant?"""
    if not (folder / CONFIG).is_file():
        return False
    whole = [n for n in ("model.safetensors", "model.safetensors.index.json") if (folder / n).is_file()]
    if whole:
        raise ModelError(
            f"{folder} holds adapters ({CONFIG}) and a whole model ({whole[0]}): it is not clear whether the adapters "
            "are merged into it. Move one of the two into a folder of its own."
        )
    return True


def base_name(folder: Path) -> str:
    """Name or folder of the model that an adapter folder belongs to."""
    return _read_config(folder)["base_model_name_or_path"]


def write_adapter(model: Decoder | ScalarModel, folder: Path, *, tokenizer=None) -> None:
    """Write the adapters of a model into `folder`, in full precision, with a tokenizer and its stop ids if given."""
    adapter = adapter_of(model)
    tensors = {_key(name): dist.brought(p.detach()) for name, p in model.named_parameters() if p.requires_grad}
    if dist.rank():  # the other processes only bring their shards
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    scalar = isinstance(model, ScalarModel)
    (folder / CONFIG).write_text(json.dumps(_config(model, adapter, scalar), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)
        if generation := generation_of(tokenizer):
            (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def read_adapter(folder: Path) -> Stored:
    """What an adapter folder holds. ModelError for a feature that is not supported, and for damage."""
    raw = _read_config(Path(folder))
    tensors = read_tensors(_weights_file(folder))
    score = tensors.pop(_PREFIX + _SCORE, None)
    scalar = raw.get("task_type") == _SCALAR
    if scalar != (score is not None):
        raise ModelError(
            f"{folder}: task_type {raw.get('task_type')} {'needs' if scalar else 'has no'} {_SCORE}, the weight of a "
            f"scalar head, and {WEIGHTS} {'lacks' if scalar else 'holds'} it. Save the adapter again."
        )
    rank = raw["r"]
    scale = Lora(rank=rank, alpha=raw["lora_alpha"], rslora=bool(raw.get("use_rslora"))).scale
    some = raw.get("exclude_modules") or raw.get("layers_to_transform")
    targets = () if some else raw.get("target_modules") or ()
    return Stored(
        folder=Path(folder),
        base=raw["base_model_name_or_path"],
        scale=scale,
        targets=targets if isinstance(targets, str) else tuple(targets),
        rows=_take_rows(tensors, raw.get("trainable_token_indices") or [], Path(folder)),
        updates=_pair(tensors, rank, Path(folder)),
        score=score,
    )


@torch.no_grad()
def merge_adapter(model: Decoder | ScalarModel, stored: Stored) -> None:
    """Add an adapter's updates to the weights of its base, in place. ModelError if names or shapes do not fit."""
    modules = {hf_name(name): m for name, m in model.named_modules()}
    layers = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
    _check_fit(layers, stored)
    for name, (a, b) in stored.updates.items():
        weight = layers[name].weight
        weight.copy_(updated(weight, a, b, stored.scale))
    for name, (ids, rows) in stored.rows.items():
        table = modules.get(name)
        if table is None or rows.shape[1:] != table.weight.shape[1:] or max(ids) >= len(table.weight):
            have = "it has none" if table is None else f"it has one of {list(table.weight.shape)}"
            raise ModelError(
                f"{stored.folder} belongs to {stored.base}, whose weights it does not fit: of {name} it replaces rows "
                f"of {list(rows.shape)}, up to token {max(ids)}, and {have}."
            )
        table.weight[ids] = rows.to(table.weight.dtype)
    if stored.score is not None:
        model.score.weight.copy_(stored.score)


@torch.no_grad()
def copy_adapter(model: Decoder | ScalarModel, folder: Path) -> None:
    """Copy stored adapters into a model that has adapters of the same shape, bit for bit: to go on training them."""
    stored = read_adapter(folder)
    layers = {hf_name(name): m for name, m in adapted(model)}
    _check_fit(layers, stored)
    if unstored := sorted(layers.keys() - stored.updates.keys()):
        raise ModelError(f"{folder} lacks the adapters of {', '.join(unstored[:3])}, which this run trains.")
    tables = {hf_name(name): m for name, m in trained_rows(model)}
    if {n: m.ids.tolist() for n, m in tables.items()} != {n: ids for n, (ids, _) in stored.rows.items()}:
        raise ModelError(f"{folder} trains rows of other tokens than this run. Start into a new folder (--out).")
    for name, table in tables.items():
        table.tokens.copy_(dist.like(stored.rows[name][1], table.tokens))
    for name, (a, b) in stored.updates.items():
        layers[name].lora_A.copy_(dist.like(a, layers[name].lora_A))
        layers[name].lora_B.copy_(dist.like(b, layers[name].lora_B))
    if stored.score is not None:
        model.score.weight.copy_(dist.like(stored.score, model.score.weight))


def _take_rows(tensors: dict[str, Tensor], named: list[int] | dict[str, list[int]], folder: Path) -> dict:
    """Ids and rows of single tokens, taken out of the tensors. ModelError where their numbers differ."""
    named = named if isinstance(named, dict) else {TABLES[0]: named} if named else {}
    found = {}
    for key in [key for key in tensors if key.endswith(_ROWS)]:
        module = key.removeprefix(_PREFIX).removesuffix(_ROWS)
        ids = named.pop(module.rpartition(".")[2], [])
        rows = tensors.pop(key)
        if len(ids) != len(rows):
            raise ModelError(f"{folder / WEIGHTS} has {len(rows)} rows of {module}, {CONFIG} names {len(ids)} tokens.")
        found[module] = (list(ids), rows)
    if named:
        raise ModelError(f"{folder / WEIGHTS} lacks the rows of {', '.join(named)} that {CONFIG} names.")
    return found


def _pair(tensors: dict[str, Tensor], rank: int, folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer. ModelError for any other tensor, for one without its partner, and for another rank."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, x in tensors.items():
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if match:
            found.setdefault(match[1], {})[match[2]] = x
        else:
            unknown.append(key)
    if unknown or not found:
        what = f"{len(unknown)} tensors that are no update of a linear layer ({', '.join(unknown[:3])})"
        raise ModelError(f"{folder / WEIGHTS} holds {what if unknown else 'nothing'}: it cannot be applied.")
    if lone := [f"{name}.lora_{half}.weight" for name, x in found.items() for half in "AB" if half not in x]:
        raise ModelError(f"{folder / WEIGHTS} lacks {', '.join(lone[:3])}. Fetch or save the adapter again.")
    for name, x in found.items():
        if x["A"].dim() != 2 or x["A"].shape[0] != rank or x["B"].shape[1:] != (rank,):
            shapes = f"{list(x['A'].shape)} and {list(x['B'].shape)}"
            raise ModelError(f"{folder}: {CONFIG} says rank {rank}, but {name} has matrices of {shapes}.")
    return {name: (x["A"], x["B"]) for name, x in found.items()}


def _check_fit(layers: dict[str, nn.Linear] | dict[str, LoraLinear], stored: Stored) -> None:
    """Raise ModelError unless every update has a layer of its shape, and every layer that is meant an update."""
    of = f"{stored.folder} belongs to {stored.base}, whose weights it does not fit"
    if strange := [name for name in stored.updates if name not in layers]:
        raise ModelError(f"{of}: {len(strange)} layers are not linear layers of it ({', '.join(strange[:3])}).")
    for name, (a, b) in stored.updates.items():
        want = list(layers[name].weight.shape)
        if [b.shape[0], a.shape[1]] != want:
            have = f"an update of [{b.shape[0]}, {a.shape[1]}] for {name}, which is {want}"
            raise ModelError(f"{of}: it has {have}. Name the right base in {CONFIG}, base_model_name_or_path.")
    missing = [name for name in layers if name not in stored.updates and _is_target(name, stored.targets)]
    if missing:
        raise ModelError(f"{of}: {len(missing)} layers that it targets have no update ({', '.join(missing[:3])}).")


def _is_target(name: str, targets: tuple[str, ...] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith(f".{t}") for t in targets)


def _key(parameter: str) -> str:
    """PEFT's name of a trained parameter."""
    owner, _, last = hf_name(parameter).rpartition(".")
    return _PREFIX + owner + (_ROWS if last == "tokens" else f".{last}" if last == "weight" else f".{last}.weight")


def _config(model: nn.Module, adapter: Adapter, scalar: bool) -> dict[str, Any]:
    """The adapter_config.json: layers by their last name where all of that name are adapted, else by the whole."""
    layers = {hf_name(name) for name, _ in adapted(model)}
    others = [hf_name(name) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    mixed = {name.rpartition(".")[2] for name in others}
    targets = {name if name.rpartition(".")[2] in mixed else name.rpartition(".")[2] for name in layers}
    lora = adapter.lora
    rows = {name.rpartition(".")[2]: m.ids.tolist() for name, m in trained_rows(model)}
    return {
        "peft_type": "LORA",
        "task_type": _SCALAR if scalar else "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": sorted(targets),
        "modules_to_save": ["score"] if scalar else None,
        "trainable_token_indices": rows if len(rows) > 1 else rows.get(TABLES[0]),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    """An adapter_config.json whose every feature is supported; ModelError names those that are not."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"{path} is not valid JSON ({e}). Fetch the folder again.") from None
    if raw.get("peft_type") != "LORA":
        raise ModelError(f'{path}: peft_type "{raw.get("peft_type")}" is not supported; only "LORA" is.')
    if missing := [key for key in ("base_model_name_or_path", "r", "lora_alpha") if not raw.get(key)]:
        raise ModelError(f"{path} does not say {', '.join(missing)}: without it the adapter cannot be applied.")
    if bad := [f"{key} = {json.dumps(value)}" for key, value in raw.items() if value and not _is_plain(raw, key)]:
        raise ModelError(
            f"{path}: {', '.join(bad)} is not supported: only updates W + s · B A of linear layers are. Merge the "
            "adapter with PEFT (merge_and_unload) and load the merged folder."
        )
    return raw


def _is_plain(raw: dict[str, Any], key: str) -> bool:
    """Whether a key that is set leaves an adapter at W + s · B A of linear layers, and a scalar head."""
    match key:
        case "bias":
            return raw[key] == "none"
        case "init_lora_weights":
            return raw[key] in _STARTS
        case "modules_to_save":
            return raw.get("task_type") == _SCALAR and set(raw[key]) <= _HEADS
    return key in _READ or key in _NO_EFFECT


def _weights_file(folder: Path) -> Path:
    path = Path(folder) / WEIGHTS
    if path.is_file():
        return path
    hint = "Fetch the folder again, or give the folder that training wrote."
    if (Path(folder) / "adapter_model.bin").is_file():
        hint = "It has adapter_model.bin, which can run code when opened: convert it to safetensors first."
    raise ModelError(f"{folder} lacks {WEIGHTS}. {hint}")
