"""RRHF: rank several answers to a prompt by their likelihood as their scores rank them, and imitate the best one.

The answers may come from anybody: people, other models, the policy itself. There is no reference, no reward model at
training time, and no sampling. Section 18 of the book tells the story.
"""

from dataclasses import dataclass, field

from torch import nn

from posttrain.algorithms.ranked import Table, ranking_batch, ranking_sample
from posttrain.batch import TokenBatch
from posttrain.data.rows import Data, Rows, pick, rankings, report, steps_for
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.preference import rrhf
from posttrain.objectives.tokens import answers
from posttrain.train.demand import Demand, longest_rankings, probe
from posttrain.train.invariants import check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """RRHF."""

    model: str = "base"
    """Model to start from: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:rankings", limit=400, eval_rows=60)
    """Rankings: columns prompt, answers, scores (RRHF's own files have query, responses, scores)."""
    power: float = 1.0
    """λ: log-probabilities are divided by length to this power. 1, the mean per token, is the paper's; 0 the sum."""
    nll: float = 1.0
    """Weight of the cross-entropy of the best answer. 0: ranking alone, which may drift."""
    batch_size: int = 16
    """Prompts per optimizer step, each with all its answers."""
    epochs: float = 1.0
    """Passes over the data, unless `steps` is set."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps; overrides `epochs`."""
    eval_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between evaluations on the held-out rankings. 0: none."""
    optim: Optim = Optim(lr=2e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: a step needs at least one prompt")
        if self.power < 0 or self.nll < 0:
            raise ConfigError(f"power = {self.power}, nll = {self.nll}: both are 0 or more, and 1 in the paper")


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = rankings(cfg.data, load(cfg.model, template=cfg.template))
    steps = steps_for(cfg, len(rows.train))
    each = sum(len(row.answers) for row in rows.train) / len(rows.train)
    return (
        f"{report(rows)}: {steps} steps of {cfg.batch_size} prompts with {each:.1f} answers each, "
        f"{steps * cfg.batch_size / len(rows.train):.2f} epochs."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs."""
    policy = longest_rankings("policy", model, rows, cfg, ("logp",))
    return Demand(trained=(policy,), steps=steps_for(cfg, len(rows.train)), words=f"{cfg.batch_size} rankings")


def train(cfg: Config, run: Run) -> Result:
    """RRHF: Yuan et al. 2023 (arXiv 2304.05302), section 3.

    L(θ) = mean over prompts of  Σ_{r_i < r_j} max(0, p_i - p_j) - w log π(y_best) / |y_best|,   p = log π(y) / |y|^λ
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = rankings(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return loss_terms(out, b, cfg)

    run.load({"policy": policy})
    probe(run, demand(cfg, rows, model), policy)
    if run.done == 0:
        run.note(report(rows))
        run.check(0, check_stop_ids([s for row in rows.train for s in row.answers], loaded.stop_ids))
    for step in run.steps(steps):
        picked = run.took(step, pick(rows.train, step, cfg.batch_size, cfg.run.seed))
        batch = ranking_batch(picked)
        metrics = policy.step(Part(batch, loss, together="group"))
        if step == 0:
            run.check(step, policy.first)
        metrics |= {"tokens": int(batch.mask.sum()), "epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= evaluate(policy, ranking_batch(rows.held), cfg)
        run.log(step, metrics)
        run.keep_samples(step, [ranking_sample(row, loaded.tokenizer) for row in picked])
        run.save(step, {"policy": policy})
    run.check(steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def loss_terms(out: Outputs, b: TokenBatch, cfg: Config) -> tuple[list[Term], Metrics]:
    """The loss of every prompt, and the likelihood of its best answer."""
    table = Table(b.group)
    total, length = answers(out.logp, b.mask)
    logp = table(total)
    value, found = rrhf(logp, table(length), table(b.margin), table.mask, power=cfg.power, nll=cfg.nll)
    n, best = len(value), logp[:, 0].detach()  # rows stand best first
    metrics = {
        "accuracy": (found["accuracy"].sum(), n),
        "logp_chosen": (best.sum(), n),
        "nll": (-(best / length[table.first]).sum(), n),
        "length_chosen": (length[table.first].sum(), n),
    }
    return [Term("rrhf", value, b.weights["pair"][table.first])], metrics


def evaluate(policy: Learner, batch: TokenBatch, cfg: Config) -> Metrics:
    """The loss, the order, and the likelihood of the best answers on held-out rankings."""
    ((_, value, _),), metrics = loss_terms(policy.outputs(batch), batch, cfg)
    found = {f"eval_{name}": metrics[name] for name in ("accuracy", "logp_chosen", "nll")}
    return found | {"eval_loss": (value.sum(), len(value))}
