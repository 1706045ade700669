"""Ordinary Hugging Face model folders, read and written without transformers.

A folder holds config.json, model.safetensors (or shards with model.safetensors.index.json), the tokenizer's files, a
chat template and generation_config.json. What is written here opens with `transformers.AutoModelForCausalLM` and gives
the same logits. Writes go to a temporary folder that is renamed at the end, so a full disk or a kill leaves the old.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from posttrain import dist
from posttrain.errors import ModelError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.heads import ScalarModel
from posttrain.models.lazy import Lazy
from posttrain.models.lora import adapter_of

_FAMILY = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_SCALAR = "ForSequenceClassification"
_SHARD_BYTES = 5 * 2**30


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a folder's config.json. ModelError where the family or a feature is not supported."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no config.json: it is not a model folder. Give a folder in Hugging Face format."
        )
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise ModelError(f"{path} is not valid JSON ({e}). Fetch the folder again.") from None
    return parse_config(raw, path)


def parse_config(raw: dict, path: Path | str = "config") -> ModelConfig:
    """The ModelConfig of a config.json's contents; `path` is what errors call it. ModelError as in `read_config`."""
    kind = raw.get("model_type")
    if kind not in _FAMILY:
        raise ModelError(
            f'{path}: model_type "{kind}" is not one of {", ".join(_FAMILY)}, the dense families that this decoder '
            "reads. Convert the model, or choose one of these families."
        )
    if raw.get("use_sliding_window"):
        raise ModelError(f"{path}: sliding-window attention (use_sliding_window) is not supported.")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f'{path}: hidden_act "{raw["hidden_act"]}" is not supported; these families use "silu".')
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"{path}: rotating only a part of each head (partial_rotary_factor) is not supported.")
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    known = {f for f in ModelConfig.__dataclass_fields__ if f not in ("extra", "output_bias")}
    try:
        return ModelConfig(
            model_type=kind,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=raw["num_attention_heads"],
            num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim")
            or (128 if kind == "qwen3" else raw["hidden_size"] // raw["num_attention_heads"]),
            max_position_embeddings=raw.get("max_position_embeddings", 2048 if kind == "llama" else 32768),
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
            rope_scaling={k: v for k, v in rope.items() if k != "rope_theta"} if scaled else None,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            attention_bias=True if kind == "qwen2" else raw.get("attention_bias", False),
            output_bias=False if kind == "qwen2" else raw.get("attention_bias", False),
            mlp_bias=raw.get("mlp_bias", False) if kind == "llama" else False,
            initializer_range=raw.get("initializer_range", 0.02),
            extra={k: v for k, v in raw.items() if k not in known},
        )
    except KeyError as e:
        raise ModelError(f"{path} lacks the key {e}: the shape of the model is not known without it.") from None


def config_json(cfg: ModelConfig, dtype: torch.dtype = torch.float32, *, scalar: bool = False) -> dict:
    """The config.json of a model stored in `dtype`, in the form that transformers reads (before and since version 5).

    scalar: the folder holds a ScalarModel.
    """
    out = dict(cfg.extra)
    for key in ("rope_parameters", "torch_dtype", "transformers_version", "quantization_config"):
        out.pop(key, None)
    for key in ModelConfig.__dataclass_fields__:
        if key not in ("extra", "output_bias"):
            out[key] = getattr(cfg, key)
    if cfg.model_type == "qwen2":
        del out["attention_bias"]  # implied by the family
    if cfg.model_type != "llama":
        del out["mlp_bias"]
    if scalar:
        out |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # how transformers spells "one number"
    return out | {
        "architectures": [_FAMILY[cfg.model_type] + (_SCALAR if scalar else "ForCausalLM")],
        "hidden_act": "silu",
        "dtype": str(dtype).removeprefix("torch."),
    }


def read_weights(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a folder's safetensors files, sharded or not, under Hugging Face's names; read when asked for.

    Raises ModelError if there are none, if the index names a shard that is missing, or if a file is damaged.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        legacy = list(folder.glob("pytorch_model*.bin"))
        hint = (
            "It has pytorch_model.bin files, which can run code when opened: convert them to safetensors first."
            if legacy
            else "Fetch the folder again, or give the folder that training wrote."
        )
        raise ModelError(f"{folder} lacks the weights {', '.join(missing)}. {hint}")
    return Lazy({key: partial(_read, folder / name, key) for name in names for key in _keys(folder / name)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file. Raises ModelError if it is damaged."""
    return {key: _read(path, key) for key in _keys(path)}


def _keys(path: Path) -> list[str]:
    with _opened(path) as f:
        return list(f.keys())


def _read(path: Path, key: str) -> Tensor:
    with _opened(path) as f:
        return f.get_tensor(key)


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except Exception as e:  # safetensors raises its own class, a plain OSError or a Rust panic by version
        raise ModelError(f"{path} cannot be read ({e}): it is damaged or cut off. Fetch it again.") from None


def load_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Decoder | ScalarModel:
    """The model of a folder, in `dtype`, on CPU: a ScalarModel where it has a scalar head, else a Decoder.

    ModelError if names or shapes of weights do not fit the config.
    """
    model = _made(folder).to(dtype)
    copy_weights(model, folder)
    return model


def shape_of(folder: Path) -> Decoder | ScalarModel:
    """The model of a folder without values, on the device "meta": only config.json is read."""
    with torch.device("meta"):
        return _made(folder)


def _made(folder: Path) -> Decoder | ScalarModel:
    cfg = read_config(folder)
    scalar = any(a.endswith(_SCALAR) for a in cfg.extra.get("architectures") or ())
    return ScalarModel(Decoder(cfg)) if scalar else Decoder(cfg)


def copy_weights(model: Decoder | ScalarModel, folder: Path) -> None:
    """Copy a folder's weights into a model of the same shape. ModelError if names or shapes do not fit."""
    copy_tensors(model, read_weights(folder), folder)


def copy_tensors(model: Decoder | ScalarModel, have: Mapping[str, Tensor], folder: Path | str = "weights") -> None:
    """Copy tensors under Hugging Face's names into a model; `folder` is what errors call them.

    The head of a tied model may be among them, and is not read. ModelError if names or shapes do not fit.
    """
    cfg = model.cfg
    want = {hf_name(name): p for name, p in model.named_parameters()}
    if "lm_head.weight" in want and "lm_head.weight" not in have:
        raise ModelError(
            f"{folder}: the head is not tied (tie_word_embeddings is false) but lm_head.weight is missing."
        )
    missing = [n for n in want if n not in have]
    ignorable = () if "lm_head.weight" in want else ("lm_head.weight",)
    extra = [n for n in have if n not in want and n not in ignorable and not n.endswith("rotary_emb.inv_freq")]
    if missing or extra:
        raise ModelError(
            f"{folder}: weights do not fit the {cfg.model_type} config: "
            f"{len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(extra)} unknown ({', '.join(extra[:3])})."
        )
    with torch.no_grad():
        for name, p in want.items():
            x = have[name]
            if p.shape != x.shape:
                raise ModelError(f"{folder}: {name} has shape {list(x.shape)}, the config wants {list(p.shape)}.")
            p.copy_(dist.like(x, p))


def hf_name(parameter: str) -> str:
    """Hugging Face's name of a decoder's parameter."""
    parameter = parameter.removeprefix("decoder.")
    return parameter if parameter.startswith(("lm_head", "score")) else "model." + parameter


def save_weights(tensors: dict[str, Tensor], folder: Path, *, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write tensors as model.safetensors, or as numbered shards with an index where they exceed `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, x in tensors.items():
        bytes_ = x.numel() * x.element_size()
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = x.detach().cpu().contiguous()
        size += bytes_
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    where = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
    total = sum(x.numel() * x.element_size() for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_folder(
    model: Decoder | ScalarModel,
    folder: Path,
    *,
    tokenizer=None,
    generation: dict | None = None,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write a model folder's files into `folder`: config, weights; where given tokenizer, generation config, README.

    generation: default, where there is a tokenizer: its stop ids as eos ids, without which a stored Jinja template
        would not know where a turn ends.
    dtype: storage type of the weights; default: as they are.

    ModelError for a model with adapters, which whoever opens the folder would leave out without a word.
    """
    if adapter_of(model) is not None:
        raise ModelError(
            f"{folder}: the model has adapters. Store those with `write_adapter`; loading their folder merges them."
        )
    folder = Path(folder)
    tensors = {hf_name(n): dist.brought(p.detach().to(dtype or p.dtype)) for n, p in model.named_parameters()}
    if dist.rank():  # the other processes only bring their shards
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(tensors, folder, shard_bytes=shard_bytes)
    stored = dtype or next(model.parameters()).dtype
    config = config_json(model.cfg, stored, scalar=isinstance(model, ScalarModel))
    if tokenizer is not None:
        tokenizer.save(folder)
        config.setdefault("pad_token_id", tokenizer.pad_id)
        generation = generation_of(tokenizer) if generation is None else generation
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if card is not None:
        (folder / "README.md").write_text(card)


def generation_of(tokenizer) -> dict | None:
    """The generation_config.json that a tokenizer asks for: where to stop; None where it knows no stop ids."""
    ids = list(tokenizer.stop_ids)
    return {"eos_token_id": ids, "pad_token_id": tokenizer.pad_id} if ids else None


def save_folder(model: Decoder | ScalarModel, folder: Path, **parts) -> None:
    """`write_folder` under a temporary name, then renamed: an existing folder is replaced as a whole, at the end."""
    folder = Path(folder)
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write_folder(model, partial, **parts)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
