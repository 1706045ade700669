"""What several reward models know that one does not, and what a ranking of four is worth beside a pair.

All learn the rater from portraits of the world's own making. At equal prompts a ranking shows six pairs, not one.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from posttrain.algorithms import reward_model
from posttrain.algorithms.scoring import answer_scores, contrasts, make_batch
from posttrain.data.rows import Data
from posttrain.evals.scorer import scorer_metrics
from posttrain.lab.preference_runs import LINEAR, column, rise, settings
from posttrain.lab.study import Cells, Figure, Study
from posttrain.recipes.stages import stage
from posttrain.rewards.model import Judges, ModelReward
from posttrain.train.learner import Optim, outputs
from posttrain.train.metrics import mean


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Accuracy and calibration of one member and of their mean; disagreement where the mean is right and wrong."""
    torch.set_num_threads(1)
    same = {"template": "posttrain", "eval_every": 1000, "optim": Optim(lr=given["lr"], schedule=LINEAR),
            "run": settings(seed)}  # fmt: skip
    data = Data(path="builtin:preferences", limit=given["prompts"], eval_rows=given["held"])
    cfg = reward_model.Config(data=data, members=given["members"], head_std=1.0, batch_size=16, **same)
    folder = stage(scratch / "ensemble", reward_model, cfg).folder
    judge = ModelReward(Judges.read(f"model:{folder}"))
    batch = make_batch(reward_model.rows_of(cfg, judge.loaded[0]).held)
    said = [answer_scores(outputs(x.model, batch, ("values",), 16384), batch) for x in judge.loaded]
    table, length, (better, worse) = judge.on_one_scale(torch.stack(said)), batch.mask.sum(1), contrasts(batch)
    gap = table[:, better] - table[:, worse]
    alone = [mean(scorer_metrics(g, length[better], length[worse])) for g in gap]
    whole = mean(scorer_metrics(gap.mean(0), length[better], length[worse]))
    spread, right = gap.std(0, correction=0), gap.mean(0) > 0
    found = {f"one {k}": fmean(m[f"eval_{k}"] for m in alone) for k in ("accuracy", "calibration_error")}
    found |= {f"mean {k}": whole[f"eval_{k}"] for k in ("accuracy", "calibration_error", "accuracy_shorter")}
    found |= {"spread right": float(spread[right].mean()), "spread wrong": float(spread[~right].mean())}
    return found | ranked(given, scratch, same)


def ranked(given: Mapping[str, Any], scratch: Path, same: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy on held-out rankings after as many prompts: with two of each four answers, with all, with the best."""
    found = {}
    data = Data(path="builtin:rankings", limit=given["ranked"], eval_rows=given["held"] // 4)
    for loss in ("all_pairs", "plackett_luce", "top_choice"):
        cfg = reward_model.Config(data=data, loss=loss, batch_size=8, **same)
        found[loss] = stage(scratch / loss, reward_model, cfg).metrics["eval_accuracy"]
    pairs = Data(path="builtin:preferences", limit=given["ranked"], eval_rows=given["held"])
    cfg = reward_model.Config(data=pairs, batch_size=8, **same)
    return found | {"pairs": stage(scratch / "pairs", reward_model, cfg).metrics["eval_accuracy"]}


def read(cells: Cells) -> list[Figure]:
    """The mean of members is more often right, and their disagreement tells where it is not."""
    seeds = cells["rater"]
    figures = [
        rise("accuracy of one and of the mean", column(seeds, "one accuracy"), column(seeds, "mean accuracy"),
             digits=3),
        rise("calibration error of one and of the mean", column(seeds, "one calibration_error"),
             column(seeds, "mean calibration_error"), down=True, digits=3),
        rise("disagreement where the mean is right and wrong", column(seeds, "spread right"),
             column(seeds, "spread wrong"), digits=3),
    ]  # fmt: skip
    for loss in ("all_pairs", "plackett_luce", "top_choice"):
        what = f"accuracy at equal prompts, of pairs and of rankings ({loss})"
        figures.append(rise(what, column(seeds, "pairs"), column(seeds, loss), digits=3))
    return figures


STUDY = Study(
    name="scorers",
    claim="an ensemble orders answers better than its members, and disagrees more where it is wrong",
    source="Coste et al. 2023 (arXiv 2310.02743); Ouyang et al. 2022 (arXiv 2203.02155)",
    arms={"rater": {"prompts": 480, "ranked": 160, "held": 240, "members": 4, "lr": 5e-4}},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
