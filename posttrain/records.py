"""The nouns of the system: what flows between data, models, environments, rewards and learners.

Plain Python, frozen dataclasses, no torch. A record is changed by making a new one (`dataclasses.replace`); a reward
never becomes an advantage in place. Tensors begin in `batch.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from posttrain.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")


class Stop(StrEnum):
    """Why a completion or a trajectory ended."""

    END = "end"
    """The policy wrote one of its stop ids."""
    LENGTH = "length"
    """The token budget ran out first."""
    TURNS = "turns"
    """The environment's limit of turns was reached."""
    TOOL = "tool"
    """The environment ended the episode."""
    ERROR = "error"
    """The rollout failed; `Trajectory.error` says how."""


@dataclass(frozen=True)
class ToolCall:
    """A request by the policy to run a tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Which tool answered (role "tool"), or which person speaks."""

    def __post_init__(self):
        if self.role not in ROLES:
            raise DataError(f"a message has the role {self.role!r}; roles are {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise DataError(
                f"a {self.role} message holds {type(self.content).__name__}, not text; only text content is supported"
            )


@dataclass(frozen=True)
class Task:
    """A prompt with what is needed to grade an answer: the unit of rollouts and evaluations."""

    id: str
    prompt: tuple[Message, ...]
    answer: str | None = None
    """The gold answer, where one exists."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else a reward needs, under the data file's column names."""


@dataclass(frozen=True)
class Example:
    """A demonstration for supervised fine-tuning: a conversation whose assistant turns are learned."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A plain document: every token is learned, no template is applied."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first preferred (DPO, Bradley-Terry)."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    """The preferred continuation: usually one assistant message, more in a multi-turn comparison."""
    rejected: tuple[Message, ...]
    margin: float | None = None
    """How much better the chosen answer is, where annotators said so."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """K answers to one prompt with scores, best first or not (K-way reward models, RRHF)."""

    prompt: tuple[Message, ...]
    answers: tuple[Message, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """One answer with a verdict (KTO, outcome and process reward models)."""

    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    good: bool
    steps: tuple[bool, ...] = ()
    """One label per reasoning step, for process reward models."""


@dataclass(frozen=True)
class Score:
    """What a grader says about one answer. `value` None means *could not be scored*: left out, never zero."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components of the value, for the log."""
    answer: str | None = None
    """What the grader took to be the answer."""
    why: str = ""
    """One sentence for a person who reads the samples."""

    def __post_init__(self):
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score of {self.value} is not a number; use None for an answer that cannot be scored")


@dataclass(frozen=True)
class Segment:
    """One stream of token ids with who wrote what. Every field has the length of `tokens`; entry t is about token t."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True where the policy chose the token (in SFT: where it is learned)."""
    logp: tuple[float, ...] = ()
    """What the sampler said of each token it chose, log softmax(logits / T) over the vocabulary; NaN elsewhere."""
    kept: tuple[float, ...] = ()
    """Log of the probability mass that top-k / top-p kept (0 without a cut); NaN elsewhere."""
    turn: tuple[int, ...] = ()
    """Which message the token belongs to."""
    truncated: int = 0
    """How many tokens were cut off to fit the context."""

    def __post_init__(self):
        n = len(self.tokens)
        for name in ("mask", "logp", "kept", "turn"):
            values = getattr(self, name)
            if len(values) not in ((n,) if name == "mask" else (0, n)):
                raise ValueError(f"a segment of {n} tokens has {len(values)} entries of {name}")


@dataclass(frozen=True)
class Trajectory:
    """One episode: the conversation, its token streams, why it ended, and what graders said."""

    task: Task
    messages: tuple[Message, ...]
    segments: tuple[Segment, ...]
    stop: Stop
    version: int = 0
    """Which version of the weights wrote it (the learner's count of optimizer steps)."""
    temperature: float = 1.0
    score: Score | None = None
    rewards: tuple[tuple[int, int, float], ...] = ()
    """Dense rewards as (segment, token, value): steps, turns, process rewards."""
    error: str | None = None

    @property
    def completion(self) -> str:
        """Text of what the policy said last."""
        return self.messages[-1].content if self.messages and self.messages[-1].role == "assistant" else ""

    @property
    def length(self) -> int:
        """Number of tokens the policy chose."""
        return sum(sum(s.mask) for s in self.segments)


@dataclass(frozen=True)
class Group:
    """Several trajectories of one task, compared with each other."""

    task: Task
    members: tuple[Trajectory, ...]
