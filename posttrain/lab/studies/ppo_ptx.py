"""PPO-ptx: text of pre-training in PPO's own optimizer steps keeps the policy's language where PPO alone loses it.

Loss is measured on documents of the base's corpus that neither the base nor the text of the run contains.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posttrain.algorithms import ppo
from posttrain.batch import collate
from posttrain.data.rows import Data, demonstrations
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column, ppo_config, start_and_end, train
from posttrain.models.load import load
from posttrain.train.learner import outputs

TEXT = Data(path="builtin:corpus", kind="text", limit=4000, eval_rows=200)
"""The last documents are held out from the run."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Loss per token of held-out text before and after, and right answers at the end."""
    torch.set_num_threads(1)
    text = ppo.Ptx(weight=settings["weight"], data=TEXT)
    model = train(ppo, ppo_config(seed, steps=settings["steps"], epochs=1, ptx=text), scratch)
    return {"start": nll("base"), "end": nll(model), "right": start_and_end(scratch)["after"]}


def nll(model: str | Path) -> float:
    """Cross-entropy per token of the held-out documents."""
    loaded = load(model)
    batch = collate(demonstrations(TEXT, loaded).held, pad_id=loaded.tokenizer.pad_id)
    logp = outputs(loaded.model, batch, ("logp",), 16384).logp
    return -float(logp.sum()) / int(batch.mask.sum())


def read(cells: Cells) -> list[Figure]:
    """How much of its language each loses, and what that costs in right answers."""
    lost = {arm: [e - s for e, s in zip(column(x, "end"), column(x, "start"), strict=True)] for arm, x in cells.items()}
    gap, low, high = paired(lost["ptx"], lost["ppo"])
    alone, beside = interval(lost["ppo"])[0], interval(lost["ptx"])[0]
    text = f"nats lost per token of the base's own text: PPO {alone:+.3f}, PPO-ptx {beside:+.3f}; {gap:+.3f}"
    right = {arm: column(x, "right") for arm, x in cells.items()}
    cost, least, most = paired(right["ptx"], right["ppo"])
    price = f"right answers: PPO {interval(right['ppo'])[0]:.3f}, PPO-ptx {interval(right['ptx'])[0]:.3f}; {cost:+.3f}"
    return [
        Figure(what="loss of language, in nats per token: PPO, then PPO-ptx", before=alone, after=beside, low=low,
               high=high, seen=high < 0, text=f"{text} [{low:+.3f}, {high:+.3f}]"),
        Figure(what="right answers: PPO, then PPO-ptx", before=interval(right["ppo"])[0],
               after=interval(right["ptx"])[0], low=least, high=most, seen=least > -0.1,
               text=f"{price} [{least:+.3f}, {most:+.3f}]"),
    ]  # fmt: skip


STUDY = Study(
    name="ppo_ptx",
    claim="PPO-ptx loses less on the base's own text than PPO, for less than a tenth fewer right answers",
    source="Ouyang et al. 2022 (arXiv 2203.02155), section 3.5",
    arms={"ppo": {"weight": 0.0, "steps": 12}, "ptx": {"weight": 1.0, "steps": 12}},
    seeds=(0, 1, 2, 3, 4),
    sections=("14",),
    measure=measure,
    read=read,
)
