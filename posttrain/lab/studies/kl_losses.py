"""What the three estimators do as losses: nothing else is trained on, and the policy starts away from its reference.

Policy and reference are tables of softmaxes over 64 tokens at 64 prefixes. Each step samples tokens at each prefix from
the policy and goes down the gradient of the estimator's mean at those tokens. "reward" is k1 put into the reward, with
the policy gradient as its loss. Step size was chosen on a seed that is not reported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posttrain.lab.preference_runs import rise
from posttrain.lab.study import Cells, Figure, Study, paired
from posttrain.objectives.kl import forward_kl, k1, k2, k3, reverse_kl

LOSSES = ("k1", "k2", "k3", "reward")


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> dict[str, list[float]]:
    """Of each loss both KLs along the way, means over the prefixes."""
    found: dict[str, list[float]] = {"steps": list(range(0, given["steps"] + 1, given["every"]))}
    for name in LOSSES:
        generator = torch.Generator().manual_seed(seed)
        shape = (64, 64)
        reference = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        policy = (reference + given["drift"] * torch.randn(shape, generator=generator, dtype=torch.float64)).clone()
        policy.requires_grad_()
        for step in range(given["steps"] + 1):
            if step % given["every"] == 0:
                for key, kl in (("reverse", reverse_kl), ("forward", forward_kl)):
                    found.setdefault(f"{key}, {name}", []).append(float(kl(policy, reference).mean()))
            loss = sampled_loss(policy, reference, name, given["samples"], generator)
            (slope,) = torch.autograd.grad(loss, policy)
            policy = (policy - given["lr"] * slope).detach().requires_grad_()
    return found


def sampled_loss(policy, reference, name: str, samples: int, generator: torch.Generator) -> torch.Tensor:
    """The sum over prefixes of the estimator's mean at sampled tokens, minimised."""
    logp = policy.log_softmax(-1)
    drawn = torch.multinomial(logp.detach().exp(), samples, replacement=True, generator=generator)
    said = logp.gather(1, drawn)
    ratio = said - reference.log_softmax(-1).gather(1, drawn)
    value = ratio.detach() * said if name == "reward" else {"k1": k1, "k2": k2, "k3": k3}[name](ratio)
    return value.mean(1).sum()


def read(cells: Cells) -> list[Figure]:
    """k2 and the reward form bring the policy back; k1 does not; k3 lowers the other KL."""
    runs, figures = cells["tables"], []
    ends = {key: [[run[key][at] for _, run in sorted(runs.items())] for at in (0, -1)]
            for key in next(iter(runs.values())) if key != "steps"}  # fmt: skip
    for name in ("k2", "reward"):
        figures.append(rise(f"reverse KL, {name} as the loss", *ends[f"reverse, {name}"], down=True, digits=3))
    gain, low, high = paired(ends["reverse, k1"][1], ends["reverse, k1"][0])
    before, after = (sum(x) / len(x) for x in ends["reverse, k1"])
    text = f"with k1 the reverse KL goes {before:.3f} → {after:.3f}, {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    figures.append(Figure("reverse KL, k1 as the loss", before, after, low, high, high > 0, text))
    for key, better, worse in (("reverse", "k2", "k3"), ("forward", "k3", "k2")):
        figures.append(rise(f"{key} KL at the end, {worse} and {better}", ends[f"{key}, {worse}"][1],
                            ends[f"{key}, {better}"][1], down=True, digits=3))  # fmt: skip
    return figures


STUDY = Study(
    name="kl_losses",
    claim="as losses k2 and k1 in the reward lower the reverse KL, k3 the forward KL, and k1 nothing",
    source="Tang and Munos 2025 (arXiv 2506.09477); Liu et al. 2025 (arXiv 2510.01555)",
    arms={"tables": {"steps": 300, "every": 10, "lr": 0.1, "samples": 16, "drift": 1.5}},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
    sections=("02",),
)
