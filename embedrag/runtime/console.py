"""What a user reads while something runs."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from logging import ERROR, getLogger


def is_speaker() -> bool:
    """Whether this process is the one that speaks to the user: the first of several."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line for the user; what the terminal can't show is a question mark."""
    if is_speaker():
        encoding = sys.stdout.encoding or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), flush=True)


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bar, and no remarks of the libraries about each other, while a model is read or written."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)  # it asks for a package of optional kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
