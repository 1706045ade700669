"""Two rounds against one: as many answers, comparisons and optimizer steps, half of them from a better model.

All arms are one loop. Offline: all answers are sampled from the start, then learned. Two rounds: half of them, learned,
then half from what came of it, against the same reference or against the first round's result. Online: anew before
every step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import online_preference
from posttrain.algorithms.contests import Way
from posttrain.data.rows import Data
from posttrain.lab.preference_runs import column, graded, rise, settings, start, trained
from posttrain.lab.study import Cells, Figure, Study
from posttrain.objectives.preference import PreferenceLoss
from posttrain.train.learner import Optim
from posttrain.train.schedule import Schedule


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Gold's grade of new portraits after each way to spend the same steps."""
    model = start(scratch, seed)
    found = {"start": graded(model, seed, prompts=96)["gold"]}
    for name, (rounds, renew) in given["ways"].items():
        updates = given["updates"] // rounds
        cfg = online_preference.Config(
            model=str(model), data=Data(path="builtin:about", limit=2000), reward="gold", way=Way(renew=renew),
            loss=PreferenceLoss(beta=given["beta"]), steps=rounds, prompts=given["prompts"] * updates, group_size=4,
            minibatches=updates, eval_every=0, optim=Optim(lr=given["lr"], schedule=Schedule(warmup=3)),
            run=settings(seed),
        )  # fmt: skip
        after = graded(trained(scratch / name, online_preference, cfg), seed, prompts=96)
        found |= {name: after["gold"], f"{name} length": after["length"]}
    return found


def read(cells: Cells) -> list[Figure]:
    """Offline against the start, and each fresher way against offline."""
    seeds = cells["gold"]
    offline = column(seeds, "offline")
    figures = [rise("offline: gold", column(seeds, "start"), offline)]
    for name in ("two rounds", "two rounds, reference renewed", "online"):
        figures.append(rise(f"gold offline and with {name}", offline, column(seeds, name)))
    return figures


STUDY = Study(
    name="online_rounds",
    claim="two rounds of online DPO beat offline DPO at equal answers and equal optimizer steps",
    source="Guo et al. 2024 (arXiv 2402.04792); Pang et al. 2024 (arXiv 2404.19733)",
    arms={
        "gold": {
            "prompts": 12, "updates": 24, "lr": 5e-4, "beta": 0.1,
            "ways": {"offline": [1, 0], "two rounds": [2, 0], "two rounds, reference renewed": [2, 1],
                     "online": [24, 0]},
        }
    },
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)  # fmt: skip
