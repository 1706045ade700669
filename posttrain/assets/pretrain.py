"""Pre-trains the embedded base model on the generated world: `make base`, or `python -m posttrain.assets.pretrain OUT`.

Run by maintainers; the result is shipped. Pre-training is not what posttrain is about, but a base model is needed, and
making it here keeps everything about it open: text, tokenizer, weights. Hidden matrices are trained with Muon (Jordan
et al. 2024), the rest with AdamW; constant learning rate, then linear decay, then a short phase that sets
habits. Interrupted, it resumes when called again.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from posttrain.assets.tokenizer import train_tokenizer
from posttrain.assets.world import corpus
from posttrain.batch import TokenBatch, collate, weigh
from posttrain.chat.templates import POSTTRAIN
from posttrain.evals.base_card import WINDOW, validation_loss, window
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import load_folder, save_folder
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.average import Average
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.schedule import Schedule

ROWS = 16  # windows per step
LONG = 512  # tokens per window in the last eighth of training, so that positions up to 512 are known
SPECIAL = 14  # the tokens before the first that text can contain; only <|endoftext|> occurs in pre-training


class MuonAdamW:
    """Muon for hidden matrices and AdamW for the rest, behind the part of the optimizer interface a learner uses."""

    def __init__(self, model: Decoder, lr_matrices: float, lr_rest: float):
        matrices = [p for p in model.layers.parameters() if p.dim() == 2]
        chosen = set(map(id, matrices))
        rest = [p for p in model.parameters() if id(p) not in chosen]
        muon = torch.optim.Muon(matrices, lr=lr_matrices, momentum=0.95, weight_decay=0.01)
        adam = torch.optim.AdamW(rest, lr=lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.both = (muon, adam)
        self.param_groups = muon.param_groups + adam.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        for o in self.both:
            o.zero_grad(set_to_none)

    def step(self) -> None:
        for o in self.both:
            o.step()

    def state_dict(self) -> list:
        return [o.state_dict() for o in self.both]

    def load_state_dict(self, state: list) -> None:
        for o, s in zip(self.both, state, strict=True):
            o.load_state_dict(s)
        self.param_groups = self.both[0].param_groups + self.both[1].param_groups


def batch(tokenizer: Tokenizer, step: int, steps: int) -> TokenBatch:
    """The windows of one optimizer step: a pure function of the step."""
    long = step >= steps - steps // 8
    rows, size = (ROWS // 2, LONG) if long else (ROWS, WINDOW)
    segments = [window(tokenizer, size, step * ROWS + r, corpus.document) for r in range(rows)]
    return weigh(collate(segments), Average("token"))


def cross_entropy(out: Outputs, b: TokenBatch) -> tuple[list[Term], dict]:
    """The loss of pre-training: -log π of every token."""
    return [Term("lm", -out.logp, b.weights["token"])], {}


def neutralise(model: Decoder) -> None:
    """Give every reserved token but <|endoftext|> the mean embedding of the tokens that text contains.

    They never occurred, so training only pushed them away; at the mean they are neutral and easily learned.
    """
    with torch.no_grad():
        w = model.embed_tokens.weight
        w[1:SPECIAL] = w[SPECIAL:].mean(0)


def pretrain(out: Path, *, steps: int, size: dict[str, int], save_every: int, seed: int) -> Decoder:
    """Train to `steps`, checkpointing into out/pretrain.pt, and return the model."""
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").is_file():
        train_tokenizer(work, corpus.spelling(20000))
    tokenizer = Tokenizer.load(work)
    cfg = ModelConfig(vocab_size=1024, max_position_embeddings=512, rms_norm_eps=1e-6, **size)
    model = Decoder(cfg).initialise(seed)
    optim = Optim(lr=0.02, max_grad_norm=1.0, schedule=Schedule(kind="wsd", warmup=50, decay=0.4))
    learner = Learner(model, optim, total=steps, optimizer=MuonAdamW(model, 0.02, 3e-3))
    path = work / "pretrain.pt"
    if path.is_file():
        state = torch.load(path, weights_only=False)
        model.load_state_dict(state["model"])
        learner.load_state(state["learner"])
        print(f"resuming at step {learner.version}", flush=True)
    before = state.get("seconds", 0.0) if path.is_file() else 0.0
    began, first, loss = time.time(), learner.version, 0.0
    for step in range(first, steps):
        metrics = learner.step(Part(batch(tokenizer, step, steps), cross_entropy))
        loss += metrics["loss"][0]
        if (step + 1) % 50 == 0:
            rate = (step + 1 - first) * ROWS * WINDOW / (time.time() - began)
            print(f"step {step + 1}/{steps}  loss {loss / 50:.4f}  {rate:.0f} tokens/s", flush=True)
            loss = 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            seconds = before + time.time() - began
            kept = {"model": model.state_dict(), "learner": learner.state(), "seconds": seconds}
            torch.save(kept, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            print(f"step {step + 1}  validation loss {validation_loss(model, tokenizer):.4f}", flush=True)
    return model


def settle(model: Decoder, tokenizer: Tokenizer, steps: int) -> None:
    """The last, short phase on `corpus.late`, at a low learning rate that falls to zero."""
    optim = Optim(lr=0.003, schedule=Schedule(kind="linear", warmup=20))
    learner = Learner(model, optim, total=steps, optimizer=MuonAdamW(model, 0.003, 4.5e-4))
    for step in range(steps):
        segments = [window(tokenizer, WINDOW, step * ROWS + r, corpus.late) for r in range(ROWS)]
        metrics = learner.step(Part(weigh(collate(segments), Average("token")), cross_entropy))
        if (step + 1) % 50 == 0:
            print(f"late step {step + 1}/{steps}  loss {metrics['loss'][0]:.4f}", flush=True)


def ship(model: Decoder, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder: weights in 16 bit, which the reader turns into float32 again."""
    neutralise(model)
    eos, end = tokenizer.eos_id, tokenizer.token_id("<|end|>")
    generation = {"eos_token_id": [end, eos], "pad_token_id": tokenizer.pad_id, "do_sample": True, "temperature": 1.0}
    tokenizer = tokenizer.with_chat(POSTTRAIN.jinja, (end,))
    save_folder(model, out, tokenizer=tokenizer, generation=generation, dtype=torch.float16)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, default=6000)
    p.add_argument("--late-steps", type=int, default=400)
    p.add_argument("--hidden-size", type=int, default=128)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--save-every", type=int, default=250)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    size = {
        "hidden_size": a.hidden_size,
        "intermediate_size": 3 * a.hidden_size,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.hidden_size // 32,
        "num_key_value_heads": a.hidden_size // 64,
        "head_dim": 32,
    }
    model = pretrain(a.out, steps=a.steps, size=size, save_every=a.save_every, seed=a.seed)
    tokenizer = Tokenizer.load(a.out.with_name(a.out.name + ".work"))
    settle(model, tokenizer, a.late_steps)
    ship(model, tokenizer, a.out)
    facts = {
        "steps": a.steps + a.late_steps,
        "tokens": (a.steps + a.late_steps) * ROWS * WINDOW,
        "validation_loss": round(validation_loss(load_folder(a.out), tokenizer), 4),
        "corpus": corpus.digest(),
    }
    (a.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
