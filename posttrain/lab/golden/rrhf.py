"""Golden run: RRHF on the model's own portraits, four to a prompt, scored by gold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import rrhf
from posttrain.assets.world import demos, people
from posttrain.assets.world.gold import gold
from posttrain.lab.preference_runs import column, common, graded, rise, start, trained, values, written
from posttrain.lab.study import Cells, Figure, Study
from posttrain.models.load import load
from posttrain.recipes import comparisons
from posttrain.records import Stop


def ranked(scratch: Path, model: Path, seed: int, prompts: int) -> Path:
    """Rankings of the model's own answers, in the columns of RRHF's own files."""
    asked, rows = demos.about_prompts(people.SEEN, prompts, seed), []
    for said in comparisons.sampled(load(model), asked, 4, seed):
        texts = list(dict.fromkeys(m.completion for m in said if m.stop is Stop.END and m.completion.strip()))
        if len(texts) > 1:
            person = people.PEOPLE[said[0].task.meta["person"]]
            scores = [gold(person, text).value for text in texts]
            rows.append({"query": said[0].messages[0].content, "responses": texts, "scores": scores})
    return written(scratch / "rankings.jsonl", rows)


def measure(given: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Gold's grade of new portraits before and after, and the order of held-out answers."""
    model = start(scratch, seed)
    rows = ranked(scratch, model, seed, given["prompts"])
    same = common(model, rows, seed, steps=given["steps"], lr=given["lr"], batch_size=8, held=24)
    after = trained(scratch / "rrhf", rrhf, rrhf.Config(**same))
    return {
        "before": graded(model, seed)["gold"],
        "after": graded(after, seed)["gold"],
        "accuracy": values(scratch / "rrhf", "eval_accuracy")[-1],
    }


def read(cells: Cells) -> list[Figure]:
    """Gold rises; held-out answers are in the right order more often than not."""
    seeds = cells["rrhf"]
    right = column(seeds, "accuracy")
    return [
        rise("gold", column(seeds, "before"), column(seeds, "after")),
        rise("accuracy", [0.5] * len(right), right, digits=3),
    ]


STUDY = Study(
    name="rrhf",
    claim="RRHF on scored answers of its own raises gold's grade of new portraits",
    source="Yuan et al. 2023 (arXiv 2304.05302)",
    arms={"rrhf": {"prompts": 128, "steps": 24, "lr": 3e-4}},
    seeds=(0, 1, 2),
    measure=measure,
    read=read,
)
