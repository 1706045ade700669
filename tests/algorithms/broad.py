"""Runs whose steps are large for their models: 1031 words, and more learned tokens than a chunk has rows."""

from pathlib import Path
from types import ModuleType
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from algorithms import toy
from posttrain.algorithms import group, ppo, preference, reinforce, reward_model, sft, vapo
from posttrain.data.rows import Data
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import save_folder
from posttrain.models.tokenizers import Tokenizer
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim

VOCAB, HIDDEN = 1031, 64  # a prime: no other size is a multiple of it by chance
PROMPT, ANSWER = 10, 36
METHODS = {"sft": sft, "reward_model": reward_model, "preference": preference, "group": group, "ppo": ppo,
           "reinforce": reinforce, "vapo": vapo}  # fmt: skip
ROLLOUTS = {"group": {"prompts": 10, "group_size": 4}, "reinforce": {"prompts": 10, "group_size": 4},
            "ppo": {"prompts": 40, "minibatches": 1, "epochs": 1},
            "vapo": {"prompts": 10, "group_size": 4, "minibatches": 1, "pretrain_steps": 1}}  # fmt: skip
REWARD = "def last(task, trajectory):\n    return len(trajectory.completion) % 7\n"


def model(folder: Path, **changes: Any) -> str:
    """A random model whose tokenizer knows a word for every id."""
    words = {word: i for i, word in enumerate((*toy.MARKS, "?"))}
    words |= {f"w{i}": i for i in range(len(words), VOCAB)}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in toy.MARKS])
    shape = {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    tokenizer = Tokenizer(backend, {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "unk_token": "?"})
    save_folder(Decoder(ModelConfig(**shape | changes)).initialise(0), folder, tokenizer=tokenizer)
    return str(folder)


def config(method: str, folder: Path, **changes: Any) -> Any:
    """A run of three steps. Answers are of one length, as far as the model lets them, so a plan can be exact."""

    def words(start: int, n: int) -> str:
        return " ".join(f"w{100 + (start * 37 + i * 11) % 900}" for i in range(n))

    rows = [{"prompt": words(i, PROMPT), "completion": words(i + 500, ANSWER)} for i in range(80)]
    if method in ("reward_model", "preference"):
        rows = [
            {"prompt": r["prompt"], "chosen": r["completion"], "rejected": words(i, ANSWER)} for i, r in enumerate(rows)
        ]
    if method in ROLLOUTS:
        rows = [{"prompt": r["prompt"]} for r in rows]
    common = {
        "model": model(folder / "model"),
        "template": "posttrain",
        "data": Data(path=toy.rows(folder / "rows.jsonl", rows)),
        "steps": 3,
        "eval_every": 0,
        "optim": Optim(lr=1e-3),
        "run": toy.quiet(),
    }
    if method in ROLLOUTS:
        (folder / "reward.py").write_text(REWARD)
        common |= {"reward": f"{folder / 'reward.py'}:last", "sampling": SamplingParams(max_tokens=ANSWER)}
        common |= ROLLOUTS[method]
    else:
        common |= {"batch_size": 40 if method == "sft" else 20}
    return METHODS[method].Config(**common | changes)


def run(method: str, cfg: Any, folder: Path) -> ModuleType:
    """Train."""
    toy.run(METHODS[method], cfg, folder)
    return METHODS[method]
