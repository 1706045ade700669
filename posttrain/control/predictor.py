"""A reward learned from comparisons of clips: an ensemble whose members saw different draws of the same answers.

Each member has a weight per comparison, drawn once from a Poisson distribution of mean 1: the bootstrap, for data that
keep coming. The comparisons it drew zero times, one in e, are its held-out ones, by which the decay of the weights is
steered. Rewards are fixed by comparisons only up to a constant and a unit, so each member is brought to mean 0 and
deviation 1 over all labelled steps before the members are averaged. Section 07 of the book tells the story.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain import rng
from posttrain.control.spaces import Spaces
from posttrain.control.steps import StepBatch
from posttrain.errors import ConfigError
from posttrain.objectives.ensembles import ensemble_mean
from posttrain.objectives.normalize import rescale
from posttrain.objectives.reward import careless_bradley_terry
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """The ensemble of reward predictors, and how it is fitted."""

    members: int = 3
    """Networks. 1: no ensemble, and no disagreement to ask about."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers of each."""
    error: float = 0.1
    """Share of answers that the loss takes to be random, so that one wrong answer cannot cost without bound."""
    batch: int = 32
    """Comparisons per update."""
    first_updates: int = 200
    """Updates on the first comparisons, before the policy learns anything."""
    updates: int = 25
    """Updates after each batch of the policy."""
    decay: float = 1e-4
    """Weight of Σ w² in the loss at the start; it is steered so that the loss on held-out comparisons stays between 1.1
    and 1.5 times that on the others. 0: none, and not steered."""
    optim: Optim = Optim(lr=1e-3, beta2=0.999, max_grad_norm=10.0)
    """Optimizer of all members."""

    def __post_init__(self):
        problems = [
            f"{name} = {getattr(self, name)} must be at least 1"
            for name in ("members", "batch", "first_updates", "updates")
            if getattr(self, name) < 1
        ]
        if not 0 <= self.error < 1:
            problems.append(f"error = {self.error}: the share of random answers lies in [0, 1)")
        if self.decay < 0:
            problems.append(f"decay = {self.decay} cannot be negative; 0 turns it off")
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True)
class Comparisons:
    """Pairs of clips with what a labeller said; a batch for the learner."""

    first: Tensor
    """[B, K, F] observations and actions of the first clip."""
    second: Tensor
    """[B, K, F]"""
    label: Tensor
    """[B] 1: the first is better. 0: the second. 1/2: a tie."""
    draws: Tensor
    """[B, M] how often each member drew the comparison."""

    def __len__(self) -> int:
        return len(self.label)

    def select(self, rows: Tensor) -> "Comparisons":
        """Some of them."""
        return Comparisons(self.first[rows], self.second[rows], self.label[rows], self.draws[rows])

    def joined(self, other: "Comparisons") -> "Comparisons":
        """These and others after them."""
        names = ("first", "second", "label", "draws")
        return Comparisons(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in names))

    def pieces(self, micro_tokens: int | None, together: str = "row") -> list[tuple[Tensor, bool]]:
        """One micro-batch, as `StepBatch.pieces`."""
        return [(torch.arange(len(self)), True)]

    def forward(self, model: "Ensemble", needs: Sequence[str]) -> dict[str, Tensor]:
        """[B, M] the first clip's summed reward less the second's."""
        return {"values": (model(self.first) - model(self.second)).sum(2).t()}

    def words(self, row: int) -> str:
        """For error messages."""
        return f"with the label {float(self.label[row])}"


class Ensemble(nn.Module):
    """M networks of one shape, side by side: leaky ReLU, one number per step."""

    def __init__(self, seen: int, cfg: Predictor, seed: int):
        """seen: numbers per step, of observation and action. seed: of the weights."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = (seen, *cfg.hidden, 1)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            self.weights.append(nn.Parameter(torch.randn(cfg.members, a, b, generator=generator) / math.sqrt(a)))
            self.biases.append(nn.Parameter(torch.zeros(cfg.members, 1, b)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] -> [M, ...] the members' rewards."""
        h = x.reshape(-1, x.shape[-1]).expand(len(self.weights[0]), -1, -1)
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(b, F.leaky_relu(h, 0.01) if i else h, w)
        return h.reshape(-1, *x.shape[:-1])


def features(obs: Tensor, action: Tensor, spaces: Spaces) -> Tensor:
    """[..., D + A]: what a step is to the predictor. A choice is one-hot; numbers are cut to what the environment sees.

    obs: [..., D]. action: [...] or [..., A].
    """
    done = F.one_hot(action, spaces.choices).to(obs.dtype) if spaces.choices else action.clamp(-1, 1)
    return torch.cat([obs, done], -1)


def poisson(n: int, members: int, start: int, seed: int) -> Tensor:
    """[n, members] draws of mean 1, for the comparisons from number `start` on: pure functions of seed and number."""
    place = torch.arange(start * members, (start + n) * members)
    u = rng.uniform(torch.full_like(place, seed), place)
    steps = torch.tensor([1 / math.factorial(k) for k in range(8)], dtype=u.dtype).cumsum(0) / math.e
    return (u[:, None] >= steps).sum(1).view(n, members).float()


def fit(learner: Learner, data: Comparisons, cfg: Predictor, updates: int, decay: float, seed: int):
    """Update all members on random minibatches. Returns what is logged, and the decay for the next time.

    data: all comparisons so far. decay: weight of Σ w² now. seed: of the minibatches.
    """
    model = learner.model
    total = {"predictor_loss": (0.0, 0.0), "accuracy": (0.0, 0.0)}

    def loss(out: Outputs, b: Comparisons) -> tuple[list[Term], Metrics]:
        value, found = each(out.values, b.label, cfg.error)
        weight = b.draws / b.draws.sum(0).clamp(min=1)  # each member averages what it drew
        terms = [Term("comparisons", value, weight)]
        if decay:
            size = sum(w.square().sum() for w in model.weights)
            terms.append(Term("decay", size[None], torch.full((1,), decay)))
        return terms, {"predictor_loss": ((weight * value.detach()).sum(), weight.sum()),
                       "accuracy": ((weight * found["accuracy"]).sum(), weight.sum())}  # fmt: skip

    for i in range(updates):
        rows = torch.tensor(rng.permutation(len(data), seed, i)[: cfg.batch])
        found = learner.step(Part(data.select(rows), loss, ("values",)))
        total = {name: tuple(float(a) + float(b) for a, b in zip(total[name], found[name], strict=True))
                 for name in total}  # fmt: skip
    return total | held_out(model, data, cfg), next_decay(model, data, cfg, decay)


def each(gap: Tensor, label: Tensor, error: float) -> tuple[Tensor, dict[str, Tensor]]:
    """[B, M] loss of every member on every comparison, and the formula's metrics in that shape. gap: [B, M]."""
    flat = gap.flatten()
    value, found = careless_bradley_terry(flat, torch.zeros_like(flat), label.repeat_interleave(gap.shape[1]),
                                          error=error)  # fmt: skip
    return value.view_as(gap), {name: x.view_as(gap) for name, x in found.items()}


@torch.no_grad()
def losses(model: Ensemble, data: Comparisons, cfg: Predictor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss on what members drew, on what they did not, and their accuracy on the latter; NaN where none is."""
    value, found = each(data.forward(model, ())["values"], data.label, cfg.error)
    out = data.draws == 0
    return (data.draws * value).sum() / data.draws.sum(), value[out].mean(), found["accuracy"][out].mean()


def held_out(model: Ensemble, data: Comparisons, cfg: Predictor) -> Metrics:
    """What is logged of comparisons that a member did not draw; left out where there are none."""
    _, value, accuracy = losses(model, data, cfg)
    return {"eval_predictor_loss": (value.nan_to_num(), value.isfinite()),
            "eval_predictor_accuracy": (accuracy.nan_to_num(), accuracy.isfinite())}  # fmt: skip


def next_decay(model: Ensemble, data: Comparisons, cfg: Predictor, decay: float) -> float:
    """The decay for the next fit: up where held-out comparisons cost over 1.5 times the others, down below 1.1."""
    known, new, _ = losses(model, data, cfg)
    if not decay or not new.isfinite():
        return decay
    ratio = float(new / known)
    return min(decay * 1.5, 0.1) if ratio > 1.5 else max(decay / 1.5, 1e-8) if ratio < 1.1 else decay


@torch.no_grad()
def reward(model: Ensemble, batch: StepBatch, data: Comparisons, spaces: Spaces) -> tuple[Tensor, Tensor]:
    """[N, T] the learned reward of every step, and how far the members differ there: mean and deviation over them.

    data: the comparisons so far, on whose steps every member gets mean 0 and deviation 1.
    """
    known = model(torch.cat([data.first, data.second]).flatten(0, 1))
    found = model(features(batch.obs, batch.action, spaces)).flatten(1)
    scaled = torch.stack([
        rescale(new, mean=float(old.mean()), std=max(float(old.std()), 1e-6))
        for new, old in zip(found, known, strict=True)
    ])  # fmt: skip
    return ensemble_mean(scaled).view(batch.mask.shape), scaled.std(0, correction=0).view(batch.mask.shape)


def empty(k: int, seen: int, members: int) -> Comparisons:
    """No comparisons yet, of clips of k steps."""
    return Comparisons(torch.zeros(0, k, seen), torch.zeros(0, k, seen), torch.zeros(0), torch.zeros(0, members))


class Answers:
    """The comparisons so far, and the decay they led to, as a part of a checkpoint."""

    def __init__(self, data: Comparisons, decay: float):
        self.data, self.decay = data, decay

    def state(self) -> dict[str, Any]:
        """Everything the next fit reads."""
        d = self.data
        return {"first": d.first, "second": d.second, "label": d.label, "draws": d.draws, "decay": self.decay}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.decay = state["decay"]
        self.data = replace(self.data, **{n: state[n] for n in ("first", "second", "label", "draws")})
