"""What a run leaves to read: three JSON files and the lines on the screen.

`detailed_training_logs.json` is one JSON object, as people parse it, yet grows as the run goes: each row overwrites the
few closing bytes and writes them anew behind itself, in one system call. A killed run leaves a valid file with every
line so far, and a step never rewrites the file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.files import write_atomic

NOT_FINITE = (float("inf"), float("-inf"))


def say(line: str) -> None:
    """A line for the user."""
    print(line, flush=True)


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def check_tracker(name: str) -> None:
    """Raise UserError when a tracker is asked for and its library is missing."""
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError("--log_with wandb needs wandb: pip install wandb (or choose tensorboard)")


class RunLog:
    """The log files of one run."""

    def __init__(self, folder: Path, training_args: dict[str, Any], model_info: dict[str, Any]) -> None:
        """Start the files in `folder`; `training_args` and `model_info` are written as they are."""
        self._folder = folder
        self._args, self._info = training_args, model_info
        self._start = time.monotonic()
        self.epochs: list[dict[str, Any]] = []
        self._end_time: str | None = None
        self._summary: dict[str, Any] | None = None
        self._steps = 0
        self._best = float("inf")
        self._last = float("nan")
        self._file = os.open(folder / "detailed_training_logs.json", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        head = {"training_args": training_args, "model_info": model_info, "training_start_time": now()}
        text = json.dumps(head, ensure_ascii=False, default=str)[:-1] + ', "step_logs": ['
        self._position = 0
        self._append(text)

    def step(self, row: dict[str, Any]) -> None:
        """Log one optimizer step; a number that is not finite (float16's overflow) is written as null."""
        row = {name: None if value in NOT_FINITE or value != value else value for name, value in row.items()}
        self._append((",\n" if self._steps else "\n") + json.dumps(row))
        self._steps += 1
        self._last = row["loss"]
        self._best = min(self._best, self._last)

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the end of an epoch."""
        self.epochs.append(row)
        self._append("")
        losses = [{"epoch": item["epoch"], "loss": item["avg_loss"]} for item in self.epochs]
        write_atomic(self._folder / "training_losses.json", json.dumps(losses, indent=2))

    def finish(self, completed: bool) -> dict[str, Any]:
        """Close the files; `completed` says whether the run reached its end.

        Returns:
            The training summary.
        """
        seconds = time.monotonic() - self._start
        self._end_time = now()
        self._summary = {
            "total_training_time": seconds,
            "total_epochs": len(self.epochs),
            "total_steps": self._steps,
            "final_loss": self._last if self._steps else None,
            "best_loss": self._best if self._steps else None,
            "avg_step_duration": seconds / self._steps if self._steps else None,
        }
        self._append("")
        os.close(self._file)
        report = {
            "training_completed": completed,
            "completion_time": self._end_time,
            "total_duration_hours": seconds / 3600,
            "model_info": self._info,
            "training_args": self._args,
            "performance_summary": self._summary,
            "loss_progression": [item["avg_loss"] for item in self.epochs],
        }
        text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
        write_atomic(self._folder / "training_summary_report.json", text)
        return self._summary

    def _append(self, text: str) -> None:
        tail = {"epoch_logs": self.epochs, "training_end_time": self._end_time, "training_summary": self._summary}
        body = text.encode()
        os.pwrite(self._file, body + b"\n], " + json.dumps(tail).encode()[1:] + b"\n", self._position)
        self._position += len(body)
