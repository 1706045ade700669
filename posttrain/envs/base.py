"""The environment port: who answers when the policy has spoken.

An environment knows messages, never tokens. It may raise: the rollout then records the episode as failed and goes on.
"""

from dataclasses import dataclass
from typing import Protocol

from posttrain.records import Message, Stop, Task


@dataclass(frozen=True)
class Reply:
    """What an environment says to one message of the policy."""

    messages: tuple[Message, ...] = ()
    """Shown to the policy before it speaks again: tool results, a user's next turn. Needed unless `done`."""
    done: bool = False
    """The episode is over."""
    stop: Stop = Stop.TOOL
    """Why, where `done`."""
    reward: float | None = None
    """A reward for this turn, credited to the turn's last token (`Trajectory.rewards`)."""

    def __post_init__(self):
        if not self.done and not self.messages:
            raise ValueError("a reply that does not end the episode holds no message: the policy would speak to itself")


class Env(Protocol):
    """One episode of an environment.

    `rollout` makes a shallow copy for every episode and calls `start` first, so what an object is built with are its
    settings, and all state of an episode is assigned in `start`.
    """

    def start(self, task: Task, seed: int) -> tuple[Message, ...]:
        """The opening messages, up to where the policy speaks. `seed` is the episode's own; draw from it alone."""
        ...

    def reply(self, said: Message) -> Reply:
        """Called after each turn that the policy ended by itself (a turn cut off by a limit ends the episode)."""
        ...


class SingleTurn:
    """The policy answers the task's prompt once."""

    def start(self, task: Task, seed: int) -> tuple[Message, ...]:
        return task.prompt

    def reply(self, said: Message) -> Reply:
        return Reply(done=True, stop=Stop.END)
