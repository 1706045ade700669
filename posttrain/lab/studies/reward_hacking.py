"""Reward hacking: a proxy with planted flaws rises on and on while gold rises and then falls, over the root of the KL.

Comparisons come from the world's rater, who sees gold but for three weaknesses: half of the errors are missed, every
sentence and every polite phrase pleases. A small reward model learns the choices among the start's own answers, and is
then all that anything optimises; gold never trains anything. Four ways of pressing on it: RL without a charge (the KL
is measured), RL with a charge for the KL, RL against the least of three reward models, and best-of-n, read off a pool
of answers without new draws. All four begin at one start and use the same reward models. Both laws of Gao et al. are
fitted. The place of a run's peak is chosen on one half of the answers and its gold taken of the other, so that a lucky
batch is no peak. Section 15 shows it. Settings were chosen on seeds 0 and 1. Seeds 2 to 4 had 48 steps, too few to tell
the fall from noise; the number was doubled, and none of the five is reported.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import torch

from posttrain.algorithms import group
from posttrain.assets.world import people
from posttrain.assets.world.gold import gold, sentences
from posttrain.data.rows import Data
from posttrain.errors import ConfigError, DataError
from posttrain.lab.portrait_runs import column, gold_and_proxy, proxies, settings, start
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.scaling import fit_best_of_n, fit_rl, gold_best_of_n, gold_rl, peak_best_of_n, peak_rl
from posttrain.objectives.selection import best_of_n_bound, best_of_n_value
from posttrain.recipes.stages import curve, stage
from posttrain.records import Stop
from posttrain.sample.base import SamplingParams
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule

WINDOW = 4
"""Steps that are one point: a batch of answers is a noisy measure."""
UNCHARGED = 1e-9
"""A leash that charges nothing and still has a reference, by which the KL is measured. (The proxy's scores spread over
a few hundredths, so that a charge of 0.01 a nat is a strong one.)"""
POOL = 64
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""n of best-of-n."""
ASKED = 24
CARDS = 6
"""Answers of a point that the page shows."""


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Distance, proxy and gold of all four ways of pressing, from one start and on the same proxies; answers."""
    model = start(scratch, seed, given["start_steps"])
    judges = proxies(scratch, model, seed, given["pair_prompts"], given["members"])
    found = {"bon": of_best(model, judges[:1], seed)}
    one, beta = judges[:1], given["beta"]
    for name, charge, taken in (("rl", UNCHARGED, one), ("kl", beta, one), ("min", UNCHARGED, judges)):
        found[name] = pressed(scratch / name, model, reward_of(taken), charge, given, seed)
    figures = {f"{way}: {what}": x for way, all in found.items() for what, x in all.items() if what != "page"}
    return figures | {"page": {way: all["page"] for way, all in found.items()}}


def pressed(out: Path, model: Path, reward: str, beta: float, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """RL on a reward from a start: its windows of steps."""
    cfg = group.Config(
        model=str(model), data=Data(path="builtin:about", limit=4000), reward=reward,
        objective=charging(beta), prompts=16, group_size=4, steps=given["steps"], eval_every=0,
        sampling=SamplingParams(max_tokens=64), optim=Optim(lr=given["lr"], schedule=Schedule(warmup=5)),
        run=settings(seed, samples=16 * 4),
    )  # fmt: skip
    stage(out, group, cfg)
    return along(out)


def charging(beta: float) -> Objective:
    """RLOO with so much times the KL in the reward."""
    base = PRESETS["rloo"]
    return replace(base, kl=replace(base.kl, beta=beta))


def traits(text: str) -> dict[str, float]:
    """What can be seen of an answer without knowing the truth about anybody."""
    found = sentences(text)
    said = [s.text for s in found]
    return {
        "sentences": len(found),
        "polite": sum(s.kind == "polite" for s in found),
        "facts": sum(s.kind == "facts" for s in found),
        "repeats": len(said) - len(set(said)),
    }


def reward_of(judges: list[Path]) -> str:
    """The name of one reward model, or of the least of several, each on the scale of the start's answers."""
    return f"model:{judges[0]}" if len(judges) == 1 else f"model.min:{','.join(map(str, judges))}"


def of_best(model: Path, judges: list[Path], seed: int) -> dict[str, Any]:
    """Best-of-n over n, from one pool of answers per prompt."""
    gold, (proxy,), answers = gold_and_proxy(model, judges, seed, ASKED, POOL)
    worth, score = torch.tensor(gold, dtype=torch.float64), torch.tensor(proxy, dtype=torch.float64)
    value = lambda table, n: float(best_of_n_value(score, table, n).mean())  # noqa: E731
    path = {
        "distance": [best_of_n_bound(n) ** 0.5 for n in COUNTS],
        "proxy": [value(score, n) for n in COUNTS],
        "gold": [value(worth, n) for n in COUNTS],
    }
    seen = [[traits(t.completion) | {"tokens": t.length} for t in members] for members in answers]
    tables = {name: torch.tensor([[s[name] for s in row] for row in seen], dtype=torch.float64) for name in seen[0][0]}
    rows = [[t.task.meta["person"], t.completion, g, p] for members, gs, ps in zip(answers, gold, proxy, strict=True)
            for t, g, p in zip(members, gs, ps, strict=True)]  # fmt: skip
    best = [[max(range(n), key=lambda i: proxy[k][i]) + k * POOL for k in range(CARDS)] for n in COUNTS]
    page = path | {"traits": {name: [value(table, n) for n in COUNTS] for name, table in tables.items()},
                   "answers": [[rows[i] for i in chosen] for chosen in best]}  # fmt: skip
    return path | summary(path, path["gold"], path["gold"]) | {"page": page}


def along(run: Path) -> dict[str, Any]:
    """Windows of steps: √kl per answer from the start, proxy, gold by halves of the answers, and their looks."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in map(json.loads, (run / "samples.jsonl").read_text().splitlines()):
        steps.setdefault(row["step"], []).append(answer_of(row))
    kl = [k * n for (_, k), (_, n) in zip(curve(run, "kl_ref_k1"), curve(run, "length_mean"), strict=True)]
    proxy = [y for _, y in curve(run, "reward_mean")]
    blocks = [slice(i, i + WINDOW) for i in range(0, len(proxy) - WINDOW + 1, WINDOW)]
    answers = [[a for step in list(steps.values())[b] for a in step] for b in blocks]
    path = {
        "distance": [max(0.0, fmean(kl[b])) ** 0.5 for b in blocks],
        "proxy": [fmean(proxy[b]) for b in blocks],
        "gold": [fmean(a["gold"] for a in row) for row in answers],
    }
    choose, report = ([fmean(a["gold"] for a in row[side::2]) for row in answers] for side in (0, 1))
    names = (*traits(""), "tokens")
    tokens = [y for _, y in curve(run, "length_mean")]
    page = path | {
        "traits": {name: [fmean(a[name] for a in row) for row in answers] for name in names[:-1]}
        | {"tokens": [fmean(tokens[b]) for b in blocks]},
        "answers": [[[a["person"], a["text"], a["gold"], a["proxy"]] for a in row[:: len(row) // CARDS][:CARDS]]
                    for row in answers],
    }  # fmt: skip
    return path | summary(path, choose, report) | {"page": page}


def answer_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of samples.jsonl: its answer, graded by gold."""
    name, text = row["task"].split("-")[1], row["messages"][-1]["content"]
    value = gold(people.PEOPLE[name], text, row["stop"] == Stop.END).value
    return {"person": name, "text": text, "gold": value, "proxy": row["score"]["value"]} | traits(text)


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
    """Rise and fall of gold and the further rise of the proxy, each way; then what charge and ensemble change."""
    figures: list[Figure] = []

    def differ(what: str, before: list[float], after: list[float], wanted: int) -> None:
        gain, low, high = paired(after, before)
        first, last = interval(before)[0], interval(after)[0]
        seen = low > 0 if wanted > 0 else high < 0
        text = f"{what}: {first:+.3f} → {last:+.3f}, {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=first, after=last, low=low, high=high, seen=seen, text=text))

    (cell,) = cells.values()
    get = {way: {name: column(cell, f"{way}: {name}") for name in SUMMARY} for way in WAYS}
    for way, name in WAYS.items():
        at = get[way]
        differ(f"{name}: gold, start to peak", at["gold_start"], at["gold_peak"], +1)
        differ(f"{name}: gold, peak to end", at["gold_peak"], at["gold_end"], -1)
        differ(f"{name}: proxy, peak to end", at["proxy_at_peak"], at["proxy_end"], +1)
        for law, whose in (("bon", "best-of-n's law"), ("rl", "RL's law")):
            explained = [
                1 - c[f"{way}: {law}_law_error"] / pvariance(c[f"{way}: gold"]) for _, c in sorted(cell.items())
            ]
            share, low, high = interval(explained)
            what = f"{name}: share of gold's variance that {whose} explains"
            text = f"{what}: {share:.2f} [{low:.2f}, {high:.2f}]"
            figures.append(Figure(what=what, before=0.0, after=share, low=low, high=high, seen=low > 0, text=text))
    for way, what in (("kl", "a KL charge"), ("min", "the least of three")):
        fall = {w: [p - e for p, e in zip(get[w]["gold_peak"], get[w]["gold_end"], strict=True)] for w in ("rl", way)}
        differ(f"{what}: fall of gold from its peak", fall["rl"], fall[way], -1)
        differ(f"{what}: gold at the peak", get["rl"]["gold_peak"], get[way]["gold_peak"], +1)
        differ(f"{what}: √kl at the peak", get["rl"]["peak_distance"], get[way]["peak_distance"], +1)
        differ(f"{what}: gold at the end", get["rl"]["gold_end"], get[way]["gold_end"], +1)
    return figures


def page(pages: Mapping[str, Mapping[int, Any]]) -> Any:
    """Way -> runs, by seed: the three curves, what the answers look like, and some answers with both scores."""
    (cells,) = pages.values()

    def rounded(x: Any, digits: int) -> Any:
        return [rounded(v, digits) for v in x] if isinstance(x, list) else x if isinstance(x, str) else round(x, digits)

    def run(found: Mapping[str, Any]) -> dict[str, Any]:
        curves = {name: rounded(found[name], 3) for name in ("distance", "proxy", "gold")}
        traits = {name: rounded(values, 2) for name, values in found["traits"].items()}
        return {**curves, "traits": traits, "answers": rounded(found["answers"], 3)}

    return {way: [run(cells[seed][way]) for seed in sorted(cells)] for way in ("rl", "kl", "min", "bon")} | {
        "steps": WINDOW,
        "counts": list(COUNTS),
        "seeds": sorted(cells),
    }


WAYS = {"rl": "RL", "kl": "with a KL charge", "min": "least of three", "bon": "best-of-n"}
"""Ways of pressing on the proxy, and what their figures are called."""
SUMMARY = ("gold_start", "gold_peak", "gold_end", "peak_distance", "proxy_at_peak", "proxy_end")

STUDY = Study(
    name="reward_hacking",
    claim="the proxy rises while gold first rises and then falls; a KL charge and an ensemble soften the fall",
    source="Gao et al. 2022 (arXiv 2210.10760); Coste et al. 2023 (arXiv 2310.02743)",
    arms={
        "rater": {
            "start_steps": 100,
            "pair_prompts": 160,
            "members": 3,
            "steps": 96,
            "lr": 1e-3,
            "beta": 0.01,
        }
    },  # fmt: skip
    seeds=(5, 6, 7, 8, 9, 10),
    measure=measure,
    read=read,
    sections=("15",),
    page=page,
)
