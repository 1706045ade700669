"""The menu of losses that can be trained from stored pairs: one dict literal, and a record that picks from it.

An entry says which formula, and what the formula needs: a reference or none, lengths, lighter tails, weights of pairs,
score gaps, the whole step at once. A configuration names a loss and sets the numbers it reads; setting one that it does
not read is an error, so that a run never carries a knob that turns nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError, DataError, ShapeError, nearest
from posttrain.objectives.preference import anchored, games, lengths, pairs, reference_free, transport
from posttrain.objectives.preference.divergences import f_dpo
from posttrain.objectives.preference.weights import wpo_weights
from posttrain.objectives.tokens import answers, check_shapes

Sums = dict[str, tuple[Tensor, Tensor]]

MUST_BE_SET = None
"""The usual value of a setting that has none."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """One entry of the menu."""

    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    """(chosen, rejected, [ref_chosen, ref_rejected,] **settings) -> (loss per pair, metrics per pair)."""
    beta: float
    """The usual strength, used where the configuration sets none."""
    reads: Mapping[str, float | None] = field(default_factory=dict)
    """Settings it reads besides beta, with their usual values."""
    reference: bool = True
    """Whether it takes ref_chosen and ref_rejected."""
    lengths: bool = False
    """Whether it takes chosen_length and rejected_length."""
    light_tail: bool = False
    """Whether tokens beyond the length of the shorter answer count less, by the setting alpha."""
    weighted: bool = False
    """Whether a pair weighs by how close it is to what the policy would write; takes Σ π² of every token."""
    score_gap: bool = False
    """Whether it takes the scores' differences of the pairs, scaled by the setting alpha."""
    coupled: bool = False
    """Whether the loss of a pair depends on the others, so that a step cannot be cut before it."""
    nll: float = 0.0
    """The usual weight of the cross-entropy of the chosen answer, a second term with an average of its own."""


# fmt: off
MENU: dict[str, Formula] = {
    # the gap between two log-ratios
    "dpo": Formula(loss=pairs.dpo, beta=0.1),
    "cdpo": Formula(loss=pairs.cdpo, beta=0.1, reads={"label_smoothing": MUST_BE_SET}),
    "robust": Formula(loss=pairs.robust, beta=0.1, reads={"label_smoothing": MUST_BE_SET}),
    "ipo": Formula(loss=pairs.ipo, beta=0.1),
    "hinge": Formula(loss=pairs.hinge, beta=0.1),
    "exo": Formula(loss=pairs.exo, beta=0.1, reads={"label_smoothing": 0.001}),
    "discopop": Formula(loss=pairs.discopop, beta=0.05, reads={"tau": 0.05}),
    "odpo": Formula(loss=pairs.odpo, beta=0.1, reads={"alpha": 1.0}, score_gap=True),
    "wpo": Formula(loss=pairs.dpo, beta=0.1, weighted=True),
    "f_dpo_forward_kl": Formula(loss=partial(f_dpo, divergence="forward_kl"), beta=0.1),
    "f_dpo_js": Formula(loss=partial(f_dpo, divergence="js"), beta=0.1),
    "f_dpo_alpha": Formula(loss=partial(f_dpo, divergence="alpha"), beta=0.1, reads={"alpha": 0.5}),
    "aot": Formula(loss=transport.aot, beta=0.1, reads={"label_smoothing": 0.0}, coupled=True),
    "aot_unpaired": Formula(loss=transport.aot_unpaired, beta=0.1, reads={"label_smoothing": 0.0}, coupled=True),
    # lengths
    "dpo_norm": Formula(loss=lengths.dpo_norm, beta=5.0, lengths=True),
    "ipo_norm": Formula(loss=lengths.ipo_norm, beta=2.0, lengths=True),
    "rdpo": Formula(loss=lengths.rdpo, beta=0.1, reads={"alpha": 0.01}, lengths=True),
    "ld_dpo": Formula(loss=pairs.dpo, beta=0.1, reads={"alpha": 0.5}, light_tail=True),
    # each answer held by itself
    "rpo": Formula(loss=pairs.dpo, beta=0.1, nll=1.0),
    "dpop": Formula(loss=anchored.dpop, beta=0.1, reads={"penalty": 5.0}),
    "apo_zero": Formula(loss=anchored.apo_zero, beta=0.1),
    "apo_down": Formula(loss=anchored.apo_down, beta=0.1),
    "nca": Formula(loss=anchored.nca, beta=0.01),
    "bco_pair": Formula(loss=anchored.bco_pair, beta=0.01),
    "mpo": Formula(loss=anchored.mpo, beta=0.1, nll=1.0),
    "cal_dpo": Formula(loss=anchored.cal_dpo, beta=0.01),
    "sppo_hard": Formula(loss=games.sppo_hard, beta=0.001),
    # no reference
    "orpo": Formula(loss=reference_free.orpo, beta=0.1, reference=False, lengths=True, nll=1.0),
    "simpo": Formula(loss=reference_free.simpo, beta=2.0, reads={"gamma": 1.0, "label_smoothing": 0.0},
                     reference=False, lengths=True),
    "alphapo": Formula(loss=reference_free.alphapo, beta=2.5,
                       reads={"gamma": 0.1, "alpha": 0.25, "label_smoothing": 0.0}, reference=False, lengths=True),
    "cpo": Formula(loss=reference_free.cpo, beta=0.1, reads={"label_smoothing": 0.0}, reference=False, nll=1.0),
    "cpo_ipo": Formula(loss=reference_free.cpo_ipo, beta=0.1, reference=False, lengths=True, nll=1.0),
    "slic": Formula(loss=reference_free.slic, beta=0.1, reference=False, nll=1.0),
}
# fmt: on
"""Name -> formula; each is documented at its function. "rpo" is Pang et al. 2024 (arXiv 2404.19733), eq. 1."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """Which preference loss to train with, and its numbers."""

    name: str = "dpo"
    """A name on the menu: "dpo", "ipo", "orpo", "simpo" and some thirty more; "?" is answered with the list."""
    beta: float | None = None
    """Strength of the leash to the reference, or scale of the reward where there is none. None: the usual value."""
    label_smoothing: float | None = None
    """Share of labels taken to be flipped. "cdpo" and "robust" need it."""
    alpha: float | None = None
    """What the paper calls α: price per token ("rdpo"), weight of the tail ("ld_dpo"), scale of the offset ("odpo"),
    order of the divergence ("f_dpo_alpha"), shape of the reward ("alphapo")."""
    gamma: float | None = None
    """Lead asked of the chosen answer, in units of reward ("simpo", "alphapo")."""
    penalty: float | None = None
    """Weight λ of a chosen answer that becomes unlikely ("dpop")."""
    tau: float | None = None
    """Width of the change-over ("discopop")."""
    nll: float | None = None
    """Weight of the cross-entropy of the chosen answer beside any loss. None: the usual value of the loss, mostly 0."""
    nll_average: Literal["sequence", "token"] | None = None
    """How that cross-entropy is averaged: every answer the same (None, and Iterative RPO), or every token (TRL)."""

    def __post_init__(self):
        if self.name not in MENU:
            raise ConfigError(f'loss.name = "{self.name}" is not on the menu of preference losses. '
                              + nearest(self.name, MENU))  # fmt: skip
        if self.beta is not None and self.beta <= 0:
            raise ConfigError(f"loss.beta = {self.beta}: must be positive ({self._formula.beta} is usual here).")
        for setting in ("label_smoothing", "alpha", "gamma", "penalty", "tau"):
            value, read = getattr(self, setting), setting in self._formula.reads
            if value is not None and not read:
                users = ", ".join(name for name, formula in MENU.items() if setting in formula.reads)
                raise ConfigError(f'loss.{setting} = {value} changes nothing with "{self.name}"; {users} read it.')
            if value is None and read and self._formula.reads[setting] is MUST_BE_SET:
                raise ConfigError(f'loss.name = "{self.name}" needs loss.{setting}; 0.1 is a start.')
        if self.label_smoothing == 0:
            raise ConfigError(
                "loss.label_smoothing = 0: no label is flipped then. Leave it out, or choose a loss without."
            )
        if self.nll is not None and self.nll < 0:
            raise ConfigError(f"loss.nll = {self.nll}: a negative weight would unlearn the chosen answers; 0 is none.")
        if self.nll_average is not None and not self.nll_weight:
            raise ConfigError(f"loss.nll_average = {self.nll_average} changes nothing while loss.nll is 0.")
        self._try_out()

    def _try_out(self) -> None:
        """Take the loss of no pairs, so that a formula refuses its numbers now and not at the first step."""
        nothing = torch.tensor([])
        rows = nothing[:, None]
        try:
            self(rows, rows, rows.bool(), nothing, sum_sq=rows, score_gap=nothing)
        except ConfigError as error:
            raise ConfigError(f"loss.{error}") from None

    @property
    def _formula(self) -> Formula:
        return MENU[self.name]

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a frozen reference are needed."""
        return self._formula.reference

    @property
    def needs(self) -> tuple[Literal["logp", "sum_sq"], ...]:
        """What the model must say about a batch."""
        return ("logp", "sum_sq") if self._formula.weighted else ("logp",)

    @property
    def needs_score_gap(self) -> bool:
        """Whether every pair must say by how much its chosen answer is better."""
        return self._formula.score_gap

    @property
    def coupled(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of the step."""
        return self._formula.coupled

    @property
    def strength(self) -> float:
        """The beta in effect."""
        return self._formula.beta if self.beta is None else self.beta

    @property
    def nll_weight(self) -> float:
        """The weight in effect of the cross-entropy of the chosen answers, which is a term of its own."""
        return self._formula.nll if self.nll is None else self.nll

    def _settings(self) -> dict[str, float]:
        chosen = {name: getattr(self, name) for name in self._formula.reads}
        return {name: usual if chosen[name] is None else chosen[name] for name, usual in self._formula.reads.items()}

    def __call__(
        self,
        logp: Tensor,
        ref_logp: Tensor | None,
        mask: Tensor,
        label: Tensor,
        *,
        sum_sq: Tensor | None = None,
        score_gap: Tensor | None = None,
    ) -> tuple[Tensor, Sums]:
        """Loss of each pair [P], unaveraged, from per-token log-probabilities, and metrics as (sum, count).

        logp, ref_logp, mask: [2P, T]; ref_logp is read if `needs_reference`. label: [2P], positive on chosen rows,
        negative on rejected ones, 0 on rows that are left out; the k-th chosen row and the k-th rejected row are one
        pair. sum_sq: [2P, T], Σ π² of
        every token, if `needs` says so. score_gap: [2P], on both rows of a pair, if `needs_score_gap`.
        """
        check_shapes("NT NT N", logp, mask, label)
        good, bad = label > 0, label < 0
        if int(good.sum()) != int(bad.sum()):
            raise ShapeError(f"{int(good.sum())} chosen and {int(bad.sum())} rejected rows: every pair needs both. "
                             'Split batches with together="group".')  # fmt: skip
        formula, settings = self._formula, {"beta": self.strength, **self._settings()}
        total, length = answers(logp, mask)
        sums = [total]
        if formula.reference:
            sums.append(answers(self._given(ref_logp, "ref_logp"), mask)[0])
        if formula.light_tail:
            alpha, other = settings.pop("alpha"), _swapped(length, good, bad)
            sums = [lengths.desensitised(x, mask, other, alpha=alpha) for x in (logp, ref_logp)]
        if formula.lengths:
            settings |= {"chosen_length": length[good], "rejected_length": length[bad]}
        if formula.score_gap:
            gap = self._given(score_gap, "score_gap")[good]
            settings["offset"] = pairs.odpo_offset(gap, alpha=settings.pop("alpha"))
        loss, per_pair = formula.loss(*[x[side] for x in sums for side in (good, bad)], **settings)
        if formula.weighted:
            weight = wpo_weights(logp, self._given(sum_sq, "sum_sq").log(), mask)
            loss = loss * weight[good] * weight[bad]
        per_pair |= {
            "logp_chosen": total[good].detach(),
            "logp_rejected": total[bad].detach(),
            "length_chosen": length[good],
            "length_rejected": length[bad],
        }
        count = loss.new_tensor(len(loss))
        return loss, {name: (value.sum(), count) for name, value in per_pair.items()}

    def _given(self, value: Tensor | None, name: str) -> Tensor:
        if value is None:
            raise DataError(
                f'the loss "{self.name}" takes {name}, and none was given. Give it, or choose another loss.'
            )
        return value


def _swapped(x: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    """Of each row [2P] the value of the other row of its pair."""
    other = torch.empty_like(x)
    other[good], other[bad] = x[bad], x[good]
    return other
