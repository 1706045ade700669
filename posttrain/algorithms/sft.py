"""Supervised fine-tuning: maximise the likelihood of demonstrations, on the assistant's tokens alone.

The first stage after pre-training, and the last one of best-of-N, STaR and distillation, whose novelty is in the data.
Section 05 of the book tells the story. Reads chat messages, prompt / completion, and plain text.
"""

from dataclasses import dataclass, field

from torch import nn

from posttrain.batch import TokenBatch, collate, weigh
from posttrain.data.rows import Data, Rows, demonstrations, pick, report, steps_for
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.average import Average
from posttrain.objectives.supervised import cross_entropy
from posttrain.records import Segment
from posttrain.train.demand import Demand, longest_rows, probe
from posttrain.train.invariants import check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Supervised fine-tuning."""

    model: str = "base"
    """Model to start from: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:demonstrations", limit=3000, eval_rows=100)
    """Demonstrations."""
    batch_size: int = 32
    """Rows per optimizer step."""
    epochs: float = 1.0
    """Passes over the data, unless `steps` is set."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps; overrides `epochs`."""
    average: Average = Average("token")
    """How token losses are averaged over a step."""
    eval_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between evaluations on the held-out rows. 0: none."""
    optim: Optim = Optim(lr=1e-3)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: a step needs at least one row")


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows = demonstrations(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    epochs = steps * cfg.batch_size / len(rows.train)
    return f"{report(rows)}: {steps} steps of {cfg.batch_size} rows, {epochs:.2f} epochs."


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs."""
    policy = longest_rows("policy", model, rows, cfg)
    return Demand(trained=(policy,), steps=steps_for(cfg, len(rows.train)), words=f"{cfg.batch_size} rows")


def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
    """Cross-entropy of the learned tokens."""
    value, metrics = cross_entropy(out.logp, b.mask)
    return [Term("nll", value, b.weights["token"])], metrics


def train(cfg: Config, run: Run) -> Result:
    """Fine-tune on demonstrations; Ouyang et al. 2022 (arXiv 2203.02155), section 3.5.

    L(θ) = - Σ mask_t · log π_θ(y_t | x, y_<t) / Σ mask
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = demonstrations(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)
    run.load({"policy": policy})
    probe(run, demand(cfg, rows, model), policy)
    if run.done == 0:
        run.note(report(rows))
        run.check(0, *([] if cfg.data.kind == "text" else [check_stop_ids(rows.train, loaded.stop_ids)]))
    for step in run.steps(steps):
        segments = run.took(step, pick(rows.train, step, cfg.batch_size, cfg.run.seed))
        batch = weigh(collate(segments, pad_id=loaded.tokenizer.pad_id), cfg.average)
        metrics = policy.step(Part(batch, loss))
        if step == 0:
            run.check(step, policy.first)
        metrics |= {"tokens": int(batch.mask.sum()), "epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= evaluate(policy, rows.held, cfg)
        run.log(step, metrics)
        run.keep_samples(step, [as_sample(s, loaded.tokenizer) for s in segments])
        run.save(step, {"policy": policy})
    run.check(steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def evaluate(policy: Learner, held: list[Segment], cfg: Config) -> Metrics:
    """Cross-entropy per token on the rows that training does not see."""
    batch = collate(held)
    out = policy.outputs(batch)
    return {"eval_nll": (float(-(out.logp * batch.mask).sum()), int(batch.mask.sum()))}


def as_sample(s: Segment, tokenizer) -> dict:
    """A training row for samples.jsonl: the text as the model sees it, and which tokens are learned."""
    return {"text": tokenizer.decode(s.tokens), "tokens": s.tokens, "mask": "".join("x" if m else "." for m in s.mask)}
