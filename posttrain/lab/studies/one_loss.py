"""What β does in DPO: where pairs go in the plane of their two probabilities, how far the model moves, what it wins.

All arms begin at one model and see the same pairs in the same order. Along each run, 200 training pairs are scored
again and again, which is the replay of section 16; at the end the model writes portraits of people that no pair speaks
of, and gold compares them with the start's. Step size (of 2e-4, 5e-4 and 1e-3) and number of steps (of 40 and 60) were
chosen on a seed that is not reported.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms import preference
from posttrain.assets.world import people
from posttrain.assets.world.gold import gold
from posttrain.batch import collate, collate_pairs
from posttrain.data.rows import Data, PairRow, pairs
from posttrain.lab.preference_runs import column, common, compared, portraits, rise, start, trained, values
from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.models.load import load
from posttrain.objectives.preference import PreferenceLoss, implicit_reward
from posttrain.recipes.measure import win_rate
from posttrain.records import Trajectory
from posttrain.train.learner import outputs

HELD = 48
SHOWN = 200


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """One run at one β: its pairs along the way, and its portraits at the end beside those of the start."""
    model = start(scratch, seed)
    path = compared(scratch, model, seed, given["prompts"])
    same = common(model, path, seed, steps=given["steps"], lr=given["lr"], held=HELD)
    run = replace(same["run"], save_every=given["scored"][1], keep=len(given["scored"]))
    cfg = preference.Config(loss=PreferenceLoss(name="dpo", beta=given["beta"]), **(same | {"run": run}))
    after = trained(scratch / "dpo", preference, cfg)
    rows = pairs(Data(path=str(path), eval_rows=HELD), load(model)).train[:SHOWN]
    lines = [json.loads(line) for line in path.read_text().splitlines()[: len(rows)]]
    along = [logps(model, rows)]
    along += [logps(scratch / f"dpo/checkpoints/step-{step:06d}", rows) for step in given["scored"][1:]]
    moved = torch.stack(along) - along[0]  # [points, 2, pairs]
    told = credit(after, model, rows, given)
    ends = [worth[0][-1] / given["beta"] for worth in told["worth"]]
    before, said = portraits(model, seed), portraits(after, seed)
    return {
        "loss of the first step": values(scratch / "dpo", "loss")[0],
        "training pairs in order": float((moved[-1, 0] > moved[-1, 1]).double().mean()),
        "held-out pairs in order": values(scratch / "dpo", "eval_accuracy")[-1],
        "pairs as gold orders them": fmean(map(in_gold_order, lines)),
        "chosen": moved[:, 0].mean(1).tolist(),
        "rejected": moved[:, 1].mean(1).tolist(),
        "chosen, its end": fmean(ends),
        "chosen, the rest": float(moved[-1, 0].mean()) - fmean(ends),
        "both fell": float((moved[-1] < 0).all(0).double().mean()),
        "chosen fell": float((moved[-1, 0] < 0).double().mean()),
        "win rate": win_rate(said, before, seed).value,
        "kl": distance(after, model, said),
        "longer by": fmean(m.length for m in said) - fmean(m.length for m in before),
        "page": {
            "pairs": lines,
            "start": along[0].tolist(),
            "moved": moved.tolist(),
            **told,
        },
    }


def logps(model: Path, rows: Sequence[PairRow]) -> Tensor:
    """[2, pairs] log-probabilities of whole answers, the chosen first."""
    batch = collate_pairs([row.pair for row in rows])
    logp = (outputs(load(model).model, batch, ("logp",), 16384).logp * batch.mask).sum(1)
    return torch.stack([logp[batch.label > 0], logp[batch.label < 0]])


def credit(policy: Path, reference: Path, rows: Sequence[PairRow], given: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of each pair's answers, the chosen one first, and the implicit reward of every token."""
    batch, loaded = collate_pairs([row.pair for row in rows]), load(reference)
    logp, ref_logp = (outputs(m, batch, ("logp",), 16384).logp for m in (load(policy).model, loaded.model))
    reward = implicit_reward(logp, ref_logp, batch.mask, beta=given["beta"])
    answers = [batch.tokens[i][batch.mask[i]].tolist() for i in range(len(batch))]
    said = [["(end)" if k in loaded.stop_ids else loaded.tokenizer.decode([k]) for k in ids] for ids in answers]
    worth = [row[mask].tolist() for row, mask in zip(reward, batch.mask, strict=True)]
    order = torch.stack([(batch.label > 0).nonzero()[:, 0], (batch.label < 0).nonzero()[:, 0]], 1).tolist()
    return {name: [[rows[i] for i in pair] for pair in order] for name, rows in (("tokens", said), ("worth", worth))}


def in_gold_order(row: Mapping[str, str]) -> float:
    """Whether gold, too, prefers the answer that was chosen; half for a tie. The annotator's choices are noisy."""
    (person,) = [people.PEOPLE[word] for word in re.findall(r"\w+", row["prompt"]) if word in people.PEOPLE]
    a, b = (gold(person, row[side], True).value for side in ("chosen", "rejected"))
    return 0.5 if a == b else float(a > b)


def distance(policy: Path, reference: Path, said: Sequence[Trajectory]) -> float:
    """kl(policy ‖ reference) in nats per answer, by the mean log-ratio of answers that the policy sampled."""
    batch = collate([m.segments[0] for m in said])
    ours, theirs = (outputs(load(name).model, batch, ("logp",), 16384).logp for name in (policy, reference))
    return float(((ours - theirs) * batch.mask).sum()) / len(said)


def read(cells: Cells) -> list[Figure]:
    """The loss of the first step, what β = 0.1 does, and how the four strengths compare."""
    usual = cells["β = 0.1"]
    first = column(usual, "loss of the first step")
    mean, low, high = interval(first)
    ends = {side: [cell[side][-1] for _, cell in sorted(usual.items())] for side in ("chosen", "rejected")}
    zero, half = [0.0] * len(first), [0.5] * len(first)
    figures = [
        Figure(what="loss of the first step", before=math.log(2), after=mean, low=low, high=high,
               seen=max(abs(x - math.log(2)) for x in first) < 1e-5,
               text=f"the first step's loss is {mean:.6f}; log 2 is {math.log(2):.6f}"),
        rise("training pairs in order", half, column(usual, "training pairs in order")),
        rise("held-out pairs in order", half, column(usual, "held-out pairs in order")),
        rise("pairs as gold orders them", half, column(usual, "pairs as gold orders them")),
        rise("win rate, β = 0.1", half, column(usual, "win rate")),
        rise("win rate, β = 1", half, column(cells["β = 1"], "win rate")),
        rise("log π(chosen) - log π_ref(chosen)", zero, ends["chosen"], down=True),
        rise("of it, the end of the answer", zero, column(usual, "chosen, its end"), down=True),
        rise("of it, all tokens before", zero, column(usual, "chosen, the rest"), down=True),
        rise("log π(rejected) - log π_ref(rejected)", zero, ends["rejected"], down=True),
        rise("share of chosen answers that fell", half, column(usual, "chosen fell")),
        rise("tokens per answer, after - before", zero, column(usual, "longer by")),
    ]  # fmt: skip
    for loose, tight in [*itertools.pairwise(cells), ("β = 0.03", "β = 1")]:
        both = [column(cells[arm], "kl") for arm in (loose, tight)]
        figures.append(rise(f"kl, {loose} and {tight[4:]}", *both, down=True))
    fell = [column(cells[arm], "chosen fell") for arm in ("β = 0.03", "β = 1")]
    return [*figures, rise("share of chosen that fell, β = 0.03 and 1", *fell, down=True)]


def page(pages: Mapping[str, Mapping[int, Any]]) -> Any:
    """The first seed's run at β = 0.1: of each pair the prompt, the tokens of both answers, both log-probabilities at
    first and how they moved (tenths of nats), and the tokens' implicit rewards at the end (hundredths)."""
    shown = pages["β = 0.1"][0]
    tenths = torch.tensor(shown["moved"]).mul(10).round().int()
    moves = tenths.diff(dim=0).permute(2, 1, 0).tolist()  # [pairs, 2, points - 1]
    before = torch.tensor(shown["start"]).mul(10).round().int().T.tolist()
    worth = [[[round(100 * x) for x in answer] for answer in pair] for pair in shown["worth"]]
    columns = zip(shown["pairs"], shown["tokens"], before, moves, worth, strict=True)
    pairs = [[row["prompt"], *said, *at, *moved, *rewards] for row, said, at, moved, rewards in columns]
    return {"beta": 0.1, "scored": ARM["scored"], "pairs": pairs}


ARM = {"prompts": 96, "steps": 60, "lr": 1e-3, "scored": list(range(0, 61, 3))}

STUDY = Study(
    name="one_loss",
    claim="DPO starts at log 2, puts pairs in order and beats its start by gold; it moves less the larger β is",
    source="Rafailov et al. 2023 (arXiv 2305.18290)",
    arms={f"β = {beta:g}": ARM | {"beta": beta} for beta in (0.03, 0.1, 0.3, 1.0)},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
    sections=("16",),
    page=page,
)
