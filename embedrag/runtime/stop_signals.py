"""SIGTERM and SIGINT request a graceful stop: the training finishes its step, saves its state, and then ends.

Before the training begins there is nothing to save, and they end the run at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from embedrag.errors import StoppedError
from embedrag.runtime.console import is_speaker

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stopped_early(name: str) -> StoppedError:
    """The error of a run that a signal of this name ended before it had begun to train."""
    return StoppedError(
        f"stopped by {name} before the first step; the folder of the run was not touched, and the same call starts it"
    )


class StopSignals:
    """Catches signals inside a `with` block.

    Once `can_wait` is set, the first signal only sets `name`, and the training looks for it between steps. A second
    signal ends the program at once. A signal before that ends the block with a StoppedError.

    Attributes:
        name: of the first signal; None while there was none.
        can_wait: the training has begun, so it has a state that it can save.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.can_wait = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python has handlers in the main thread only
            self._before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self.name and not self.can_wait:
            raise stopped_early(self.name) from None

    def _asked(self, number: int, frame: FrameType | None) -> None:
        again = self.name is not None
        self.name = signal.Signals(number).name
        if again or not self.can_wait:
            raise KeyboardInterrupt  # no Exception, so nobody takes it for an error of the work that it interrupts
        if is_speaker():  # without print, because the signal may have come in the middle of one
            line = f"{self.name}: the run ends after this step and saves its state; a second signal ends it at once\n"
            os.write(1, line.encode())
