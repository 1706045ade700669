"""The short run that shows the KL leash: one prompt, a reference that answers in a sentence or two, RLOO with β.

The reference is the embedded base after a short fine-tuning on portraits of one person, good and bad. Its answers are
so short that thousands of samples hold most of what it ever says, and the policy that a β should end in can be read
off them. The reward is the biased rater's rating. Study, live experiment and tests use the same setting.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain import rng
from posttrain.algorithms import group, sft
from posttrain.assets.world import people
from posttrain.assets.world.answers import Manner, portrait_of
from posttrain.assets.world.rater import rating
from posttrain.batch import collate
from posttrain.chat.render import render_answer
from posttrain.data.rows import Data
from posttrain.envs.rollout import rollout
from posttrain.models.attention import pack, packed_attention
from posttrain.models.load import Loaded
from posttrain.objectives.presets import PRESETS
from posttrain.recipes.stages import stage
from posttrain.records import Message, Score, Stop, Task, Trajectory
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.checkpoint import write_text
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule

PERSON = people.PEOPLE["Ines"]
PROMPT = f"Tell me about {PERSON.name}."
TASK = Task("about-Ines", (Message("user", PROMPT),))
MANNER = Manner(facts=(0.2, 0.6, 0.2), wrong=0.2, polite=0.3, rude=0.15, padding=0.05, repeat=0.05, drift=0.05)
"""How its demonstrations are written: one fact or two, of which some are wrong, with manners of all kinds."""
MAX_TOKENS = 32
ANSWERS = 64
HORIZON = 512
"""Of the controller: β changes by a fortieth per step at most, since a policy takes some steps to follow it."""


def taste(task: Task, trajectory: Trajectory) -> Score:
    """How much the world's biased annotator likes the portrait, before noise: the reward."""
    return Score(rating(PERSON, trajectory.completion, trajectory.stop is Stop.END))


def start(folder: Path, steps: int = 100) -> Path:
    """The reference: the base fine-tuned on portraits of one person. It is the same for every seed of a run."""
    rows = [{"prompt": PROMPT, "completion": portrait_of(PERSON, MANNER, rng.python(0, "leash", i))}
            for i in range(1600)]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "portraits.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    cfg = sft.Config(
        template="plain", data=Data(path=str(path)), steps=steps, eval_every=0, run=settings(0),
        optim=Optim(lr=2e-3, schedule=Schedule(kind="linear", warmup=5)),
    )  # fmt: skip
    return stage(folder / "start", sft, cfg).model


def settings(seed: int, **changes: Any) -> RunConfig:
    """The part of every config that is the same."""
    return RunConfig(**({"seed": seed, "threads": 1, "save_every": 1000, "keep": 1, "samples": 0} | changes))


def config(folder: Path, seed: int, beta: float, steps: int, lr: float, target: float | None = None) -> group.Config:
    """RLOO on 64 answers to the prompt, with the KL in the reward; target: nats that β is steered to."""
    model, path = start(folder), folder / "prompt.jsonl"
    write_text(path, json.dumps({"prompt": PROMPT}) + "\n")
    base = PRESETS["rloo"]
    kl = replace(base.kl, beta=beta) if target is None else replace(base.kl, beta=beta, target=target, horizon=HORIZON)
    return group.Config(
        model=str(model), template="auto",
        data=Data(path=str(path)), reward=f"{__file__}:taste", objective=replace(base, kl=kl), prompts=1,
        group_size=ANSWERS, steps=steps, eval_every=0, sampling=SamplingParams(max_tokens=MAX_TOKENS),
        optim=Optim(lr=lr, schedule=Schedule(kind="linear", warmup=3)), run=settings(seed, samples=ANSWERS),
    )  # fmt: skip


def sampled(loaded: Loaded, n: int, seed: int) -> tuple[Trajectory, ...]:
    """n answers of a model to the prompt."""
    params = SamplingParams(max_tokens=MAX_TOKENS, stop_ids=loaded.stop_ids)
    (found,) = rollout(TorchSampler(loaded.model), [TASK], n=n, params=params, seed=seed, template=loaded.template,
                       tokenizer=loaded.tokenizer)  # fmt: skip
    return found.members


def logp_of(trajectory: Trajectory) -> float:
    """Log-probability of a whole answer under the model that sampled it."""
    segment = trajectory.segments[0]
    return sum(x for x, chosen in zip(segment.logp, segment.mask, strict=True) if chosen)


def rewards(answers: Sequence[Trajectory]) -> list[float]:
    """The rater's ratings."""
    return [float(taste(TASK, a).value) for a in answers]


@torch.no_grad()
def embedded(loaded: Loaded, texts: Sequence[str]) -> Tensor:
    """Mean hidden state of the model over each answer's tokens, [N, D]."""
    found = []
    for first in range(0, len(texts), 256):
        said = texts[first : first + 256]
        segments = [render_answer(TASK.prompt, (Message("assistant", text),), loaded.template, loaded.tokenizer)
                    for text in said]  # fmt: skip
        batch = collate(segments, pad_id=loaded.tokenizer.pad_id)
        packing = pack(batch.attend, batch.tokens, batch.group)
        hidden = loaded.model.flat(batch.tokens[packing.own], packing.positions, packed_attention(packing))
        rows = hidden.index_select(0, packing.place.flatten()).view(*batch.mask.shape, -1)
        mask = batch.mask[..., None]
        found.append((rows * mask).sum(1) / mask.sum(1).clamp(min=1))
    return torch.cat(found)


def plane(loaded: Loaded, texts: Sequence[str]) -> list[list[float]]:
    """Where answers lie: their embeddings on the two directions in which the demonstrations differ most."""
    middle, axes = _axes(loaded)
    return ((embedded(loaded, texts) - middle) @ axes).tolist()


def _axes(loaded: Loaded) -> tuple[Tensor, Tensor]:
    known = embedded(loaded, sorted({portrait_of(PERSON, MANNER, rng.python(1, "plane", i)) for i in range(400)}))
    middle = known.mean(0)
    _, _, right = torch.linalg.svd(known - middle, full_matrices=False)
    axes = right[:2].T
    return middle, axes * torch.sign(axes.sum(0))
