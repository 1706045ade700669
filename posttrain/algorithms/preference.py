"""Direct preference optimisation and its relatives: learn from stored pairs, without reward model or sampling.

The loss is an argument (`cfg.loss`, see the menu in `objectives.preference`); DPO is the first. The reference's
log-probabilities are computed once per row, before training, so it is not kept in memory. Section 16 of the book
derives the loss, section 17 compares the relatives.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.algorithms.reward_model import pair_sample
from posttrain.batch import TokenBatch, collate_pairs, weigh_rows
from posttrain.data.rows import Data, PairRow, pairs, pick, report, steps_for
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.objectives.preference import PreferenceLoss
from posttrain.train.invariants import check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig


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
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: a step needs at least one pair")


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    loaded = load(cfg.model, template=cfg.template)
    rows = pairs(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    epochs = steps * cfg.batch_size / len(rows.train)
    return f"{report(rows)}: {steps} steps of {cfg.batch_size} pairs, {epochs:.2f} epochs."


def train(cfg: Config, run: Run) -> Result:
    """Train on pairs. With the default loss this is Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    L(θ) = - mean over pairs of log σ( β · [ log π/π_ref (chosen) - log π/π_ref (rejected) ] )
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = pairs(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    policy = Learner(loaded.model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)
    references = reference_logps(policy, rows.train + rows.held)  # before `run.load`: the model is still the reference

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        value, metrics = cfg.loss(out.logp, b.ref_logp, b.mask, b.label)
        return [Term("preference", value, b.weights["pair"][b.label > 0])], metrics

    run.load({"policy": policy})
    if run.done == 0:
        run.note(report(rows))
        run.check(0, check_stop_ids([s for row in rows.train for s in row.pair], loaded.stop_ids))
    for step in run.steps(steps):
        picked = pick(rows.train, step, cfg.batch_size, cfg.run.seed)
        batch = make_batch(picked, references)
        metrics = policy.step(Part(batch, loss, together="group"))
        if step == 0:
            run.check(step, policy.first)
        metrics |= {"tokens": int(batch.mask.sum()), "epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= evaluate(policy, make_batch(rows.held, references), cfg.loss)
        run.log(step, metrics)
        run.keep_samples(step, [pair_sample(r, loaded.tokenizer) for r in picked])
        run.save(step, {"policy": policy})
    run.check(steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def make_batch(rows: list[PairRow], references: dict[int, tuple[Tensor, Tensor]]) -> TokenBatch:
    """Pairs as rows with the weights of the step and the reference's log-probabilities."""
    batch = weigh_rows(collate_pairs([r.pair for r in rows]), Average("pair"), "pair")
    ref = torch.zeros(batch.tokens.shape)
    for i, row in enumerate(rows):
        for side, logp in enumerate(references[row.index]):
            ref[2 * i + side, : len(logp)] = logp
    return batch.with_(ref_logp=ref)


def reference_logps(reference: Learner, rows: list[PairRow]) -> dict[int, tuple[Tensor, Tensor]]:
    """What the reference says of both answers of every pair, token by token.

    The rows are taken in blocks of fixed content, so that a resumed run computes the same bits.
    """
    found = {}
    for start in range(0, len(rows), 64):
        block = rows[start : start + 64]
        logp = reference.outputs(collate_pairs([r.pair for r in block])).logp
        for i, row in enumerate(block):
            found[row.index] = tuple(logp[2 * i + side, : len(row.pair[side].tokens)].clone() for side in (0, 1))
    return found


def evaluate(policy: Learner, batch: TokenBatch, loss: PreferenceLoss) -> Metrics:
    """The loss and its metrics on pairs that training does not see."""
    value, metrics = loss(policy.outputs(batch).logp, batch.ref_logp, batch.mask, batch.label)
    found = {f"eval_{name}": x for name, x in metrics.items() if name in ("accuracy", "margin")}
    return add(found, {"eval_loss": (value.sum(), len(value))})
