"""TRPO, PPO's forms, and PPO without its clip on CartPole, at equal samples.

TRPO, PPO and PPO without its clip have two step sizes each, of which the better by mean return is chosen, on a seed
that is not reported; the penalty and the arms of 40 passes have PPO's larger one. What a method costs is counted
in processor seconds of the whole run, and in passes over a batch that compute gradients: a Fisher product
differentiates twice and counts as two. Return is the mean over all batches of a run, so that it says how soon as well.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.control import ppo, trpo
from posttrain.lab.control_runs import cart, column, compare, run
from posttrain.lab.study import Cells, Figure, Study
from posttrain.recipes.stages import curve

SEARCH = (0,)
METHODS = {
    "trpo": [{"delta": 0.01}, {"delta": 0.03}],
    "ppo": [{"lr": 1e-3}, {"lr": 3e-3}],
    "ppo_penalty": [{"lr": 3e-3}],
    "unclipped": [{"lr": 1e-3}, {"lr": 3e-3}],
    "ppo, 40 passes": [{"lr": 3e-3}],
    "unclipped, 40 passes": [{"lr": 3e-3}],
}


def arm(method: str, choice: Mapping[str, float]) -> str:
    """Its name: the method and its step size."""
    return f"{method} {next(iter(choice.values())):g}"


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Return, cost, and how far a step moved the policy."""
    changes = {k: v for k, v in settings.items() if k != "method"}
    method = trpo if settings["method"] == "trpo" else ppo
    found = run(method, cart(seed, method, **changes), scratch)
    kl = [y for _, y in curve(scratch, "kl_trust")]
    if method is trpo:
        passes = sum(1 + 2 * y for _, y in curve(scratch, "fisher_products"))
    else:
        passes = sum(y for _, y in curve(scratch, "minibatch_steps")) / 4
    return found | {"kl": max(kl), "passes": passes}


def best(cells: Cells, method: str) -> str:
    """The arm of a method with the highest mean return on the search seeds."""
    names = [arm(method, choice) for choice in METHODS[method]]
    return max(names, key=lambda name: fmean(column(cells[name], "mean", [s for s in SEARCH if s in cells[name]])))


def read(cells: Cells) -> list[Figure]:
    """Bound, return, cost, and what the clip is for."""
    seeds = [s for s in sorted(cells["ppo 0.001"]) if s not in SEARCH]
    names = {method: best(cells, method) for method in METHODS}

    def figure(method: str, name: str) -> list[float]:
        return column(cells[names[method]], name, seeds)

    held = []
    for choice in METHODS["trpo"]:
        delta, most = choice["delta"], column(cells[arm("trpo", choice)], "kl")
        text = f"largest kl(old ‖ new) of any step of TRPO, bound {delta}: {max(most):.5f} nats"
        held.append(Figure(what=f"bound {delta}", before=delta, after=max(most), low=min(most), high=max(most),
                           seen=max(most) <= delta, text=text))  # fmt: skip
    hard, free = "ppo, 40 passes", "unclipped, 40 passes"
    return [
        *held,
        compare("return", figure("ppo", "mean"), figure("trpo", "mean"),
                f"return of {names['ppo']} against {names['trpo']}, equal samples", sign=0),
        compare("seconds", figure("ppo", "seconds"), figure("trpo", "seconds"), "processor seconds of these", sign=-1),
        compare("passes", figure("ppo", "passes"), figure("trpo", "passes"), "gradient passes of these", sign=-1),
        compare("penalty", figure("ppo_penalty", "mean"), figure("ppo", "mean"), "return of the penalty, not the clip",
                sign=0),
        compare("clip, 10 passes", figure("unclipped", "mean"), figure("ppo", "mean"), "return without the clip, 10 "
                "passes over a batch", sign=-1),
        compare("clip, 40 passes", figure(free, "mean"), figure(hard, "mean"), "the same with 40 passes", sign=-1),
        compare("KL without clip", figure(free, "kl"), figure(hard, "kl"), "largest KL of a step without the clip, 40 "
                "passes"),
    ]  # fmt: skip


def _settings(method: str, choice: Mapping[str, float]) -> dict[str, Any]:
    name, _, hard = method.partition(", ")
    form = {} if name == "trpo" else {"form": name}
    return {"method": name, **form, **choice} | ({"epochs": 40} if hard else {})


STUDY = Study(
    name="trust_regions",
    claim="TRPO keeps its KL bound at every step; PPO matches its return for less work; without the clip PPO breaks.",
    source="Schulman et al. 2015 (arXiv 1502.05477); Schulman et al. 2017 (arXiv 1707.06347)",
    arms={arm(method, choice): _settings(method, choice) for method, choices in METHODS.items() for choice in choices},
    seeds=tuple(range(10)),
    sections=("13",),
    measure=measure,
    read=read,
)
