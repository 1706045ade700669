"""From a name to a model: "base", a run, a Hugging Face folder, adapters in PEFT's format, or a name on the hub.

What comes back is an `nn.Module`, its tokenizer and its chat template; after loading, nobody knows where it came from.
Adapters are merged into their base; only a run that resumes goes on with them (`Learner.load_model`). Hub names are
fetched with huggingface_hub where that is installed; everything else works without a network.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posttrain import device, dist
from posttrain.chat.encode import stop_ids
from posttrain.chat.templates import JinjaTemplate, Template, choose, stored
from posttrain.errors import ModelError, missing_extra
from posttrain.models.decoder import Decoder
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import hf_name, load_folder, read_weights, shape_of
from posttrain.models.lora import Lora, adapter_of, add_adapters, without_adapters
from posttrain.models.peft_format import CONFIG as ADAPTER
from posttrain.models.peft_format import base_name, is_adapter, merge_adapter, read_adapter
from posttrain.models.tokenizers import Tokenizer
from posttrain.train.folder import found, read_result

EMBEDDED = {"base": "base-1", "base-1": "base-1"}
"""Names of the models inside the package, and their folders in assets/."""


@dataclass(frozen=True)
class Loaded:
    """A model with what is needed to talk to it."""

    model: Decoder | ScalarModel
    tokenizer: Tokenizer
    chosen: Template | JinjaTemplate | None
    """The chat template, None for a base model that has none: enough for plain text, where no turn is rendered."""
    folder: Path
    """Where the weights were read."""
    name: str = ""
    """By which the weights are found again, for adapters that belong to them: a name, or a whole path."""

    @property
    def template(self) -> Template | JinjaTemplate:
        """The chat template. Raises ModelError where there is none, with those that can be named."""
        return self.chosen or choose("auto", self.tokenizer)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end the model's turn, or where it knows no turns, its text."""
        return self.tokenizer.stop_ids if self.chosen is None else stop_ids(self.chosen, self.tokenizer)

    @property
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer with the chat template in use, as it is to be saved beside the trained weights."""
        if self.chosen is None:
            return self.tokenizer
        return self.tokenizer.with_chat(stored(self.chosen, self.tokenizer), self.stop_ids)

    def adapted(self, lora: Lora, seed: int) -> Decoder | ScalarModel:
        """The model with new adapters on it, in place, or as it is where their rank is 0; see `add_adapters`."""
        return add_adapters(self.model, lora, base=self.name, seed=seed, marks=self.tokenizer.marks.values())

    @property
    def context(self) -> int:
        """Longest sequence of tokens that the model was made for."""
        return self.model.cfg.max_position_embeddings


def resolve(name: str | Path, *, weights: bool = True) -> Path:
    """The model folder that a name stands for: whole weights, or adapters.

    "base" is the model in the package. A run folder stands for its best or last checkpoint, a demo folder for its last
    stage. Anything else is a folder in Hugging Face format, or a name on the hub. ModelError says what was tried.
    weights: whether to fetch them from the hub as well.
    """
    if str(name) in EMBEDDED:
        folder = Path(__file__).parents[1] / "assets" / EMBEDDED[str(name)]
        if not (folder / "config.json").is_file():
            raise ModelError(f"the embedded model is missing from {folder}: reinstall posttrain, or run `make base`.")
        return folder
    folder = Path(name)
    if (folder / "result.json").is_file() or (folder / "checkpoints").is_dir():
        return _of_run(folder)
    if (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
        return folder
    stages = sorted(p for p in folder.glob("*/checkpoints") if (p.parent / "config.toml").is_file())
    if stages:
        return _of_run(stages[-1].parent)
    if folder.is_dir():
        raise ModelError(
            f"{folder} is neither a model folder (no config.json or {ADAPTER}) nor a run (no checkpoints). It holds: "
            f"{', '.join(sorted(p.name for p in folder.iterdir())[:6]) or 'nothing'}."
        )
    if folder.is_absolute() or str(name).startswith(".") or str(name).count("/") != 1:
        raise ModelError(
            f'there is no model "{name}": not a folder here, and not a name on the hub (owner/name). '
            'The model inside the package is called "base".'
        )
    return _from_hub(str(name), weights)


def load(name: str | Path, *, template: str = "auto", dtype: torch.dtype = torch.float32) -> Loaded:
    """The model, tokenizer and chat template of a name (see `resolve`); in a run, the model is on the run's device.

    template: "auto" for the one stored with the model, or a built-in name ("posttrain", "plain", "chatml").
    """
    folder = resolve(name)
    model = load_model(folder, dtype=dtype).to(device.current())
    tokenizer = _tokenizer(folder)
    if tokenizer.vocab_size > model.cfg.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the embedding has only "
            f"{model.cfg.vocab_size} rows. They belong to different models."
        )
    chosen = None if template == "auto" and tokenizer.chat_template is None else choose(template, tokenizer)
    return Loaded(model, tokenizer, chosen, folder, _lasting(name, folder))


def described(name: str | Path, *, template: str = "auto") -> Loaded:
    """What `load` gives, without any weights: a model of shapes alone, on the device "meta".

    config.json must be there; without a tokenizer beside it, `tokenizer` and `chosen` are None. Of a hub name only the
    small files are fetched.
    """
    folder = resolve(name, weights=False)
    shape = folder
    while is_adapter(shape):
        shape = _base(shape, weights=False)
    model = shape_of(shape)
    if not (shape / "tokenizer.json").is_file():
        return Loaded(model, None, None, folder, _lasting(name, folder))
    tokenizer = _tokenizer(folder)
    chosen = None if template == "auto" and tokenizer.chat_template is None else choose(template, tokenizer)
    return Loaded(model, tokenizer, chosen, folder, _lasting(name, folder))


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> Decoder | ScalarModel:
    """The model of a folder, in `dtype`, on CPU. Adapters are merged into their base, which may have some as well."""
    if not is_adapter(folder):
        return load_folder(folder, dtype=dtype)
    stored = read_adapter(folder)
    model = load_model(_base(folder), dtype=dtype)
    if stored.score is not None and not isinstance(model, ScalarModel):
        model = ScalarModel(model).to(dtype)
    merge_adapter(model, stored)
    return model


def stored_weights(folder: Path) -> Mapping[str, Tensor]:
    """The weights that `load_model` gives, under Hugging Face's names, each read when it is asked for."""
    if not is_adapter(folder):
        return read_weights(folder)
    return {hf_name(name): p.detach() for name, p in load_model(folder).named_parameters()}


def frozen_start(model: Decoder) -> Decoder:
    """What a model is before training, never trained itself: the reference of KL penalties and preference losses.

    With adapters: the same tensors with the adapters off. Else a copy, to be made before the first step.
    """
    if adapter_of(model) is None:
        return frozen_copy(model)
    return without_adapters(model if dist.world() == 1 else frozen_copy(model))


def frozen_copy(model: Decoder) -> Decoder:
    """A copy of a model as it is now, that is never trained. Of a sharded model, whole."""
    if dist.world() > 1:
        from posttrain.scale.distributed import is_sharded, whole_copy

        if is_sharded(model):
            return whole_copy(model)
    return copy.deepcopy(model).requires_grad_(False).eval()


def _base(folder: Path, *, weights: bool = True) -> Path:
    """The model folder to which an adapter folder belongs."""
    name = base_name(folder)
    try:
        base = resolve(name, weights=weights)
    except ModelError as error:
        raise ModelError(
            f'{folder} holds adapters of "{name}", which cannot be found: {error} If it has moved, write its place '
            f"into {folder / ADAPTER}, base_model_name_or_path."
        ) from None
    if base.resolve() == folder.resolve():
        raise ModelError(f"{folder / ADAPTER} names its own folder as base. Name the model that was adapted.")
    return base


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; adapters without one, or without stop ids of their own, use their base's."""
    if not is_adapter(folder):
        return Tokenizer.load(folder)
    if not (folder / "tokenizer.json").is_file():
        return _tokenizer(_base(folder))
    own = Tokenizer.load(folder)
    if (folder / "generation_config.json").is_file():
        return own
    return own.with_chat(own.chat_template, _tokenizer(_base(folder)).stop_ids)


def _lasting(name: str | Path, folder: Path) -> str:
    """A name that means the same model from any folder, and when a run has gone on."""
    if str(name) in EMBEDDED:
        return EMBEDDED[str(name)]
    return str(folder.resolve()) if Path(name).exists() else str(name)


def _of_run(folder: Path) -> Path:
    meta = folder / "meta.json"
    made_by = json.loads(meta.read_text()).get("config_class", "") if meta.is_file() else ""
    if made_by.startswith("posttrain.control."):
        raise ModelError(
            f"{folder} is a run on a control task: its policy is a small network that reads observations and writes no "
            f"text. `posttrain runs show {folder}` shows how it did; a language model is trained by sft, group, ..."
        )
    result = read_result(folder)
    if result is not None and result.model is not None:
        return Path(result.model)
    checkpoints = [c for c in found(folder / "checkpoints") if any((c / n).is_file() for n in ("config.json", ADAPTER))]
    if not checkpoints:
        raise ModelError(
            f"the run {folder} has no checkpoint of a model yet. Let it train until its first one (run.save_every)."
        )
    return checkpoints[-1]


def _from_hub(name: str, weights: bool = True) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra(f'fetching "{name}" from the hub', "hf", "give the path of a folder you have") from None
    patterns = ["*.json", "*.jinja"] + ["*.safetensors", "*.safetensors.index.json"] * weights
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as e:  # its errors are of many classes: offline, gated, unknown, disk
        raise ModelError(
            f'"{name}" is no folder here, and the hub did not give it ({type(e).__name__}: {str(e).splitlines()[0]}). '
            "Check the name and the network, or give the path of a folder you have."
        ) from None
