"""The log files of a run: three JSON files.

`detailed_training_logs.json` is one JSON object, yet it grows while the run goes on. Each new row overwrites the few
closing bytes and writes them again after itself, in one system call. So a killed run leaves a valid file with every row
so far, and a step never rewrites the file.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

from embedrag.errors import RunError, UserError
from embedrag.models.artifacts import LOSSES, RUN_LOG, SUMMARY
from embedrag.runtime.console import now
from embedrag.runtime.disk import disk_error
from embedrag.runtime.files import write_atomic
from embedrag.training.state.run_folder import claim_files

FIRST_KEY = b'"epoch_logs"'
TAIL = b"\n], " + FIRST_KEY  # the closing bytes of the log begin with this
MAX_TAIL = 1 << 24  # bytes; all epochs and evaluations of a run have room in it
NOT_FINITE = (float("inf"), float("-inf"))


def check_tracker(name: str) -> None:
    """Raise UserError when the library of a tracker is not installed."""
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError("needs wandb: pip install wandb (or choose tensorboard)", "log_with", "wandb")


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The rows of all evaluations so far, from the end of a detailed_training_logs.json that may still grow.

    Args:
        path: the log file; one that is not there yet has no rows.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_TAIL))
            text = file.read()
    except FileNotFoundError:
        return []
    start = text.rfind(TAIL)
    if start < 0:
        return []
    try:
        tail = json.loads(b"{" + text[start + len(TAIL) - len(FIRST_KEY) :])
    except ValueError:  # read while a row was being written
        return []
    rows: list[dict[str, Any]] = tail.get("eval_logs", [])
    return rows


class RunLog:
    """The log files of one run."""

    def __init__(
        self,
        folder: Path | None,
        training_args: dict[str, Any],
        model_info: dict[str, Any],
        earlier: dict[str, Any] | None = None,
    ) -> None:
        """Start the files in `folder`, or continue those that are there.

        Args:
            folder: of the run; None counts everything and writes nothing.
            training_args: written as they are.
            model_info: written as it is.
            earlier: what `state` returned; rows that were written after it are cut off. A log file that is missing or
                shorter is started again.
        """
        self._folder = folder
        self._args, self._info = training_args, model_info
        self._end_time: str | None = None
        self._summary: dict[str, Any] | None = None
        earlier = earlier or {}
        self._start = time.monotonic() - earlier.get("seconds", 0.0)
        self.epochs: list[dict[str, Any]] = earlier.get("epochs", [])
        self._steps: int = earlier.get("steps", 0)
        self.evaluations: list[dict[str, Any]] = earlier.get("evaluations", [])
        self._best: float | None = earlier.get("best")
        self._last: float | None = earlier.get("last")
        self._rows = 0
        self._tail = b""  # the closing bytes that are in the file
        self._position: int = earlier.get("position", 0)
        if folder is None:
            return
        claim_files(folder, RUN_LOG)
        path = folder / RUN_LOG
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
        self._rows = self._steps if 0 < self._position <= path.stat().st_size else 0
        if not self._rows:
            self._position = 0
        os.ftruncate(self._file, self._position)
        if self._rows:
            self._append("")
            return
        head = {"training_args": training_args, "model_info": model_info, "training_start_time": now()}
        self._append(json.dumps(head, ensure_ascii=False, default=str)[:-1] + ', "step_logs": [')

    def state(self) -> dict[str, Any]:
        """The state of the log, for a run that goes on from here."""
        return {
            "position": self._position,
            "seconds": time.monotonic() - self._start,
            "epochs": self.epochs,
            "evaluations": self.evaluations,
            "steps": self._steps,
            "best": self._best,
            "last": self._last,
        }

    def step(self, row: dict[str, Any]) -> None:
        """Log one optimizer step. A number that is not finite (an overflow of float16) is written as null."""
        row = {name: None if value in NOT_FINITE or value != value else value for name, value in row.items()}
        self._append((",\n" if self._rows else "\n") + json.dumps(row))
        self._rows += 1
        self._steps += 1
        if row["loss"] is not None:
            self._last = row["loss"]
            self._best = self._last if self._best is None else min(self._best, self._last)

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the end of an epoch."""
        self.epochs.append(row)
        self._append("")
        losses = [{"epoch": item["epoch"], "loss": item["avg_loss"]} for item in self.epochs]
        self._write(LOSSES, losses)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Log the scores of the model between two steps."""
        self.evaluations.append(row)
        self._append("")

    def finish(self, completed: bool, **more: Any) -> dict[str, Any]:
        """Close the files.

        Args:
            completed: whether the run reached its end.
            **more: further entries of the summary.

        Returns:
            The training summary.
        """
        seconds = time.monotonic() - self._start
        self._end_time = now()
        self._summary = {
            "total_training_time": seconds,
            "total_epochs": len(self.epochs),
            "total_steps": self._steps,
            "final_loss": self._last,
            "best_loss": self._best,
            "avg_step_duration": seconds / self._steps if self._steps else None,
            **more,
        }
        self._append("")
        report = {
            "training_completed": completed,
            "completion_time": self._end_time,
            "total_duration_hours": seconds / 3600,
            "model_info": self._info,
            "training_args": self._args,
            "performance_summary": self._summary,
            "loss_progression": [item["avg_loss"] for item in self.epochs],
        }
        self._write(SUMMARY, report)
        if self._folder:
            os.close(self._file)
        return self._summary

    def _write(self, name: str, data: Any) -> None:
        if self._folder:
            claim_files(self._folder, name)
            write_atomic(self._folder / name, json.dumps(data, indent=2, ensure_ascii=False, default=str))

    def _append(self, text: str) -> None:
        if not self._folder:
            return
        tail: dict[str, Any] = {"epoch_logs": self.epochs} | (
            {"eval_logs": self.evaluations} if self.evaluations else {}
        )
        tail |= {"training_end_time": self._end_time, "training_summary": self._summary}
        body, end = text.encode(), b"\n], " + json.dumps(tail).encode()[1:] + b"\n"
        try:
            if os.pwrite(self._file, body + end, self._position) < len(body) + len(end):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # The file becomes what it was. That needs no new room on the disk.
            os.pwrite(self._file, self._tail, self._position)
            os.ftruncate(self._file, self._position + len(self._tail))
            path = self._folder / RUN_LOG
            raise RunError(f"{path}: not written ({disk_error(error, path)}); all earlier rows are in it") from None
        self._tail = end
        self._position += len(body)
