"""What the form of an answer does to its reward: punished near the length limit, for repeating itself, or left out.

It comes after grading and after the choice of groups, so that a group counts as mixed by what its answers are worth,
not by how long they are. The formulas are in `shaping`. Sections 22 and 24 of the book tell the story.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.errors import ConfigError
from posttrain.records import Group, Score, Stop, Trajectory
from posttrain.rewards.shaping import repetition, replace_truncated, soft_overlong

PART = "form"
"""Name of the change among the parts of a score."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the form of an answer does to its reward, after it was graded."""

    truncated: Literal["graded", "dropped"] = "graded"
    """dropped: an answer cut off by the token budget teaches nothing, though its reward counts in its group (DAPO's
    overlong filtering). graded: it is like any other."""
    truncated_value: float | None = None
    """The reward of a cut answer, whatever it says. None: as graded."""
    overlong: int = 0
    """Soft overlong punishment (DAPO): over so many tokens before the budget's end a penalty grows from 0 to -1. 0:
    none."""
    overlong_weight: float = 1.0
    """What the punishment is multiplied by."""
    repetition: float = 0.0
    """Penalty of an answer whose trigrams are all the same one; in between, their repeated share. 0: none."""

    def __post_init__(self):
        if self.truncated not in ("graded", "dropped"):
            raise ConfigError(f'form.truncated = "{self.truncated}" is not one of graded, dropped.')
        if self.overlong < 0 or self.overlong_weight <= 0 or self.repetition < 0:
            raise ConfigError(
                f"form.overlong = {self.overlong}, overlong_weight = {self.overlong_weight}, repetition = "
                f"{self.repetition}: a stretch of tokens and a penalty are 0 or more, a weight is positive."
            )

    @property
    def changes_rewards(self) -> bool:
        """Whether any reward may become another."""
        return self.truncated_value is not None or self.overlong > 0 or self.repetition > 0


def shaped(groups: Sequence[Group], form: Form, max_tokens: int) -> list[Group]:
    """The groups with rewards as their form makes them; the change is among the parts of each score, as "form".

    max_tokens: the length limit of an answer. Answers that could not be scored stay so.
    """
    if not form.changes_rewards:
        return list(groups)
    return [replace(g, members=tuple(_shaped(m, form, max_tokens) for m in g.members)) for g in groups]


def _shaped(m: Trajectory, form: Form, max_tokens: int) -> Trajectory:
    if m.score is None or m.score.value is None:
        return m
    value = m.score.value
    if form.truncated_value is not None:
        value = replace_truncated(value, m.stop is Stop.LENGTH, value=form.truncated_value)
    if form.overlong:
        value += form.overlong_weight * soft_overlong(m.length, max_len=max_tokens, buffer=form.overlong)
    if form.repetition:
        said = [t for s in m.segments for t, mine in zip(s.tokens, s.mask, strict=True) if mine]
        value += repetition(said, penalty=-form.repetition)
    parts = {**m.score.parts, PART: value - m.score.value}
    return replace(m, score=Score(value, parts=parts, answer=m.score.answer, why=m.score.why))
