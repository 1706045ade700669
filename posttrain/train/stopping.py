"""When a person, or the machine, asks a run to stop: between two steps, and together with the other processes."""

import contextlib
import signal
import threading
from collections.abc import Callable

from posttrain import dist
from posttrain.errors import Interrupted


class Stopping:
    """Whether a run was asked to stop, and why."""

    def __init__(self):
        self._reason: str | None = None
        self._asked: tuple[int, str | None] = (-1, None)

    def catch_signals(self, cleanup: contextlib.ExitStack, where: Callable[[], str]) -> None:
        """From now on the first Ctrl-C or SIGTERM is only remembered; the second raises Interrupted at once.

        cleanup: restores the handlers. where: the place in the run, for the message.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(number, frame):
            name = "interrupted (Ctrl-C)" if number == signal.SIGINT else "stopped by SIGTERM"
            if self._reason:
                raise Interrupted(
                    f"{name} at once, {where()} continues from its last checkpoint with the same command."
                )
            self._reason = name

        for number in (signal.SIGINT, signal.SIGTERM):
            cleanup.callback(signal.signal, number, signal.signal(number, handle))

    def reason(self, step: int) -> str | None:
        """Why to stop after so many steps, once any process of the run was asked to: asked alike in all of them.

        The answer stands until the next step: a signal that comes between two questions is heard then.
        """
        if step != self._asked[0]:
            self._asked = (step, None)
            if dist.all_max(self._reason is not None):
                self._reason = self._reason or "stopped with another process"
                self._asked = (step, self._reason)
        return self._asked[1]
