"""The KL leash on one prompt: runs at four β beside the policy that each β should end in.

That policy, the reference tilted by exp(reward / β), is read off 8,000 samples of the reference: a share of them per
seed, so that the seeds say how sure it is. The runs are RLOO with the KL in the reward, all with the same step size,
which was chosen on another seed; a fifth steers its β to two nats. What a trained policy has is measured on new
samples of it.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from posttrain.algorithms import group
from posttrain.batch import collate
from posttrain.lab.leash_runs import ANSWERS, HORIZON, config, logp_of, plane, rewards, sampled, start
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.lab.word_runs import column
from posttrain.models.load import Loaded, load
from posttrain.objectives.kl import adaptive_beta, tilted_samples
from posttrain.recipes.stages import curve, stage
from posttrain.train.learner import outputs

BETAS = (1.0, 0.5, 0.25, 0.1)
BANK = 2667
"""Samples of the reference per seed: 8,000 of three."""
SHOWN = 96
"""Answers of a trained policy that the page has, per cell."""
NEAR = 0.5
"""Points of reward that a run may end away from the policy that its β should end in."""
WITHIN = 0.25
"""Share of its target that the controller's KL may be away over the last third."""


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """The bank: reward and KL of its tilt at each β. A run: reward and KL of the policy that it ends in."""
    torch.set_num_threads(1)
    reference = load(start(scratch))
    if settings["method"] == "bank":
        return bank(reference, settings["n"], seed)
    cfg = config(scratch, seed, settings["beta"], settings["steps"], settings["lr"], settings["target"])
    policy = load(stage(scratch / "rloo", group, cfg).model)
    answers = sampled(policy, settings["n"], seed + 1000)
    batch = collate([a.segments[0] for a in answers], pad_id=policy.tokenizer.pad_id)
    before = (outputs(reference.model, batch, ("logp",), 16384).logp.double() * batch.mask).sum(1).tolist()
    scores, texts = rewards(answers), [a.completion for a in answers]
    reward, kl = fmean(scores), fmean(logp_of(a) - b for a, b in zip(answers, before, strict=True))
    path = along(scratch / "rloo", settings)
    return {
        "reward": reward,
        "kl": kl,
        "steady": fmean(path[1][-len(path[1]) // 3 :]),
        "distinct": len(set(texts)) / len(texts),
        "page": {"path": path, "end": [reward, kl], "at": plane(reference, texts[:SHOWN]), "said": texts[:8]},
    }


def along(run: Path, settings: Mapping[str, Any]) -> list[list[float]]:
    """Reward, KL per answer and β of each step."""
    reward, kl, length = ([y for _, y in curve(run, m)] for m in ("reward_mean", "kl_ref_k1", "length_mean"))
    kl = [k * n for k, n in zip(kl, length, strict=True)]
    return [reward, kl, steering(kl, settings)]


def steering(kl: list[float], settings: Mapping[str, Any]) -> list[float]:
    """β of each step: what it was, or what the controller made of the KL that was measured."""
    beta = [settings["beta"]]
    for measured in kl[:-1] if settings["target"] else []:
        beta.append(adaptive_beta(beta[-1], measured, target=settings["target"], samples=ANSWERS, horizon=HORIZON))
    return beta if settings["target"] else beta * len(kl)


def bank(reference: Loaded, n: int, seed: int) -> Mapping[str, Any]:
    """Samples of the reference: what their tilts have, and for the page every distinct one with its number."""
    answers = sampled(reference, n, seed)
    scores = rewards(answers)
    found = {f"{what}, β = {beta:g}": x for beta in BETAS for what, x in tilt(scores, beta).items()}
    times = Counter(a.completion for a in answers)
    distinct = {a.completion: (logp_of(a), score) for a, score in zip(answers, scores, strict=True)}
    at = plane(reference, list(distinct))
    rows = [[text, times[text], *known, *xy] for (text, known), xy in zip(distinct.items(), at, strict=True)]
    return found | {"mean": fmean(scores), "distinct": len(distinct) / n, "page": rows}


def tilt(scores: list[float], beta: float) -> dict[str, float]:
    """Expected reward, KL and effective number of samples of the tilt."""
    found = tilted_samples(torch.tensor(scores, dtype=torch.float64), beta)
    return {"reward": float(found.reward), "kl": float(found.kl), "effective": float(found.effective)}


def read(cells: Cells) -> list[Figure]:
    """Each run beside the tilt of its β, the longest leash beside the shortest, and the controller."""
    figures = []
    runs = {beta: cells[f"β = {beta:g}"] for beta in BETAS if f"β = {beta:g}" in cells}
    for name, unit, near in (("reward", "", NEAR), ("kl", " nats", 2 * NEAR)):
        for beta, run in runs.items():
            want, got = column(cells["bank"], f"{name}, β = {beta:g}"), column(run, name)
            gap, low, high = paired(got, want)
            what = f"{'reward' if name == 'reward' else 'KL'} at β = {beta:g}: tilt, then run"
            text = f"{what}: {fmean(want):.2f}, {fmean(got):.2f}{unit}; {gap:+.2f} [{low:+.2f}, {high:+.2f}]"
            figures.append(Figure(what=what, before=fmean(want), after=fmean(got), low=low, high=high,
                                  seen=-near < low and high < near, text=text))  # fmt: skip
    if len(runs) == len(BETAS):
        short, long = column(runs[BETAS[0]], "kl"), column(runs[BETAS[-1]], "kl")
        gap, low, high = paired(long, short)
        what = f"KL, β = {BETAS[0]:g}, then {BETAS[-1]:g}"
        text = f"{what}: {fmean(short):.2f}, {fmean(long):.2f}; {gap:+.2f} [{low:+.2f}, {high:+.2f}]"
        figures.append(Figure(what=what, before=fmean(short), after=fmean(long), low=low, high=high, seen=low > 0,
                              text=text))  # fmt: skip
    if "steered" in cells:
        mean, low, high = interval(column(cells["steered"], "steady"))
        seen = low > (1 - WITHIN) * TARGET and high < (1 + WITHIN) * TARGET
        text = f"steered to {TARGET:g} nats: {mean:.2f} [{low:.2f}, {high:.2f}] over the last third"
        figures.append(Figure(what="KL that was steered", before=TARGET, after=mean, low=low, high=high, seen=seen,
                              text=text))  # fmt: skip
    return figures


def page(cells: Mapping[str, Mapping[int, Any]]) -> Any:
    """The bank of all seeds as columns of whole numbers, the texts that a reader may see, and the runs."""
    known: dict[str, list[Any]] = {}
    for rows in cells["bank"].values():
        for text, times, *rest in rows:
            known[text] = [known.get(text, [0])[0] + times, *rest]
    order = sorted(known, key=lambda text: (-known[text][0], text))
    columns = list(zip(*(known[text] for text in order), strict=True))
    ends = [(min(c), max(c)) for c in columns[3:]]

    def place(xy: list[float]) -> list[int]:
        return [
            round(1000 * min(1.0, max(0.0, (v - low) / (high - low)))) for v, (low, high) in zip(xy, ends, strict=True)
        ]

    shown = set(range(min(300, len(order))))
    for k in range(-35, 16):
        beta = 10 ** (k / 10)
        likely = sorted(range(len(order)), key=lambda i: -(columns[1][i] + columns[2][i] / beta))
        shown |= set(likely[:5])
    places = list(zip(*(place([x, y]) for x, y in zip(columns[3], columns[4], strict=True)), strict=True))
    runs = {
        arm: [
            {
                "path": [[round(v, 3) for v in line] for line in run["path"]],
                "end": [round(v, 3) for v in run["end"]],
                "at": [place(xy) for xy in run["at"]],
                "said": run["said"],
            }
            for _, run in sorted(by.items())
        ]
        for arm, by in cells.items()
        if arm != "bank"
    }
    return {
        "count": list(columns[0]),
        "logp": [round(x, 2) for x in columns[1]],
        "reward": [round(x, 2) for x in columns[2]],
        "x": places[0],
        "y": places[1],
        "text": {str(i): order[i] for i in sorted(shown)},
        "runs": runs,
    }


_RUN = {"method": "rloo", "steps": 40, "lr": 1e-3, "n": 512, "target": None}
TARGET = 2.0

STUDY = Study(
    name="leash",
    claim="RLOO with β times the KL in its reward ends near the reference tilted by exp(reward / β), at four β",
    source="Ziegler et al. 2019 (arXiv 1909.08593); Korbak et al. 2022 (arXiv 2205.11275)",
    arms={
        "bank": {"method": "bank", "n": BANK},
        **{f"β = {beta:g}": {**_RUN, "beta": beta} for beta in BETAS},
        "steered": {**_RUN, "beta": 0.5, "target": TARGET},
    },
    seeds=(0, 1, 2),
    sections=("14",),
    measure=measure,
    read=read,
    page=page,
)
