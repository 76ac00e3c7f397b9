"""The first signal is a request, the second one ends the program."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from embedrag.errors import StoppedError
from embedrag.runtime.stop_signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_noted_and_the_second_one_interrupts(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        stop.can_wait = True
        assert stop.name is None
        os.kill(os.getpid(), number)
        assert stop.name == number.name
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert capfd.readouterr().out == (
        f"{number.name}: the run ends after this step and saves its state; a second signal ends it at once\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_the_training_ends_it_at_once_with_an_error(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name} before the first step"), StopSignals():
        try:
            os.kill(os.getpid(), number)
        except Exception:
            pytest.fail("work that catches every error went on")
        pytest.fail("it went on")
    assert signal.getsignal(number) == before


def test_outside_of_the_main_thread_handlers_do_not_change() -> None:
    found = []

    def enter() -> None:
        with StopSignals() as stop:
            found.append((stop.name, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, signal.getsignal(signal.SIGTERM))]
