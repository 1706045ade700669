"""What baselines and λ do to the gradient on CartPole: the same batches under every estimator, the policy held still.

A short run of REINFORCE leaves a policy that is neither new nor good, and a critic that is neither blind nor exact.
Nothing is trained after that. Variances are traces of the gradient's covariance from batch to batch; both they and
squared distances between means are shares of the squared mean gradient. How large that is differs a lot from seed to
seed, and with it every difference of variances; the factor between two variances of one seed does not depend on it. It
was added after the differences had been read, which stay beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain import rng
from posttrain.control import reinforce
from posttrain.control.learning import with_values
from posttrain.control.steps import collect
from posttrain.lab.control_runs import cart, column, compare, moments, rewarded, trained
from posttrain.lab.study import Cells, Figure, Study, interval

BASELINES = {"total, none": ("none", "total"), "none": ("none", "to_go"), "running": ("running", "to_go"),
             "value": ("value", "to_go")}  # fmt: skip
LAMBDAS = (0.0, 0.5, 0.9, 0.97, 1.0)


def baselines(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Moments of REINFORCE's gradient under every baseline, undiscounted."""
    envs, policy, critic = trained(seed, scratch, settings["steps"])
    cfg = replace(cart(seed, reinforce), gamma=settings["gamma"])
    found: dict[str, list] = {name: [] for name in BASELINES}
    running = None
    for k in range(settings["batches"] + 1):  # the first one only says what "running" subtracts
        batch = rewarded(collect(envs, policy, rng.fold(seed, "study", k))[0], cfg)
        for name, (baseline, credit) in BASELINES.items() if running is not None else ():
            mine = replace(cfg, baseline=baseline, credit=credit)
            found[name].append(reinforce.gradient(policy, reinforce.credited(batch, critic, mine, running), mine))
        if running is None:
            whole = reinforce.credited(batch, critic, replace(cfg, baseline="none"))
            running = float(whole.advantage[whole.mask].mean())
    return moments(found, "none")


def lambdas(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Moments of the gradient with advantages of every λ, from one critic."""
    envs, policy, critic = trained(seed, scratch, settings["steps"])
    cfg = cart(seed, reinforce)
    found: dict[str, list] = {str(lam): [] for lam in LAMBDAS}
    for k in range(settings["batches"]):
        batch = rewarded(collect(envs, policy, rng.fold(seed, "study", k))[0], cfg)
        for lam in LAMBDAS:
            mine = with_values(batch, critic, gamma=cfg.gamma, lam=lam, normalise=False)
            found[str(lam)].append(reinforce.gradient(policy, mine, cfg))
    return moments(found, "1.0")


def read_baselines(cells: Cells) -> list[Figure]:
    """Less variance, the same mean."""
    arm = cells["cartpole"]
    plain = column(arm, "variance, none")
    figures = [
        compare("reward to go", plain, column(arm, "variance, total, none"),
                "variance with the reward to go instead of the whole return", sign=-1),
    ]  # fmt: skip
    for name in ("running", "value"):
        ours = column(arm, f"variance, {name}")
        figures.append(compare(f"variance, {name}", ours, plain, f'variance with baseline "{name}"', sign=-1))
        apart, low, high = interval(column(arm, f"distance, {name}"))
        text = f'squared distance of the mean gradients with "{name}" and none: {apart:+.4f} [{low:+.4f}, {high:+.4f}]'
        figures.append(Figure(what=f"mean, {name}", before=0.0, after=apart, low=low, high=high,
                              seen=low <= 0 <= high, text=text))  # fmt: skip
    return figures


def read_lambdas(cells: Cells) -> list[Figure]:
    """Smaller λ: less variance, more bias."""
    arm = cells["cartpole"]
    one, zero, figures = column(arm, "variance, 1.0"), [0.0] * len(arm), []
    for lam in ("0.97", "0.9", "0.0"):
        ours = column(arm, f"variance, {lam}")
        figures.append(compare(f"variance, λ = {lam}", ours, one, f"variance with λ = {lam} instead of 1", sign=-1))
        factor = [math.log(a / b) for a, b in zip(ours, one, strict=True)]
        text = f"logarithm of the variance's factor with λ = {lam}"
        figures.append(compare(f"factor, λ = {lam}", factor, zero, text, sign=-1))
    for lam in ("0.97", "0.9", "0.0"):
        text = f"squared bias with λ = {lam}"
        figures.append(compare(f"bias, λ = {lam}", column(arm, f"distance, {lam}"), zero, text))
    more = compare("bias grows", column(arm, "distance, 0.0"), column(arm, "distance, 0.97"),
                   "squared bias with λ = 0 instead of 0.97")  # fmt: skip
    return [*figures, more]


SIZE = {"steps": 12, "batches": 40}
STUDIES = (
    Study(
        name="control_baseline",
        claim="A baseline cuts the variance of the policy gradient on CartPole and leaves its mean where it is.",
        source="Williams 1992; Sutton et al. 1999",
        arms={"cartpole": SIZE | {"gamma": 1.0}},
        seeds=(0, 1, 2, 3),
        measure=baselines,
        read=read_baselines,
    ),
    Study(
        name="control_lambda",
        claim="λ below 1 trades variance of the gradient for bias, the more of both the smaller it is.",
        source="Schulman et al. 2016 (arXiv 1506.02438)",
        arms={"cartpole": SIZE},
        seeds=(0, 1, 2, 3),
        measure=lambdas,
        read=read_lambdas,
    ),
)
