"""Start one process for each GPU, or the number of processes that is asked for, and end them all together."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from embedrag.errors import LAUNCHED, ChildError, LostContactError, UserError, as_python, from_record
from embedrag.runtime.console import PYTHON_NAMES, SILENT, console
from embedrag.runtime.distributed import world_size
from embedrag.runtime.stop_signals import SIGNALS, stopped_early
from embedrag.training.config.options import TrainOptions

GRACE = 10.0  # seconds in which the other processes may end by themselves after one has failed
SHOWN = 15  # last lines of a process that failed without a message


def wanted_processes(options: TrainOptions) -> int:
    """How many processes this run has to start; 1 under a launcher, because the launcher has started them already.

    Raises:
        UserError: when there are fewer GPUs than asked for.
    """
    if world_size() > 1:
        return 1
    gpus = 0
    if not options.use_cpu and options.device in ("auto", "cuda"):
        import torch

        gpus = torch.cuda.device_count()
    if gpus and options.num_processes and options.num_processes > gpus:
        raise UserError(
            f"only {gpus} GPUs are visible; lower it, or add `use_cpu`", "num_processes", options.num_processes
        )
    return options.num_processes or max(1, gpus)


def launch(options: TrainOptions, count: int) -> None:
    """Run the training in `count` processes of this machine.

    Lines, logs and files come from the first process. When one fails, the others are ended, and there is one message.

    Raises:
        EmbedRagError: the error of the process that failed first; a ChildError when it ended without one.
    """
    with tempfile.TemporaryDirectory(prefix="embedrag-") as folder:
        config = Path(folder, "options.json")
        config.write_text(json.dumps(child_options(options)))
        port = _free_port()
        errors = [Path(folder, f"errors-{rank}") for rank in range(count)]
        children: list[subprocess.Popen[bytes]] = []
        asked: list[int] = []  # signals that were passed on

        def forward(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            for child in children:
                if child.poll() is None:
                    child.send_signal(number)

        in_main_thread = (
            threading.current_thread() is threading.main_thread()
        )  # in other threads Python has no handlers
        before = {number: signal.signal(number, forward) for number in SIGNALS if in_main_thread}
        try:
            for rank in range(count):
                children.append(_start(config, rank, count, port, errors[rank]))
            _wait(children, errors)
        except ChildError as error:
            # A process without a state ends at once; it has no handler yet (its libraries are being loaded).
            if asked and (children[0].poll() or 0) in (130, -asked[0]):
                raise stopped_early(signal.Signals(asked[0]).name) from error
            raise
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
            for number, handler in before.items():
                signal.signal(number, handler)


def child_options(options: TrainOptions) -> dict[str, Any]:
    """The options of each process: only the given ones, so that all others still follow the base model."""
    return options.model_dump(exclude_none=True, exclude_unset=True, exclude={"num_processes"})


def _start(config: Path, rank: int, count: int, port: int, errors: Path) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {
        LAUNCHED: errors.with_suffix(".json"),
        SILENT: int(console.silent),
        PYTHON_NAMES: int(console.spell is as_python),
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    with errors.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "embedrag", "train", "--config", str(config)],
            env=os.environ | {name: str(value) for name, value in environment.items()},
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else file,
            start_new_session=True,  # Ctrl-C reaches only the parent, and the parent passes it on
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _wait(children: list[subprocess.Popen[bytes]], errors: list[Path]) -> None:
    """Wait until all have ended, or until some time after one has failed."""
    first: int | None = None
    deadline = float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        failed = [rank for rank, child in enumerate(children) if child.poll() not in (None, 0)]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + GRACE
        time.sleep(0.05)
    codes = [child.poll() for child in children]
    if first is None:
        first = next((rank for rank, code in enumerate(codes) if code), None)
    if first is None:
        return
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, LostContactError.exit_code)]
    for rank in sorted(failed, key=lambda rank: (rank != 0, rank != first)):
        if (record := errors[rank].with_suffix(".json")).is_file():
            raise from_record(json.loads(record.read_text(encoding="utf-8")))
    first = failed[0] if failed else first
    code = codes[first] or 1
    if first == 0 and code > 0:
        raise ChildError("the training failed; the reason is on standard error", code, said=True)
    raise ChildError(f"process {first} of {len(children)} {_reason(code, errors[first])}", code if code > 0 else 1)


def _reason(code: int, errors: Path) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}; the others were ended. `resume=auto` goes on"
    lines = [line for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "failed: " + "\n".join(said or lines[-SHOWN:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: Any = probe.getsockname()[1]
        return int(port)


def _die_with_parent() -> None:
    """End this process when its launcher is killed (PR_SET_PDEATHSIG), so that it does not continue to train."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
