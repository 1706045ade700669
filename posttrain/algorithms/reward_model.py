"""Reward models: a scalar head on the last token of an answer, learned from comparisons or from whole rankings.

The score of an answer is a log-odds: only differences between answers to one prompt mean anything. The result is a
folder that transformers opens as a sequence classifier; several members make an ensemble, each a run of its own in the
folder. Use them as `reward = "model:FOLDER"`. Section 09 of the book tells the story.

    <run>/scores.json        mean and deviation of its scores of answers that it was not trained on
    <run>/calibration.json   how sure it is, and how often it is right
    <run>/member-2/          the second run of an ensemble
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.algorithms.ranked import Table, ranking_sample
from posttrain.algorithms.scoring import answer_scores, contrasts, describe, gaps, make_batch, said
from posttrain.algorithms.sft import as_sample
from posttrain.batch import TokenBatch, collate
from posttrain.data.rows import Data, PairRow, Rows, pairs, pick, rankings, report, steps_for
from posttrain.errors import ConfigError
from posttrain.evals.scorer import drawn, reliability, scorer_metrics
from posttrain.models.heads import ScalarModel
from posttrain.models.load import Loaded, load
from posttrain.models.lora import Lora
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.reward import all_pairs, bradley_terry, plackett_luce, top_choice
from posttrain.records import Segment
from posttrain.rewards.model import Judges, ModelReward
from posttrain.train.demand import Demand, longest_pairs, longest_rankings, probe
from posttrain.train.invariants import check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term, outputs
from posttrain.train.metrics import Metrics
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A reward model from comparisons."""

    model: str = "base"
    """Model whose body is taken: usually the SFT model. A reward model's folder continues its training."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:preferences", limit=600, eval_rows=100)
    """Pairs: columns prompt, chosen, rejected, and where they exist margins. Rankings: prompt, answers, scores."""
    loss: Literal["pairs", "all_pairs", "plackett_luce", "top_choice"] = "pairs"
    """pairs: Bradley-Terry. The others read rankings of any number of answers: all their pairs (InstructGPT), the order
    as a whole (Plackett-Luce), or only which is best. Of equal scores the answer that comes first counts as better."""
    label_smoothing: float = 0.0
    """Share of labels taken to be wrong ("pairs"). 0: none."""
    centering: float = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps scores around 0; of rankings twice the mean, squared."""
    head_std: float = 0.0
    """Deviation of the new head's weights, in 1/√(width + 1). 0: all scores begin at 0. 1: members begin apart."""
    members: int = 1
    """Reward models in an ensemble: each sees the rows in an order of its own."""
    batch_size: int = 32
    """Pairs or rankings per optimizer step."""
    epochs: float = 1.0
    """Passes over the data, unless `steps` is set. More than one overfits soon."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps; overrides `epochs`."""
    eval_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between evaluations on the held-out rows. 0: none."""
    optim: Optim = Optim(lr=3e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights, beside the scalar head."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        problems = []
        for name in ("batch_size", "members"):
            if getattr(self, name) < 1:
                problems.append(f"{name} = {getattr(self, name)}: at least one is needed")
        if self.centering < 0 or self.head_std < 0:
            problems.append(f"centering = {self.centering}, head_std = {self.head_std}: 0 (none) or positive")
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.loss != "pairs"):
            problems.append(
                f'label_smoothing = {self.label_smoothing}: from 0 to below 0.5, and read by loss = "pairs" alone'
            )
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def ranked(self) -> bool:
        """Whether rows are rankings."""
        return self.loss != "pairs"


def rows_of(cfg: Config, loaded: Loaded) -> Rows:
    """The rows that the loss reads."""
    return (rankings if cfg.ranked else pairs)(cfg.data, loaded)


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = rows_of(cfg, load(cfg.model, template=cfg.template))
    steps = steps_for(cfg, len(rows.train))
    epochs = steps * cfg.batch_size / len(rows.train)
    what, many = "rankings" if cfg.ranked else "pairs", f", {cfg.members} times" if cfg.members > 1 else ""
    return f"{report(rows)}: {steps} steps of {cfg.batch_size} {what}, {epochs:.2f} epochs{many}."


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs; members of an ensemble come one after the other."""
    longest, what = (longest_rankings, "rankings") if cfg.ranked else (longest_pairs, "pairs")
    scorer = longest("reward model", model, rows, cfg, ("values",))
    return Demand(trained=(scorer,), steps=steps_for(cfg, len(rows.train)), words=f"{cfg.batch_size} {what}")


def train(cfg: Config, run: Run) -> Result:
    """Learn to score answers; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1 with two answers per prompt.

    L(θ) = - mean over pairs of log σ( r_θ(x, chosen) - r_θ(x, rejected) )
    """
    if run.finished:
        return run.result
    if cfg.members > 1:
        return train_members(cfg, run)
    loaded = load(cfg.model, template=cfg.template)
    rows = rows_of(cfg, loaded)
    steps = steps_for(cfg, len(rows.train))
    model = replace(loaded, model=headed(loaded.model, cfg, run)).adapted(cfg.lora, run.seed(0, "lora"))
    scorer = Learner(model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return loss_terms(out, b, cfg)

    run.load({"policy": scorer})
    probe(run, demand(cfg, rows, model), scorer)
    if run.done == 0:
        run.note(report(rows))
        run.check(0, check_stop_ids([s for row in rows.train for s in said(row)], loaded.stop_ids))
    for step in run.steps(steps):
        picked = run.took(step, pick(rows.train, step, cfg.batch_size, cfg.run.seed))
        batch = make_batch(picked)
        metrics = scorer.step(Part(batch, loss, needs=("values",), together="group"))
        if step == 0:
            run.check(step, scorer.first)
        metrics |= {"epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= scorer_metrics(*gaps(scorer, rows.held))
        run.log(step, metrics)
        sample = ranking_sample if cfg.ranked else pair_sample
        run.keep_samples(step, [sample(r, loaded.tokenizer) for r in picked])
        run.save(step, {"policy": scorer})
    run.check(steps, check_movement(scorer.moved_since(loaded.folder)))
    describe(run, scorer, rows)
    return run.finish()


def headed(body: nn.Module, cfg: Config, run: Run) -> ScalarModel:
    """The model with a scalar head: its own, or a new one."""
    if isinstance(body, ScalarModel):
        return body
    model = ScalarModel(body)
    if cfg.head_std:
        draw = torch.Generator().manual_seed(run.seed(0, "head"))
        weight = torch.randn(model.score.weight.shape, generator=draw)
        with torch.no_grad():
            model.score.weight.copy_(cfg.head_std * weight / (weight.numel() + 1) ** 0.5)
    return model


def loss_terms(out: Outputs, b: TokenBatch, cfg: Config) -> tuple[list[Term], Metrics]:
    """The loss of every pair or ranking."""
    scores = answer_scores(out, b)
    if cfg.loss == "pairs":
        good = b.label > 0
        value, found = bradley_terry(
            scores[good], scores[~good], margin=b.margin[good] if b.margin is not None else None,
            centering=cfg.centering, label_smoothing=cfg.label_smoothing,
        )  # fmt: skip
        weight = b.weights["pair"][good]
    else:
        table = Table(b.group)
        grid, weight = table(scores), b.weights["pair"][table.first]
        match cfg.loss:
            case "all_pairs":
                value, found = all_pairs(grid, table.mask)
            case "plackett_luce":
                value, found = plackett_luce(grid, table.mask)
            case "top_choice":
                value, found = top_choice(grid, table.mask, torch.zeros_like(table.first))
        value = value + cfg.centering * (2 * grid.sum(1) / table.mask.sum(1)).square()
    metrics = {name: (x.sum(), len(x)) for name, x in found.items()}
    return [Term(cfg.loss, value, weight)], metrics | {"score_mean": (scores.detach().sum(), len(scores))}


def train_members(cfg: Config, run: Run) -> Result:
    """An ensemble: each member is a run in the folder, with a seed of its own."""
    run.load({})
    for m in run.steps(cfg.members):
        inner = replace(cfg, members=1, run=replace(cfg.run, seed=run.seed(m, "member")))
        folder = run.folder / f"member-{m + 1}"
        with Run.open(folder, inner, f"posttrain train reward_model --out {folder}") as one:
            result = train(inner, one)
        run.log(m, {name: x for name, x in result.metrics.items() if name.startswith("eval_")})
        run.save(m, {})
    judge = ModelReward(Judges.read(f"model:{run.folder}"))
    held = rows_of(cfg, judge.loaded[0]).held
    if not held:
        return run.finish(model=judge.loaded[0].folder)
    batch = make_batch(held)
    found = [answer_scores(outputs(x.model, batch, ("values",), cfg.optim.micro_tokens), batch) for x in judge.loaded]
    table, length = judge.on_one_scale(torch.stack(found)), batch.mask.sum(1)
    better, worse = contrasts(batch)
    gap = judge.combined(table)[better] - judge.combined(table)[worse]
    spread = table.std(0, correction=0)
    metrics = scorer_metrics(gap, length[better], length[worse]) | {"ensemble_std": (spread.sum(), len(spread))}
    run.note(drawn(reliability(gap)))
    return run.finish(metrics, model=judge.loaded[0].folder)


def pair_sample(row: PairRow, tokenizer: Tokenizer) -> dict:
    """A pair for samples.jsonl."""
    chosen, rejected = (as_sample(s, tokenizer) for s in row.pair)
    return {"chosen": chosen, "rejected": rejected, "margin": row.margin}


def score_segments(model: ScalarModel, segments: list[Segment], micro_tokens: int | None = 16384) -> Tensor:
    """[N] scores of answers under a trained reward model."""
    batch = collate(segments)
    return answer_scores(outputs(model, batch, ("values",), micro_tokens), batch)
