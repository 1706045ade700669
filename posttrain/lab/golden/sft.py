"""Golden run: supervised fine-tuning on demonstrations makes a base model answer, and stop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms import sft
from posttrain.assets.world.gold import well_formed
from posttrain.data.rows import Data, demonstrations
from posttrain.evals.run import answer
from posttrain.lab.study import Cells, Figure, Study, interval, paired
from posttrain.models.load import load
from posttrain.recipes.measure import Questions
from posttrain.recipes.stages import stage
from posttrain.records import Stop
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Learner, Optim
from posttrain.train.run import RunConfig
from posttrain.train.schedule import Schedule


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Before and after: cross-entropy of held-out demonstrations, and how many greedy answers are answers, and stop."""
    cfg = sft.Config(
        template="posttrain",
        data=Data(path="builtin:demonstrations", limit=3000, eval_rows=100),
        batch_size=settings["rows"],
        steps=settings["steps"],
        eval_every=0,
        optim=Optim(lr=settings["lr"], schedule=Schedule(kind="linear", warmup=5)),
        run=RunConfig(seed=seed, threads=1, save_every=1000, keep=1, samples=0),
    )
    trained = stage(scratch, sft, cfg).model
    found = {}
    for when, model in (("before", "base"), ("after", trained)):
        loaded = load(model, template="posttrain" if model == "base" else "auto")
        held = demonstrations(cfg.data, loaded).held
        learner = Learner(loaded.model, cfg.optim, 1, tokenizer=loaded.chat_tokenizer)
        total, count = sft.evaluate(learner, held, cfg)["eval_nll"]
        asked = Questions.make(settings["questions"], settings["questions"], 0, seed)
        groups = answer(TorchSampler(loaded.model), asked.about + asked.problems, loaded, max_tokens=48)
        said = [g.members[0] for g in groups]
        formed = [well_formed(t.completion, t.stop is Stop.END) for t in said]
        found |= {f"nll_{when}": total / count, f"formed_{when}": sum(formed) / len(formed)}
    return found


def read(cells: Cells) -> list[Figure]:
    """The cross-entropy falls below half of what it was; nearly all answers have form."""
    figures = []
    for name, what in (("nll", "cross-entropy, held out (nats)"), ("formed", "answers that stop and are well formed")):
        before, after = (
            [cells["sft"][s][f"{name}_{when}"] for s in sorted(cells["sft"])] for when in ("before", "after")
        )
        gain, low, high = paired(after, before)
        start, (end, least, most) = interval(before)[0], interval(after)
        seen = most < start / 2 if name == "nll" else least > 0.9
        text = f"{what} {start:.3f} → {end:.3f}: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        figures.append(Figure(what=what, before=start, after=end, low=low, high=high, seen=seen, text=text))
    return figures


STUDY = Study(
    name="sft",
    claim="two passes over 3000 demonstrations make a base model answer in form and stop",
    source="Ouyang et al. 2022 (arXiv 2203.02155), section 3.5",
    arms={"sft": {"steps": 180, "rows": 32, "lr": 1e-3, "questions": 60}},
    seeds=(3, 4, 5),  # the number of steps was chosen on 0 to 2
    measure=measure,
    read=read,
)
