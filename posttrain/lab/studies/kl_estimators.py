"""Three estimators of one KL, near the reference and far from it: their spread and their bias against the exact sum.

Policy and reference are softmaxes over 64 tokens at 64 prefixes. The policy's logits are the reference's and `drift`
times standard normal numbers, so that the exact KL is at hand and drift runs from hardly moved to another model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.objectives.kl import k1, k2, k3, reverse_kl

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> dict[str, list[float]]:
    """For each drift: the mean exact KL; for each estimator bias and standard deviation, in units of that KL."""
    generator = torch.Generator().manual_seed(seed)
    shape = (settings["prefixes"], settings["vocabulary"])
    reference = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    moved = torch.randn(shape, generator=generator, dtype=torch.float64)
    found: dict[str, list[float]] = {}
    for drift in settings["drifts"]:
        policy = reference + drift * moved
        exact = reverse_kl(policy, reference)
        drawn = torch.multinomial(policy.softmax(-1), settings["samples"], replacement=True, generator=generator)
        log_ratio = (policy.log_softmax(-1) - reference.log_softmax(-1)).gather(1, drawn)
        found.setdefault("exact", []).append(float(exact.mean()))
        for name, estimator in ESTIMATORS.items():
            value = estimator(log_ratio)
            bias, spread = (value.mean() - exact.mean()) / exact.mean(), value.var(1).mean().sqrt() / exact.mean()
            found.setdefault(f"bias, {name}", []).append(float(bias))
            found.setdefault(f"spread, {name}", []).append(float(spread))
    return found


def read(cells: Cells) -> list[Figure]:
    """Spreads of k3 beside k1, and the bias of k2, at the smallest and the largest drift."""
    (runs,) = cells.values()
    figures = []
    for what, at, below in (("near", 0, True), ("far", -1, False)):
        ratios = [run["spread, k3"][at] / run["spread, k1"][at] for run in runs.values()]
        mean, low, high = interval(ratios)
        text = f"{what} the reference the spread of k3 is {mean:.3g} [{low:.3g}, {high:.3g}] times that of k1"
        seen = high < 1 if below else low > 1
        figures.append(Figure(f"spread of k3 over k1, {what}", 1.0, mean, low, high, seen, text))
    for name in ("k2", "k3"):
        mean, low, high = interval([run[f"bias, {name}"][-1] for run in runs.values()])
        seen = low > 0 or high < 0 if name == "k2" else low <= 0 <= high
        text = f"far from it {name} is off by {mean:+.3g} [{low:+.3g}, {high:+.3g}] of the KL"
        figures.append(Figure(f"bias of {name}, far", 0.0, mean, low, high, seen, text))
    return figures


STUDY = Study(
    name="kl_estimators",
    claim="near the reference k3 spreads far less than k1, far from it more; k2 is biased there, k3 is not",
    source="Schulman 2020, Approximating KL divergence",
    arms={"softmax": {"drifts": [0.03, 0.1, 0.3, 1.0, 2.0, 3.0], "prefixes": 64, "vocabulary": 64, "samples": 20000}},
    seeds=(0, 1, 2, 3, 4),
    sections=("02",),
    measure=measure,
    read=read,
)
