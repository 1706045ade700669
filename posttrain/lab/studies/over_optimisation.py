"""Over-optimisation: the proxy goes on rising while gold rises and then falls, over the square root of KL.

The proxy is a reward model of the biased rater's choices among the start's own answers; gold never trains anything.
Reinforcement learning against it runs far past the peak, with the KL measured and not charged; the same with a KL
charge, and against the least of three reward models, at the same step size. Best-of-n is read off a pool of answers
without new draws. Both laws of Gao et al. are fitted to what was measured. Of RL, the place of the peak is chosen on
one half of the answers and its gold is taken of the other, so that a lucky batch is no peak.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import torch

from posttrain.algorithms import group
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError
from posttrain.lab.portrait_runs import (
    column,
    gold_and_proxy,
    gold_of_samples,
    proxies,
    settings,
    start,
)
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.scaling import fit_best_of_n, fit_rl, gold_best_of_n, gold_rl, peak_best_of_n, peak_rl
from posttrain.objectives.selection import best_of_n_bound, best_of_n_value
from posttrain.recipes.stages import curve, stage
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule

WINDOW = 5
"""Steps that are averaged: a batch of answers is a noisy measure."""
UNCHARGED = 1e-9
"""A leash that charges nothing and still has a reference, by which the KL is measured. (The proxy's scores spread over
a few hundredths, so that a charge of 0.01 a nat is a strong one.)"""
POOL = 64
ASKED = 40


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Distance, proxy and gold along one run of RL, or over n."""
    model = start(scratch, seed, given["start_steps"])
    judges = proxies(scratch, model, seed, given["pair_prompts"], given["members"])
    if given["method"] == "best_of_n":
        gold, (proxy,), _ = gold_and_proxy(model, judges, seed, ASKED, POOL)
        tables = torch.tensor(proxy, dtype=torch.float64), torch.tensor(gold, dtype=torch.float64)
        counts = [2**i for i in range(POOL.bit_length())]
        path = {
            "distance": [best_of_n_bound(n) ** 0.5 for n in counts],
            "proxy": [float(best_of_n_value(tables[0], tables[0], n).mean()) for n in counts],
            "gold": [float(best_of_n_value(*tables, n).mean()) for n in counts],
        }
        return path | summary(path, path["gold"], path["gold"])
    base = PRESETS["rloo"]
    cfg = group.Config(
        model=str(model), data=Data(path="builtin:about", limit=4000), reward=reward_of(judges),
        objective=replace(base, kl=replace(base.kl, beta=given["beta"] or UNCHARGED)), prompts=16, group_size=4,
        steps=given["steps"], sampling=SamplingParams(max_tokens=64), eval_every=0,
        optim=Optim(lr=given["lr"], schedule=Schedule(warmup=5)), run=settings(seed, samples=16 * 4),
    )  # fmt: skip
    stage(scratch / "rl", group, cfg)
    return along(scratch / "rl")


def reward_of(judges: list[Path]) -> str:
    """The name of one reward model, or of the least of several, each on the scale of the start's answers."""
    return f"model:{judges[0]}" if len(judges) == 1 else f"model.min:{','.join(map(str, judges))}"


def along(run: Path) -> dict[str, Any]:
    """Windows of steps: √kl per answer from the start, proxy, and gold by halves of the answers."""
    kl = [k * n for (_, k), (_, n) in zip(curve(run, "kl_ref_k1"), curve(run, "length_mean"), strict=True)]
    proxy = [y for _, y in curve(run, "reward_mean")]
    halves = gold_of_samples(run)
    blocks = [slice(i, i + WINDOW) for i in range(0, len(proxy) - WINDOW + 1, WINDOW)]
    path = {
        "distance": [max(0.0, fmean(kl[b])) ** 0.5 for b in blocks],
        "proxy": [fmean(proxy[b]) for b in blocks],
        "gold": [fmean((x + y) / 2 for x, y in halves[b]) for b in blocks],
    }
    choose, report = ([fmean(pair[side] for pair in halves[b]) for b in blocks] for side in (0, 1))
    return path | summary(path, choose, report)


def summary(path: Mapping[str, list[float]], choose: list[float], report: list[float]) -> dict[str, float]:
    """Start, peak and end of gold; the proxy after the peak; the laws' fits. choose: where the peak is looked for."""
    top = max(range(len(choose)), key=choose.__getitem__)
    return {
        "gold_start": report[0],
        "gold_peak": report[top],
        "gold_end": report[-1],
        "peak_distance": path["distance"][top],
        "end_distance": path["distance"][-1],
        "proxy_start": path["proxy"][0],
        "proxy_at_peak": path["proxy"][top],
        "proxy_end": path["proxy"][-1],
        **fits(path),
    }


def fits(path: Mapping[str, list[float]]) -> dict[str, float]:
    """Both laws, fitted to gold above its start: mean squared error, and where each has its peak."""
    distance = torch.tensor(path["distance"], dtype=torch.float64)
    gained = torch.tensor(path["gold"], dtype=torch.float64) - path["gold"][0]
    found: dict[str, float] = {}
    for name, fit, law, peak in (
        ("bon", fit_best_of_n, gold_best_of_n, peak_best_of_n),
        ("rl", fit_rl, gold_rl, peak_rl),
    ):
        try:
            parameters = fit(distance, gained)
        except DataError:  # it never moved
            continue
        found[f"{name}_law_error"] = float((law(distance, parameters) - gained).square().mean())
        found[f"{name}_law_alpha"], found[f"{name}_law_beta"] = map(float, parameters)
        try:
            found[f"{name}_law_peak"] = float(peak(parameters).distance)
        except ConfigError:  # a curve that never falls has no peak
            continue
    return found


def read(cells: Cells) -> list[Figure]:
    """Rise and fall of gold, and the proxy's further rise, in each arm; then what charge and ensemble change."""
    figures = []

    def differ(what: str, before: list[float], after: list[float], wanted: int) -> None:
        gain, low, high = paired(after, before)
        start, end = interval(before)[0], interval(after)[0]
        seen = low > 0 if wanted > 0 else high < 0
        text = f"{what}: {start:+.3f} → {end:+.3f}, {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=start, after=end, low=low, high=high, seen=seen, text=text))

    for arm, cell in cells.items():
        get = {
            name: column(cell, name) for name in ("gold_start", "gold_peak", "gold_end", "proxy_at_peak", "proxy_end")
        }
        differ(f"{arm}: gold rises to its peak", get["gold_start"], get["gold_peak"], +1)
        differ(f"{arm}: gold falls from it", get["gold_peak"], get["gold_end"], -1)
        differ(f"{arm}: the proxy rises on", get["proxy_at_peak"], get["proxy_end"], +1)
        name = "bon" if arm == "best_of_n" else "rl"
        explained = [1 - c[f"{name}_law_error"] / pvariance(c["gold"]) for _, c in sorted(cell.items())]
        share, low, high = interval(explained)
        other = "rl" if name == "bon" else "bon"
        rest = interval([1 - c[f"{other}_law_error"] / pvariance(c["gold"]) for _, c in sorted(cell.items())])[0]
        what = f"{arm}: share of gold's variance that its law explains"
        text = f"{what}: {share:.2f} [{low:.2f}, {high:.2f}]; the other law {rest:.2f}"
        figures.append(Figure(what=what, before=0.0, after=share, low=low, high=high, seen=low > 0, text=text))
    for arm, what in (("rl_kl", "a KL charge"), ("rl_ensemble", "the least of three reward models")):
        if "rl" in cells and arm in cells:
            fall = {a: [p - e for p, e in zip(column(cells[a], "gold_peak"), column(cells[a], "gold_end"), strict=True)]
                    for a in ("rl", arm)}  # fmt: skip
            differ(f"{what}: how far gold falls from its peak", fall["rl"], fall[arm], -1)
            differ(f"{what}: gold at the end", column(cells["rl"], "gold_end"), column(cells[arm], "gold_end"), +1)
    return figures


_SIZE = {"start_steps": 100, "pair_prompts": 160, "members": 1}
_RL = {**_SIZE, "method": "rl", "steps": 60, "lr": 1e-3, "beta": 0.0}

STUDY = Study(
    name="over_optimisation",
    claim="the proxy rises while gold first rises and then falls; a KL charge and an ensemble soften the fall",
    source="Gao et al. 2022 (arXiv 2210.10760); Coste et al. 2023 (arXiv 2310.02743)",
    arms={
        "best_of_n": {**_SIZE, "method": "best_of_n"},
        "rl": _RL,
        "rl_kl": {**_RL, "beta": 0.01},
        "rl_ensemble": {**_RL, "members": 3},
    },
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
