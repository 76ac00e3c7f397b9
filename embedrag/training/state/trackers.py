"""TensorBoard and Weights & Biases: the figures of a run for other programs."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from embedrag.errors import RunError
from embedrag.models.artifacts import TENSORBOARD
from embedrag.runtime.disk import disk_error
from embedrag.training.config.options import TrainOptions
from embedrag.training.state.run_folder import claim_trackers, tracker_files

WRITER = "_AsyncWriterThread"  # TensorBoard's thread, which prints a traceback when the disk is full


def tracker_names(name: str) -> list[str]:
    """The trackers that accelerate starts for `log_with`."""
    if name == "all":
        return ["tensorboard", "wandb"] if importlib.util.find_spec("wandb") else ["tensorboard"]
    return [name]


class Trackers:
    """The trackers of one run. A full disk is a RunError that names their folder."""

    def __init__(self, accelerator: Accelerator, options: TrainOptions, folder: Path, main: bool, first: int) -> None:
        """Start the trackers, and claim the files that they make.

        Args:
            accelerator: it was made with `tracker_names`.
            options: of the run; the trackers get them.
            folder: of the run.
            main: this process is the one that writes.
            first: number of the first step that is logged; a run that goes on replaces what was logged from there.
        """
        self._accelerator, self._folder = accelerator, folder / TENSORBOARD
        before = tracker_files(folder)
        with self._on_disk():
            accelerator.init_trackers(
                options.run_name or "train",
                config=_flat(options),
                init_kwargs={"tensorboard": {"purge_step": first}} if first > 1 else {},
            )
        if main:
            claim_trackers(folder, before)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log figures of a step."""
        with self._on_disk():
            self._accelerator.log(values, step=step)

    def close(self) -> None:
        """Write what is left, and end the trackers."""
        with self._on_disk():
            self._accelerator.end_training()

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = disk_error(error, self._folder)
            raise RunError(f"{self._folder}: not written ({reason}); earlier checkpoints are whole") from None


@contextlib.contextmanager
def without_tracebacks() -> Iterator[None]:
    """Keep TensorBoard's thread from printing the traceback of an error that `Trackers` reports."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != WRITER:
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _flat(options: TrainOptions) -> dict[str, Any]:
    """Options as TensorBoard takes them: numbers, texts and truth values."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in options.model_dump().items()
    }
