"""Processes of their own for tests, without the seconds that each import of torch and transformers takes.

multiprocessing's fork server imports them once for each pytest worker, and every process is forked from it. What is
tested through `sys.executable` instead is the start of a program itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.multiprocessing

from embedrag.cli import main

FORK_SERVER = multiprocessing.get_context("forkserver")
PRELOAD = ["peft.tuners.lora.bnb", "torch.utils.tensorboard", "embedrag.training.run", "tests.processes"]
FORK_SERVER.set_forkserver_preload(PRELOAD)


class Process:
    """A running command, or another function; as `subprocess.Popen` where tests need it.

    Attributes:
        pid: number of the process.
        returncode: its exit code once `communicate` has returned; negative: the signal that killed it.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any], environment: dict[str, Any]) -> None:
        self._folder = TemporaryDirectory(prefix="process-")
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        variables = os.environ | {name: str(value) for name, value in environment.items()}
        self._process = FORK_SERVER.Process(target=_run, args=(function, arguments, variables, self._files))
        self._process.start()
        self.pid = int(self._process.pid or 0)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the end; what was written on standard output and standard error."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(self._files[1].read_text())
        self.returncode = self._process.exitcode
        out, err = (path.read_text(encoding="utf-8") for path in self._files)
        self._folder.cleanup()
        return out, err


def start(words: Sequence[str]) -> Process:
    """Start `embedrag WORDS`."""
    return Process(main, [list(words)], {})


def run_processes(words: Sequence[str], count: int = 2) -> str:
    """Run `embedrag WORDS` in processes that find each other, as those of torchrun do.

    Returns:
        The standard output of the first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
    place |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    members = [Process(main, [list(words)], place | {"RANK": rank, "LOCAL_RANK": rank}) for rank in range(count)]
    ended = [member.communicate() for member in members]
    assert [member.returncode for member in members] == [0] * count, ended
    return ended[0][0]


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call `function(rank, *arguments)` in some processes; raises what one of them raised."""
    torch.multiprocessing.start_processes(function, arguments, count, start_method="forkserver")


def wait_until(condition: Callable[[], bool], process: Process | Any) -> None:
    """Wait until something holds, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.01)


def _run(function: Callable[..., Any], arguments: Sequence[Any], variables: dict[str, str], files: list[Path]) -> None:
    """In the new process: standard streams into files, and the exit code of the function."""
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(files, 1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
