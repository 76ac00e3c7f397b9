"""SIGTERM and SIGINT request a graceful stop: the training finishes its step, saves its state, and then ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from embedrag.runtime.console import is_speaker

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Catches signals inside a `with` block.

    The first signal only sets `name`, and the training looks for it between steps. A second signal ends the program at
    once.

    Attributes:
        name: of the first signal; None while there was none.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python has handlers in the main thread only
            self._before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if is_speaker():  # without print, because the signal may have come in the middle of one
            line = f"{self.name}: the run ends after this step and saves its state; a second signal ends it at once\n"
            os.write(1, line.encode())
