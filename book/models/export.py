"""What `book/widgets/lm.js` reads, written into the site: the embedded base, adapters trained from it, the adder.

Weights stay in the 16 bits in which they are shipped. The poster is the group of answers that the page itself would
sample with these settings, sampled by the library's own decoder, so that a page shows one before it loads any weights.
"""

import json
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from book.models import adder
from posttrain import rng
from posttrain.models.decoder import Decoder
from posttrain.models.hf_format import load_folder
from posttrain.models.load import load
from posttrain.models.peft_format import merge_adapter, read_adapter

HERE = Path(__file__).parent
POSTER = {"digits": "4975", "size": 8, "temperature": 1.0, "seed": 3}
MOST = 20
"""Tokens of an answer; `MOST` of book/widgets/adder.js."""
ASKED = {"question": "What is 47+85?", "seed": 2, "temperature": 1.0}


def write(out: Path) -> None:
    """Fill the folder."""
    for name, source, files in (
        ("base", load("base").folder, ("config.json", "model.safetensors", "tokenizer.json")),
        *((f.name, f, ("adapter_config.json", "adapter_model.safetensors", "training.json"))
          for f in sorted(HERE.iterdir()) if (f / "adapter_config.json").is_file()),
        ("adder", adder.FOLDER, ("config.json", "model.safetensors", "training.json")),
    ):  # fmt: skip
        (out / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(source / file, out / name / file)
    words = adder.encode("+".join(POSTER["digits"]) + "=")
    how = {k: POSTER[k] for k in ("temperature", "seed")}
    answers = sampled(load_folder(adder.FOLDER), words, POSTER["size"], most=MOST, stop=(1,), **how)
    put(out / "adder/poster.json", POSTER | {"answers": answers})
    put(out / "base/poster.json", ASKED | {"texts": {name: asked(name) for name in ("base", "sums-grpo")}})


def put(path: Path, content: Any) -> None:
    """Compact JSON."""
    path.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False))


def asked(name: str) -> list[str]:
    """What the base, or the base with an adapter, answers to the first question of book/widgets/ask-base.js."""
    base = load("base")
    if name != "base":
        merge_adapter(base.model, read_adapter(HERE / name))
    prompt = base.tokenizer.encode(f"Q: {ASKED['question']}\nA:")
    stop = base.tokenizer.stop_ids
    said = sampled(base.model, prompt, 4, temperature=ASKED["temperature"], seed=ASKED["seed"], most=40, stop=stop)
    return [base.tokenizer.decode(tokens) for tokens in said]


@torch.inference_mode()
def sampled(model: Decoder, prompt: Sequence[int], size: int, *, temperature: float, seed: int, most: int,
            stop: Collection[int]) -> list[list[int]]:  # fmt: skip
    """Tokens of each answer: in every step one uniform number for each answer that goes on, as in the page."""
    said: list[list[int]] = [[] for _ in range(size)]
    alive, drawn = list(range(size)), 0
    for _ in range(most):
        if not alive:
            break
        rows = torch.tensor([[*prompt, *said[i]] for i in alive])
        logp = torch.log_softmax(model.logits(model(rows)[:, -1]).double() / temperature, -1)
        u = rng.uniform(torch.full((len(alive),), seed), torch.arange(drawn, drawn + len(alive)))
        drawn += len(alive)
        tokens = (logp.exp().cumsum(1) <= u[:, None]).sum(1).clamp(max=logp.shape[1] - 1).tolist()
        for i, token in zip(alive, tokens, strict=True):
            said[i].append(token)
        alive = [i for i in alive if said[i][-1] not in stop]
    return said


def keep(checkpoint: Path, name: str) -> None:
    """Store a checkpoint's adapters in book/models/NAME, in 16 bits; training.json beside them is written by hand."""
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    (HERE / name).mkdir(exist_ok=True)
    halves = {key: x.half().contiguous() for key, x in tensors.items()}
    save_file(halves, HERE / name / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(checkpoint / "adapter_config.json", HERE / name / "adapter_config.json")


if __name__ == "__main__":  # python -m book.models.export runs/RUN/checkpoints/step-000060 NAME
    keep(Path(sys.argv[1]), sys.argv[2])
