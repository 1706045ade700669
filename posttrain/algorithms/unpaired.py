"""Learning from single verdicts, thumbs up or thumbs down: KTO, BCO, and APO without pairs.

Each row is one answer that somebody found good or bad; nobody needs to have compared two. What an answer is measured
against is a statistic of the whole optimizer step, made before it is cut into micro-batches: KTO has z0 from answers
under prompts they do not belong to, BCO the running mean of rewards. Section 17 of the book tells the story.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.algorithms.reference import Comparison, Reference
from posttrain.algorithms.sft import as_sample
from posttrain.batch import TokenBatch, collate_pairs, weigh_rows
from posttrain.data.rows import Data, Rows, VerdictRow, pick, report, steps_for, verdicts
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.average import Average
from posttrain.objectives.normalize import update_moments
from posttrain.objectives.preference import apo_zero_unpaired, bco, kto, kto_reference_point
from posttrain.objectives.tokens import answers
from posttrain.train.demand import Demand, longest_pairs, probe
from posttrain.train.invariants import Check, check_movement, check_stop_ids
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig

USUAL = {"kto": 0.1, "bco": 0.01, "apo_zero": 0.1}
"""The strength of each loss where none is set."""


@dataclass(frozen=True, kw_only=True)
class VerdictLoss:
    """Which loss on single verdicts, and its numbers."""

    name: Literal["kto", "bco", "apo_zero"] = "kto"
    """kto: against how far the policy has drifted. bco: against the usual reward. apo_zero: against the reference."""
    beta: float | None = None
    """Strength of the leash to the reference. None: the usual value (kto and apo_zero 0.1, bco 0.01)."""
    desirable_weight: float = 1.0
    """What a good answer counts ("kto", "apo_zero")."""
    undesirable_weight: float = 1.0
    """What a bad answer counts. Keep weight times number on the good side 1 to 4/3 of that on the bad side."""

    def __post_init__(self):
        if self.beta is not None and self.beta <= 0:
            raise ConfigError(f"loss.beta = {self.beta}: must be positive ({USUAL[self.name]} is usual here)")
        if self.desirable_weight < 0 or self.undesirable_weight < 0:
            raise ConfigError("loss.desirable_weight, undesirable_weight: a negative weight would reward what is bad")
        if self.name == "bco" and (self.desirable_weight, self.undesirable_weight) != (1, 1):
            raise ConfigError('loss.desirable_weight, undesirable_weight change nothing with "bco"; kto reads them')

    @property
    def strength(self) -> float:
        """The beta in effect."""
        return USUAL[self.name] if self.beta is None else self.beta

    def __call__(self, logp: Tensor, ref_logp: Tensor, good: Tensor, point: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each answer [N], and its metrics. point: z0 of "kto", the usual reward of "bco"."""
        weights = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        match self.name:
            case "kto":
                return kto(logp, ref_logp, good, reference_point=point, beta=self.strength, **weights)
            case "bco":
                return bco(logp, ref_logp, good, shift=point, beta=self.strength)
            case "apo_zero":
                return apo_zero_unpaired(logp, ref_logp, good, beta=self.strength, **weights)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Preference learning from single verdicts."""

    model: str = "base"
    """Model to start from, which is also the reference: "base", a run, a Hugging Face folder, or a name on the hub."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:verdicts", limit=600, eval_rows=100)
    """Verdicts: columns prompt, completion, label (true or false)."""
    loss: VerdictLoss = VerdictLoss()
    """Which loss, and its strength."""
    reference: Reference = Reference()
    """What the policy is compared with."""
    batch_size: int = 32
    """Answers per optimizer step; "kto" wants 16 or more, since its statistic is made of them."""
    epochs: float = 1.0
    """Passes over the data, unless `steps` is set."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps; overrides `epochs`."""
    eval_every: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between evaluations on the held-out rows. 0: none."""
    optim: Optim = Optim(lr=2e-4)
    """Optimizer."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig()
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size = {self.batch_size}: a step's statistic needs two answers, better 16 or more"
            )


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = verdicts(cfg.data, load(cfg.model, template=cfg.template))
    steps = steps_for(cfg, len(rows.train))
    good = sum(row.good for row in rows.train)
    return (
        f"{report(rows)}, {good} good and {len(rows.train) - good} bad: {steps} steps of {cfg.batch_size} answers, "
        f"{steps * cfg.batch_size / len(rows.train):.2f} epochs."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the largest step needs: each answer, and without gradients the same prompt under another one."""
    policy = longest_pairs("policy", model, rows, cfg, ("logp",))
    live = (model,) * (cfg.reference.when == "live")
    steps = steps_for(cfg, len(rows.train))
    return Demand(trained=(policy,), references=live, steps=steps, words=f"{cfg.batch_size} answers")


def train(cfg: Config, run: Run) -> Result:
    """Train on verdicts. With the default loss this is Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.

    L(θ) = mean of  λ_D [1 - σ(β (u - z0))] over good answers  and  λ_U [1 - σ(β (z0 - u))] over bad ones,
    u = log π/π_ref (y | x),   z0 = max(0, mean of log π/π_ref (y' | x))  with y' the answer to another prompt
    """
    if run.finished:
        return run.result
    loaded = load(cfg.model, template=cfg.template)
    rows = verdicts(cfg.data, loaded)
    steps = steps_for(cfg, len(rows.train))
    model = loaded.adapted(cfg.lora, run.seed(0, "lora"))
    policy = Learner(model, cfg.optim, steps, tokenizer=loaded.chat_tokenizer)
    compare, parts = Comparison(cfg.reference, policy, loaded, rows.train + rows.held, cfg.lora), {"policy": policy}
    if cfg.reference.every:
        parts["reference"] = compare.moving
    state = run.load(parts, {"count": 0.0, "mean": 0.0, "sum_sq": 0.0})
    probe(run, demand(cfg, rows, model), policy)
    if run.done == 0:
        run.note(report(rows))
        run.check(
            0, check_stop_ids([row.pair[0] for row in rows.train], loaded.stop_ids), balance(rows.train, cfg.loss)
        )

    def loss(out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        return loss_terms(out, b, cfg.loss, point)

    for step in run.steps(steps):
        picked = run.took(step, pick(rows.train, step, cfg.batch_size, cfg.run.seed))
        batch, others = make_batch(picked, compare)
        point, state = reference_point(policy, batch, others, cfg.loss, state)
        metrics = policy.step(Part(weigh_rows(batch, Average("sequence"), "row"), loss))
        if step == 0:
            run.check(step, policy.first)
        metrics |= {"reference_point": point, "epoch": (step + 1) * cfg.batch_size / len(rows.train)}
        if rows.held and run.due(step, cfg.eval_every):
            metrics |= evaluate(policy, make_batch(rows.held, compare)[0], cfg.loss, point)
        run.log(step, metrics)
        run.keep_samples(step, [as_sample(r.pair[0], loaded.tokenizer) | {"good": r.good} for r in picked])
        if cfg.reference.every and (step + 1) % cfg.reference.every == 0:
            compare.moving.follow(policy.model, cfg.reference.share)
        run.save(step, parts, state)
    run.check(steps, check_movement(policy.moved_since(loaded.folder)))
    return run.finish()


def loss_terms(out: Outputs, b: TokenBatch, loss: VerdictLoss, point: float) -> tuple[list[Term], Metrics]:
    """The loss of every answer, and what is watched: rewards of good and of bad answers, and who is told apart."""
    good = b.label > 0
    total, length = answers(out.logp, b.mask)
    value, found = loss(total, answers(b.ref_logp, b.mask)[0], good, point)
    reward, logp = found["reward"], total.detach()
    line = point * (loss.strength if loss.name == "kto" else 1.0)
    metrics = {
        "accuracy": (((reward > line) == good).sum(), len(good)),
        "good_share": (good.sum(), len(good)),
        **{f"reward_{name}": (reward[side].sum(), side.sum()) for name, side in sides(good)},
        **{f"logp_{name}": (logp[side].sum(), side.sum()) for name, side in sides(good)},
        **{f"length_{name}": (length[side].sum(), side.sum()) for name, side in sides(good)},
    }
    return [Term(loss.name, value, b.weights["row"])], metrics


def sides(good: Tensor) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """Good and bad rows under the names that metrics have."""
    return ("chosen", good), ("rejected", ~good)


def make_batch(rows: list[VerdictRow], compare: Comparison) -> tuple[TokenBatch, TokenBatch]:
    """The judged answers with their verdicts, and the same prompts under answers of others; both with a reference."""
    both = compare(collate_pairs([row.pair for row in rows]), rows)
    own, other = (both.select(torch.arange(side, len(both), 2)) for side in (0, 1))
    return own.with_(label=torch.tensor([1.0 if row.good else -1.0 for row in rows])), other


def reference_point(
    policy: Learner, batch: TokenBatch, others: TokenBatch, loss: VerdictLoss, state: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """What a step's answers are measured against, from all of them, and the state of the running mean after it."""
    if loss.name == "apo_zero":
        return 0.0, state
    rows = others if loss.name == "kto" else batch
    logp, ref = (answers(x, rows.mask)[0] for x in (policy.outputs(rows).logp, rows.ref_logp))
    if loss.name == "kto":
        return float(kto_reference_point(logp, ref)), state
    state = update_moments(state, loss.strength * (logp - ref), torch.ones_like(logp, dtype=torch.bool))
    return state["mean"], state


def balance(rows: list[VerdictRow], loss: VerdictLoss) -> Check:
    """Both verdicts occur, and neither side outweighs the other by far."""
    good = sum(row.good for row in rows)
    bad = len(rows) - good
    ratio = loss.desirable_weight * good / max(loss.undesirable_weight * bad, 1e-9)
    advice = "Without bad answers it is a weighted fine-tuning, without good ones nothing is taught: get both."
    if good and bad:
        advice = f"Set loss.undesirable_weight = {loss.desirable_weight * good / bad:.3g}, or weigh the good ones."
    return Check(
        "verdicts_are_balanced",
        bool(good and bad) and (loss.name == "bco" or 1 / 1.34 <= ratio <= 1.34),
        f"{good} good and {bad} bad answers, weight times number {ratio:.2f} to 1",
        advice,
        fatal=not (good and bad),
    )


def evaluate(policy: Learner, batch: TokenBatch, loss: VerdictLoss, point: float) -> Metrics:
    """How held-out answers of both kinds are told apart by the rewards."""
    batch = weigh_rows(batch, Average("sequence"), "row")
    (term,), metrics = loss_terms(policy.outputs(batch), batch, loss, point)
    found = {f"eval_{name}": x for name, x in metrics.items() if name.startswith(("accuracy", "reward", "logp"))}
    return found | {"eval_loss": (term.value.sum(), len(term.value))}
