"""RAFT and best-of-n against the KL bound log n - (n - 1)/n, and what a nat buys in each.

Best-of-n by gold itself, so that no proxy is in the way. Its exact KL is taken of the empirical distribution of many
answers to each prompt; the KL of RAFT is measured on what the trained model writes. One round each, all from the same
start, with the same prompts. RRHF, beside, gets as many answers to them and as many passes; both are read at the best
of four step sizes, the one with the highest mean gold.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from posttrain.algorithms import best_of_n, rrhf
from posttrain.algorithms.best_of_n import Keep
from posttrain.assets.world import demos, people
from posttrain.data.rows import Data
from posttrain.lab.portrait_runs import LINEAR, column, gold_and_proxy, kl_per_answer, settings, start
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.models.load import load
from posttrain.objectives.selection import best_of_n_bound, best_of_n_kl, best_of_n_value
from posttrain.recipes import comparisons
from posttrain.recipes import measure as measures
from posttrain.recipes.stages import stage
from posttrain.records import Stop, Trajectory
from posttrain.sample.base import SamplingParams
from posttrain.train.checkpoint import write_text
from posttrain.train.learner import Optim

POOL = 64


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """The start's best of n, and RAFT's single answers, on held-out people: gold, KL and the bound."""
    n, model = given["n"], start(scratch, seed, given["start_steps"])
    values, _, answers = gold_and_proxy(model, [], seed, given["asked"], POOL)
    trained = stage(scratch / given["method"], *METHODS[given["method"]](given, seed, scratch, model)).model
    single, _, written = gold_and_proxy(trained, [], seed, given["asked"], 4)
    table = torch.tensor(values, dtype=torch.float64)
    return {
        "bound": best_of_n_bound(n),
        "exact": fmean(empirical_kl(v, a, n) for v, a in zip(values, answers, strict=True)),
        "kl": kl_per_answer(load(trained).model, load(model).model, [m for a in written for m in a]),
        "start_gold": float(table.mean()),
        "best_gold": float(best_of_n_value(table, table, n).mean()),
        "gold": fmean(x for row in single for x in row),
    }


def by_raft(given: Mapping[str, Any], seed: int, scratch: Path, model: Path) -> tuple[Any, Any]:
    """The best of n answers to each prompt, learned by cross-entropy."""
    return best_of_n, best_of_n.Config(
        model=str(model), data=Data(path="builtin:about", limit=given["prompts"]), reward="gold",
        keep=Keep(most=1, distinct="off"), prompts=16, group_size=given["n"], steps=-(-given["prompts"] // 16),
        sampling=SamplingParams(max_tokens=64), epochs=given["epochs"], optim=Optim(lr=given["lr"], schedule=LINEAR),
        run=settings(seed),
    )  # fmt: skip


def by_rrhf(given: Mapping[str, Any], seed: int, scratch: Path, model: Path) -> tuple[Any, Any]:
    """All n answers to each prompt, in gold's order; those that end, equal ones once."""
    path = scratch / "rankings.jsonl"
    if not path.exists():
        rows = []
        asked = demos.about_prompts(people.SEEN, given["prompts"], 0)  # the prompts that RAFT reads
        for task, members in zip(asked, comparisons.sampled(load(model), asked, given["n"], seed), strict=True):
            scored = {m.completion: measures.gold_of(m) for m in members if m.stop is Stop.END}
            if len(scored) > 1:
                rows.append({"prompt": task.prompt[0].content, "answers": [*scored], "scores": [*scored.values()]})
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rrhf, rrhf.Config(
        model=str(model), data=Data(path=str(path)), batch_size=16, epochs=given["epochs"], eval_every=0,
        optim=Optim(lr=given["lr"], schedule=LINEAR), run=settings(seed),
    )  # fmt: skip


METHODS = {"raft": by_raft, "rrhf": by_rrhf}


def empirical_kl(values: list[float], answers: tuple[Trajectory, ...], n: int) -> float:
    """kl(best-of-n ‖ sampler) of one prompt, taking its answers for all there are: equal texts are one answer."""
    seen: dict[str, list[float]] = {}
    for value, answer in zip(values, answers, strict=True):
        seen.setdefault(answer.completion, []).append(value)
    p = torch.tensor([len(v) / len(values) for v in seen.values()], dtype=torch.float64)
    return float(best_of_n_kl(p, torch.tensor([v[0] for v in seen.values()], dtype=torch.float64), n))


def read(cells: Cells) -> list[Figure]:
    """Is the exact KL below the bound, RAFT's too, and does RAFT's gold follow best-of-n's?"""
    figures = []

    def compare(what: str, before: list[float], after: list[float], wanted: int, more: str = "") -> None:
        gap, low, high = paired(after, before)
        start, end = interval(before)[0], interval(after)[0]
        seen = low > 0 if wanted > 0 else high < 0
        text = f"{what}: {start:.3f} → {end:.3f}, {gap:+.3f} [{low:+.3f}, {high:+.3f}]{more}"
        figures.append(Figure(what=what, before=start, after=end, low=low, high=high, seen=seen, text=text))

    arms = sorted((a for a in cells if a.startswith("n")), key=lambda a: int(a[1:]))
    for arm in arms:
        got = {name: column(cells[arm], name) for name in next(iter(cells[arm].values()))}
        compare(f"{arm}: nats, bound → exact KL of best-of-n", got["bound"], got["exact"], -1)
        compare(f"{arm}: nats, bound → KL of RAFT", got["bound"], got["kl"], -1)
        best = f"; the start's best of n has {interval(got['best_gold'])[0]:.3f}"
        compare(f"{arm}: gold, start → RAFT's single answers", got["start_gold"], got["gold"], +1, best)
    few, many = (column(cells[a], "kl") for a in (arms[0], arms[-1]))
    compare(f"nats, KL of RAFT at {arms[0]} → at {arms[-1]}", few, many, +1)
    searched = [[arm for arm in steps if arm in cells] for steps in SEARCH.values()]
    if all(searched):
        raft, other = (best_step(found, cells) for found in searched)
        for what, name in (("gold", "gold"), ("nats of KL", "kl")):
            words = f"{what}, RAFT ({raft}) → RRHF ({other}) on as many answers"
            compare(words, column(cells[raft], name), column(cells[other], name), +1)
    return figures


def best_step(arms: list[str], cells: Cells) -> str:
    """The arm with the highest mean gold."""
    return max(arms, key=lambda arm: fmean(column(cells[arm], "gold")))


_SIZE = {"start_steps": 100, "asked": 24, "prompts": 192, "epochs": 6.0, "lr": 3e-4}
SEARCH = {
    "raft": {"raft8 1e-4": 1e-4, "n8": 3e-4, "raft8 1e-3": 1e-3, "raft8 3e-3": 3e-3},
    "rrhf": {
        "rrhf8 3e-5": 3e-5,
        "rrhf8 1e-4": 1e-4,
        "rrhf8 3e-4": 3e-4,
        "rrhf8 1e-3": 1e-3,
        "rrhf8 3e-3": 3e-3,
        "rrhf8 1e-2": 1e-2,
    },
}
"""Step sizes of both methods at eight answers, by arm."""

STUDY = Study(
    name="raft",
    claim="best-of-n stays under its KL bound, RAFT follows it, and its single answers follow best-of-n's gold",
    source="Dong et al. 2023 (arXiv 2304.06767); Yuan et al. 2023 (2304.05302); Beirami et al. 2024 (2401.01879)",
    arms={
        **{f"n{n}": {"method": "raft", "n": n, **_SIZE} for n in (2, 4, 8, 16)},
        **{
            arm: {"method": method, "n": 8, **_SIZE, "lr": lr}
            for method, arms in SEARCH.items()
            for arm, lr in arms.items()
        },
    },
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
