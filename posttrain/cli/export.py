"""`posttrain export RUN OUT`: a trained model as an ordinary Hugging Face folder with a model card.

Whatever reads such folders reads this one: transformers, vLLM, llama.cpp's converter. Adapters are merged into their
base (for PEFT they lie ready in the run's checkpoint). Stop ids of the chat template
are written as the generation's eos ids, so that the model ends its turn there as it does here.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.cli.options import parse
from posttrain.errors import UsageError

if TYPE_CHECKING:
    from posttrain.models.load import Loaded

MARK = "generated_by: posttrain export"
"""The line of the card's front matter by which a folder is known to be an export, and may be replaced."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model as a Hugging Face folder: weights, tokenizer, chat template, generation config and model card."""

    run: str
    """A run, a demo folder, a checkpoint, any other model ("base", a Hugging Face folder), or a llama2.c .bin file."""
    out: Path
    """The folder to write. It must be new, empty, or an earlier export, which is replaced."""
    tokenizer: Path | None = None
    """The vocabulary of a llama2.c model, such as tok512.bin for stories260K.bin. Other models bring their own."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which the weights are stored. Training here uses float32; 16 bits halve the size and round."""


@dataclass(frozen=True)
class Stage:
    """One training run on the way from the base to the model."""

    run: Path
    method: str
    data: str
    steps: int
    metrics: dict[str, float]
    """Of the step whose checkpoint was taken."""


def main(words: Sequence[str]) -> None:
    """Check the target, load, write."""
    usage = "posttrain export RUN OUT [--dtype bfloat16], or posttrain export MODEL.bin OUT --tokenizer TOKENIZER.bin"
    options = parse(Options, words, usage, ("run", "out"))
    check_target(options.out)
    import torch

    from posttrain.models.hf_format import save_folder
    from posttrain.train.checkpoint import full_disk

    loaded = _load(options)
    out = options.out.resolve()
    if out == loaded.folder.resolve() or out in loaded.folder.resolve().parents:
        raise UsageError(f"{options.out} holds the model that is to be exported. Name a new folder.")
    eos = {"eos_token_id": list(loaded.stop_ids), "pad_token_id": loaded.tokenizer.pad_id}
    try:
        save_folder(
            loaded.model,
            out,
            tokenizer=loaded.chat_tokenizer,
            generation=eos | {"do_sample": True, "temperature": 1.0},
            card=card(options.run, loaded),
            dtype=getattr(torch, options.dtype),
        )
    except Exception as error:  # safetensors and the system each have their own class for a full disk
        raise full_disk(error, f"writing {options.out}", out.parent) or error from error
    size = sum(p.stat().st_size for p in out.iterdir()) / 2**20
    print(f"{options.out}: {size:.1f} MiB, {options.dtype}, from {loaded.folder}. README.md is its card; read it over.")


def _load(options: Options) -> "Loaded":
    """The model to write. Raises UsageError where a llama2.c file comes without its vocabulary, or the reverse."""
    from posttrain.models.llama2c import load_llama2c
    from posttrain.models.load import Loaded, load

    is_llama2c = options.run.endswith(".bin")
    if is_llama2c and options.tokenizer is None:
        raise UsageError(
            f"{options.run} is a llama2.c checkpoint, which has its vocabulary in a second file. "
            "Add --tokenizer FILE, such as tok512.bin for stories260K.bin."
        )
    if options.tokenizer is not None and not is_llama2c:
        raise UsageError(
            f"--tokenizer {options.tokenizer} is for llama2.c files (.bin); {options.run} brings its own. Leave it out."
        )
    if not is_llama2c:
        return load(options.run)
    return Loaded(*load_llama2c(options.run, options.tokenizer), None, Path(options.run))


def check_target(out: Path) -> None:
    """Raises UsageError where writing to `out` would destroy anything but an earlier export."""
    if out.is_file():
        raise UsageError(f"{out} is a file. Name a folder that does not exist yet.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    readme = out / "README.md"
    if not (readme.is_file() and MARK in readme.read_text(errors="replace")):
        held = ", ".join(sorted(p.name for p in out.iterdir())[:3])
        raise UsageError(f"{out} is not empty (it holds {held}) and was not made by export. Name a new folder.")
    print(f"{out} is an earlier export and will be replaced.")


def card(name: str, loaded: "Loaded") -> str:
    """The model card: front matter for the hub, then what is known of how the model was made."""
    from posttrain import __version__
    from posttrain.models.decoder import Decoder

    stages, base = lineage(name, loaded.folder)
    kind = "text-generation" if isinstance(loaded.model, Decoder) else "text-classification"
    front = ["---", "library_name: transformers", f"pipeline_tag: {kind}", f"license: {licence(base)}"]
    if base is not None:
        front.append(f"base_model: {json.dumps(base)}")
    front += ["tags:", "- posttrain", *(f"- {s.method}" for s in stages), f"{MARK} {__version__}", "---", ""]
    count = sum(p.numel() for p in loaded.model.parameters())
    cfg = loaded.model.cfg
    text = [
        f"# {Path(name).name}",
        "",
        f"{count:,} parameters, {cfg.num_hidden_layers} layers of {cfg.model_type}, context {loaded.context}.",
        "",
    ]
    if kind == "text-classification":
        text += [
            "A reward model. The score is the logit at the last token of a conversation that ends with the assistant's "
            "stop token; only differences between answers to one prompt mean anything.",
            "",
        ]
    text += ["## How it was made", "", f"Starting point: {base or 'not recorded'}.", ""]
    for s in stages:
        text += [f"### {s.method}: {s.steps} steps on {s.data}", "", "| metric | last value |", "| --- | --- |"]
        text += [*(f"| {k} | {v:.5g} |" for k, v in sorted(s.metrics.items())), ""]
    template = loaded.chosen.name if loaded.chosen else "None: a base model, which continues text"
    text += ["## Chat template", "", f"{template}; generation stops at {_stops(loaded)}.", ""]
    return "\n".join([*front, *text])


def lineage(name: str, folder: Path) -> tuple[list[Stage], str | None]:
    """The training runs that led to a model folder, first one first, and the name of the model they began with.

    A run that can no longer be found ends the chain; its name is then the starting point.
    """
    from posttrain.errors import ModelError
    from posttrain.models.load import resolve
    from posttrain.models.peft_format import base_name, is_adapter
    from posttrain.train import checkpoint

    stages: list[Stage] = []
    base: str | None = str(name)
    while (run := _run_of(folder)) is not None or is_adapter(folder):
        if run is None:
            base = base_name(folder)  # adapters that were trained elsewhere
        else:
            cfg = tomllib.loads((run / "config.toml").read_text())
            meta = json.loads((run / "meta.json").read_text())
            metrics = checkpoint.read_record(folder)["metrics"]
            data = cfg.get("data", {}).get("path", "data that the config does not name")
            stages.insert(0, Stage(run, meta["method"], data, checkpoint.steps_of(folder), metrics))
            base = cfg.get("model")
        try:
            folder = resolve(base)
        except (ModelError, TypeError):
            break
    return stages, base


def _run_of(folder: Path) -> Path | None:
    """The run to which a checkpoint folder belongs."""
    run = folder.parent.parent
    inside = folder.parent.name == "checkpoints" and (run / "config.toml").is_file() and (run / "meta.json").is_file()
    return run if inside else None


def licence(base: str | None) -> str:
    """The licence that the starting point's own card names, else "other": nobody but its author can say."""
    readme = Path(base or "") / "README.md"
    text = readme.read_text(errors="replace") if base and readme.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else "other"


def _stops(loaded: "Loaded") -> str:
    tokens: list[Any] = [loaded.tokenizer.token(i) for i in loaded.stop_ids]
    return ", ".join(f"`{t}`" for t in tokens)
