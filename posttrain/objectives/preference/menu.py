"""The menu of preference losses: one dict literal, and a record that picks from it.

A configuration names a loss and sets the numbers it reads; setting one that it does not read is an error, so that a run
never carries a knob that turns nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from posttrain.errors import ConfigError, ShapeError, nearest
from posttrain.objectives.preference import pairs
from posttrain.objectives.tokens import answers, check_shapes

Sums = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Formula:
    """One entry of the menu."""

    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    """(chosen, rejected, ref_chosen, ref_rejected, **settings) -> (loss per pair, metrics per pair)."""
    beta: float
    """The usual strength, used where the configuration sets none."""
    reads: tuple[str, ...] = ()
    """Settings it needs besides beta."""
    lengths: bool = False
    """Whether it takes chosen_length and rejected_length."""


MENU: dict[str, Formula] = {
    "dpo": Formula(pairs.dpo, beta=0.1),
    "cdpo": Formula(pairs.cdpo, beta=0.1, reads=("label_smoothing",)),
    "robust": Formula(pairs.robust, beta=0.1, reads=("label_smoothing",)),
    "ipo": Formula(pairs.ipo, beta=0.1),
    "hinge": Formula(pairs.hinge, beta=0.1),
    "dpo_norm": Formula(pairs.dpo_norm, beta=5.0, lengths=True),
}
"""Name -> formula; each is documented at its function."""


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """Which preference loss to train with, and its numbers."""

    name: str = "dpo"
    """A key of MENU."""
    beta: float | None = None
    """Strength of the leash to the reference. None: the loss's usual value."""
    label_smoothing: float | None = None
    """Share of labels taken to be flipped; read by "cdpo" and "robust"."""

    def __post_init__(self):
        if self.name not in MENU:
            raise ConfigError(f'loss.name = "{self.name}" is not on the menu of preference losses. '
                              + nearest(self.name, MENU))  # fmt: skip
        if self.beta is not None and self.beta <= 0:
            raise ConfigError(f"loss.beta = {self.beta}: must be positive ({MENU[self.name].beta} is usual here).")
        for setting in ("label_smoothing",):
            value, read = getattr(self, setting), setting in MENU[self.name].reads
            if value is not None and not read:
                users = ", ".join(name for name, formula in MENU.items() if setting in formula.reads)
                raise ConfigError(f'loss.{setting} = {value} changes nothing with "{self.name}"; {users} read it.')
            if value is None and read:
                raise ConfigError(f'loss.name = "{self.name}" needs loss.{setting}; 0.1 is a start.')
        if self.label_smoothing is not None and not 0 < self.label_smoothing < 0.5:
            raise ConfigError(
                f"loss.label_smoothing = {self.label_smoothing}: must lie between 0 and 0.5, where labels say nothing."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a frozen reference are needed. So far always."""
        return True

    @property
    def strength(self) -> float:
        """The beta in effect."""
        return MENU[self.name].beta if self.beta is None else self.beta

    def __call__(self, logp: Tensor, ref_logp: Tensor, mask: Tensor, label: Tensor) -> tuple[Tensor, Sums]:
        """Loss of each pair [P], unaveraged, from per-token log-probabilities, and metrics as (sum, count).

        logp, ref_logp, mask: [2P, T]. label: [2P], positive on chosen rows, negative on rejected ones; the k-th chosen
        row and the k-th rejected row are one pair.
        """
        check_shapes("NT NT NT N", logp, ref_logp, mask, label)
        good, bad = label > 0, label < 0
        if int(good.sum()) != int(bad.sum()):
            raise ShapeError(f"{int(good.sum())} chosen and {int(bad.sum())} rejected rows: every pair needs both. "
                             'Split batches with together="group".')  # fmt: skip
        (total, length), (ref_total, _) = answers(logp, mask), answers(ref_logp, mask)
        formula = MENU[self.name]
        settings = {"beta": self.strength, **{name: getattr(self, name) for name in formula.reads}}
        if formula.lengths:
            settings |= {"chosen_length": length[good], "rejected_length": length[bad]}
        loss, per_pair = formula.loss(total[good], total[bad], ref_total[good], ref_total[bad], **settings)
        per_pair |= {
            "logp_chosen": total[good].detach(),
            "logp_rejected": total[bad].detach(),
            "length_chosen": length[good],
            "length_rejected": length[bad],
        }
        count = loss.new_tensor(len(loss))
        return loss, {name: (value.sum(), count) for name, value in per_pair.items()}
