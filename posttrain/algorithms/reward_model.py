"""Reward models: a scalar head on the last token of an answer, learned from comparisons (Bradley-Terry).

The score of an answer is a log-odds: only differences between answers to one prompt mean anything. The result is a
folder that transformers opens as a sequence classifier. Section 09 of the book tells the story.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from posttrain.algorithms.sft import as_sample
from posttrain.batch import TokenBatch, collate, collate_pairs, weigh_rows
from posttrain.data.rows import Data, PairRow, Rows, pairs, pick, report, steps_for
from posttrain.errors import ConfigError
from posttrain.models.heads import ScalarModel
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.average import Average
from posttrain.objectives.returns import last_token
from posttrain.objectives.reward import bradley_terry
from posttrain.records import Segment
from posttrain.train.demand import Demand, longest_pairs, probe
from posttrain.train.invariants import check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term, outputs
from posttrain.train.metrics import Metrics
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """A reward model from pairs."""

    model: str = "base"
    """Model whose body is taken: usually the SFT model. A reward model's folder continues its training."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:preferences", limit=600, eval_rows=100)
    """Pairs: columns prompt, chosen, rejected, and where they exist margins."""
    centering: float = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps scores around 0."""
    batch_size: int = 32
    """Pairs per optimizer step."""
    epochs: float = 1.0
    """Passes over the data, unless `steps` is set. More than one overfits soon."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps; overrides `epochs`."""
    eval_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between evaluations on the held-out pairs. 0: none."""
    optim: Optim = Optim(lr=3e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights, beside the scalar head."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: a step needs at least one pair")
        if self.centering < 0:
            raise ConfigError(f"centering = {self.centering}: must be 0 (none) or positive; 0.01 is usual")


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows = pairs(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    epochs = steps * cfg.batch_size / len(rows.train)
    return f"{report(rows)}: {steps} steps of {cfg.batch_size} pairs, {epochs:.2f} epochs."


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs."""
    scorer = longest_pairs("reward model", model, rows, cfg, ("values",))
    return Demand(trained=(scorer,), steps=steps_for(cfg, len(rows.train)), words=f"{cfg.batch_size} pairs")


def train(cfg: Config, run: Run) -> Result:
    """Learn to score answers; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1 with two answers per prompt.

    L(θ) = - mean over pairs of log σ( r_θ(x, chosen) - r_θ(x, rejected) )
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = pairs(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    body = loaded.model
    scalar = replace(loaded, model=body if isinstance(body, ScalarModel) else ScalarModel(body))
    model = scalar.adapted(cfg.lora, run.seed(0, "lora"))
    scorer = Learner(model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        scores = answer_scores(out, b)
        good = b.label > 0
        margin = b.margin[good] if b.margin is not None else None
        value, per_pair = bradley_terry(scores[good], scores[~good], margin=margin, centering=cfg.centering)
        metrics = {name: (x.sum(), len(x)) for name, x in per_pair.items()}
        return [Term("bradley_terry", value, b.weights["pair"][good])], metrics

    run.load({"policy": scorer})
    probe(run, demand(cfg, rows, model), scorer)
    if run.done == 0:
        run.note(report(rows))
        run.check(0, check_stop_ids([s for row in rows.train for s in row.pair], loaded.stop_ids))
    for step in run.steps(steps):
        picked = pick(rows.train, step, cfg.batch_size, cfg.run.seed)
        batch = make_batch(picked)
        metrics = scorer.step(Part(batch, loss, needs=("values",), together="group"))
        if step == 0:
            run.check(step, scorer.first)
        metrics |= {"epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= evaluate(scorer, rows.held)
        run.log(step, metrics)
        run.keep_samples(step, [pair_sample(r, loaded.tokenizer) for r in picked])
        run.save(step, {"policy": scorer})
    run.check(steps, check_movement(scorer.moved_since(loaded.folder)))
    return run.finish()


def make_batch(rows: list[PairRow]) -> TokenBatch:
    """Pairs as rows, with the weights of the step."""
    return weigh_rows(collate_pairs([r.pair for r in rows], [r.margin for r in rows]), Average("pair"), "pair")


def pair_sample(row: PairRow, tokenizer: Tokenizer) -> dict:
    """A pair for samples.jsonl."""
    chosen, rejected = (as_sample(s, tokenizer) for s in row.pair)
    return {"chosen": chosen, "rejected": rejected, "margin": row.margin}


def answer_scores(out: Outputs, b: TokenBatch) -> Tensor:
    """[N] value at the last token of each answer: its stop token, after everything was said."""
    return (out.values * last_token(b.mask)).sum(1)


def evaluate(scorer: Learner, held: list[PairRow]) -> Metrics:
    """Share of held-out pairs that the model ranks as the annotator did, and the mean gap."""
    batch = make_batch(held)
    scores = answer_scores(scorer.outputs(batch, ("values",)), batch)
    gap = scores[batch.label > 0] - scores[batch.label < 0]
    return {"eval_accuracy": ((gap > 0).sum(), len(gap)), "eval_margin": (gap.sum(), len(gap))}


def score_segments(model: ScalarModel, segments: list[Segment], micro_tokens: int | None = 16384) -> Tensor:
    """[N] scores of answers under a trained reward model."""
    batch = collate(segments)
    return answer_scores(outputs(model, batch, ("values",), micro_tokens), batch)
