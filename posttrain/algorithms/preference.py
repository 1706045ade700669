"""Direct preference optimisation and its relatives: learn from stored pairs, without reward model or sampling.

The loss is an argument (`cfg.loss`, see the menu in `objectives.preference`); DPO is the first. Where it needs a
reference, that speaks of every row once, before training, and is not kept in memory; or live, and may then follow the
policy (`cfg.reference`).
Section 16 of the book derives the loss, section 17 compares the relatives.
"""

from dataclasses import dataclass, field

from torch import nn

from posttrain.algorithms.reference import Comparison, Reference
from posttrain.algorithms.reward_model import pair_sample
from posttrain.batch import TokenBatch, collate_pairs, weigh_rows
from posttrain.data.rows import Data, PairRow, Rows, pairs, pick, report, steps_for
from posttrain.errors import ConfigError, DataError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.average import Average, token_weights
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.supervised import cross_entropy
from posttrain.train.demand import Demand, longest_pairs, probe
from posttrain.train.invariants import check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig

WATCHED = ("accuracy", "margin", "nll", "logp_chosen", "logp_rejected")
"""Metrics that are also taken on held-out pairs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Preference learning from pairs."""

    model: str = "base"
    """Model to start from, which is also the reference: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:preferences", limit=600, eval_rows=100)
    """Pairs: columns prompt, chosen, rejected; the prompt may be implicit."""
    loss: PreferenceLoss = PreferenceLoss()
    """Which loss, and its strength."""
    reference: Reference = Reference()
    """What the policy is compared with."""
    batch_size: int = 32
    """Pairs per optimizer step."""
    epochs: float = 1.0
    """Passes over the data, unless `steps` is set."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps; overrides `epochs`."""
    eval_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between evaluations on the held-out pairs. 0: none."""
    optim: Optim = Optim(lr=2e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: a step needs at least one pair")
        if not self.loss.needs_reference and self.reference != Reference():
            raise ConfigError(
                f'reference.* is set, but the loss "{self.loss.name}" has no reference. Leave it out, or choose '
                "another loss (dpo)."
            )


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows = pairs(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    epochs = steps * cfg.batch_size / len(rows.train)
    return f"{report(rows)}: {steps} steps of {cfg.batch_size} pairs, {epochs:.2f} epochs."


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs; a reference that speaks before training is not among it."""
    policy = longest_pairs("policy", model, rows, cfg, cfg.loss.needs)
    live = (model,) * (cfg.reference.when == "live")
    words = f"{cfg.batch_size} pairs"
    return Demand(trained=(policy,), references=live, steps=steps_for(cfg, len(rows.train)), words=words)


def train(cfg: Config, run: Run) -> Result:
    """Train on pairs. With the default loss this is Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    L(θ) = - mean over pairs of log σ( β · [ log π/π_ref (chosen) - log π/π_ref (rejected) ] )
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = pairs(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    check_gaps(rows.train + rows.held, cfg.loss)
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)
    compare, parts = None, {"policy": policy}
    if cfg.loss.needs_reference:  # before `run.load`: the model is still the reference, adapters add exactly zero
        compare = Comparison(cfg.reference, policy, loaded, rows.train + rows.held, cfg.lora)
    if cfg.reference.every:
        parts["reference"] = compare.moving

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return loss_terms(out, b, cfg.loss)

    run.load(parts)
    probe(run, demand(cfg, rows, model), policy)
    if run.done == 0:
        run.note(report(rows))
        run.check(0, check_stop_ids([s for row in rows.train for s in row.pair], loaded.stop_ids))
    for step in run.steps(steps):
        picked = run.took(step, pick(rows.train, step, cfg.batch_size, cfg.run.seed))
        batch = make_batch(picked, compare, cfg.loss)
        metrics = policy.step(Part(batch, loss, cfg.loss.needs, together="group", coupled=cfg.loss.coupled))
        if step == 0:
            run.check(step, policy.first)
        metrics |= {"tokens": int(batch.mask.sum()), "epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= evaluate(policy, make_batch(rows.held, compare, cfg.loss), cfg.loss)
        run.log(step, metrics)
        run.keep_samples(step, [pair_sample(r, loaded.tokenizer) for r in picked])
        if cfg.reference.every and (step + 1) % cfg.reference.every == 0:
            compare.moving.follow(policy.model, cfg.reference.share)
        run.save(step, parts)
    run.check(steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def loss_terms(out: Outputs, b: TokenBatch, loss: PreferenceLoss) -> tuple[list[Term], Metrics]:
    """The loss of every pair, and beside it the cross-entropy of the chosen answers where the loss has such a term."""
    good = b.label > 0
    value, metrics = loss(out.logp, b.ref_logp, b.mask, b.label, sum_sq=out.sum_sq, score_gap=b.margin)
    terms = [Term("preference", value, b.weights["pair"][good])]
    if loss.nll_weight:
        nll, found = cross_entropy(out.logp, b.mask & good[:, None])
        terms.append(Term("nll", loss.nll_weight * nll, b.weights["nll"]))
        metrics |= found
    return terms, metrics


def make_batch(rows: list[PairRow], compare: Comparison | None, loss: PreferenceLoss) -> TokenBatch:
    """Pairs as rows with the weights of the step, and what the loss takes beside: a reference, gaps between scores."""
    gaps = [row.margin for row in rows] if loss.needs_score_gap else None
    batch = weighed(collate_pairs([r.pair for r in rows], gaps), loss)
    return batch if compare is None else compare(batch, rows)


def weighed(batch: TokenBatch, loss: PreferenceLoss) -> TokenBatch:
    """Rows of pairs with the averages of a step: over pairs, and over the chosen answers' tokens where they count."""
    batch = weigh_rows(batch, Average("pair"), "pair")
    if not loss.nll_weight:
        return batch
    chosen = token_weights(batch.mask & (batch.label > 0)[:, None], Average(loss.nll_average or "sequence"))
    return batch.with_(weights={**batch.weights, "nll": chosen})


def check_gaps(rows: list[PairRow], loss: PreferenceLoss) -> None:
    """Raise DataError if the loss takes score gaps and a pair has none."""
    without = [row.index for row in rows if row.margin is None or not row.margin > 0]
    if loss.needs_score_gap and without:
        raise DataError(
            f'the loss "{loss.name}" takes the logarithm of score differences, and {len(without)} of {len(rows)} pairs '
            f"have none or none above 0 (the first: pair {without[0] + 1}). Give the rows a column margin, or "
            "score_chosen and score_rejected; or choose another loss."
        )


def evaluate(policy: Learner, batch: TokenBatch, loss: PreferenceLoss) -> Metrics:
    """The loss and its metrics on pairs that training does not see."""
    (first, *more), metrics = loss_terms(policy.outputs(batch, loss.needs), batch, loss)
    found = {f"eval_{name}": x for name, x in metrics.items() if name in WATCHED}
    beside = sum((term.weight * term.value).sum() for term in more)
    return add(found, {"eval_loss": (first.value.sum() + len(first.value) * beside, len(first.value))})
