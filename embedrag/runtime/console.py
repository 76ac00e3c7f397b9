"""What a person reads while something runs: lines and progress bars. All go through one object that can be silenced."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any

from embedrag.errors import Spelling, as_python, spelled

if TYPE_CHECKING:
    from tqdm import tqdm

PYTHON_NAMES = "EMBEDRAG_PYTHON_NAMES"  # likewise: 1 when its messages write arguments as Python has them
SILENT = "EMBEDRAG_SILENT"  # in the environment: 1 in a process that a silenced one has started


# C0 and C1 without tabs and line ends, and the signs that turn the direction of the text after them.
_CONTROLS = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPED = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS}


def printable(text: str) -> str:
    r"""A text that can't change a terminal: control characters are written as Python writes them.

    Keys, file names and texts of a data set may hold any character, also one that begins a command of the terminal.

    >>> printable("\x1b]0;title\x07 \x9b31m and a\ttab")
    '\\x1b]0;title\\x07 \\x9b31m and a\ttab'
    """
    return text.translate(_ESCAPED)


def is_speaker() -> bool:
    """Whether this process may speak to the user; of several processes, only the first may."""
    return os.environ.get("RANK", "0") == "0"


class Console:
    """The one place through which this package speaks while it works; `embedrag.console` for callers.

    Attributes:
        silent: nothing is written, no progress bar is shown.
        spell: how arguments in backticks are written; the command line writes flags.
        aside: lines go to standard error, because a result is written on standard output.
    """

    def __init__(self) -> None:
        self.silent = os.environ.get(SILENT) == "1"
        self.spell: Spelling = as_python
        self.aside = False

    def say(self, line: str, verbatim: bool = False) -> None:
        """Write a line on standard output, without control characters (see `printable`).

        A character that the terminal can't show becomes a question mark.

        When the reader of the lines has gone (`… | head -1`), the work goes on without them.

        Args:
            line: what to write, for people.
            verbatim: the line holds a user's text, so its backticks are not around arguments.
        """
        stream = sys.stderr if self.aside else sys.stdout
        if self.silent or not is_speaker() or stream is None:
            return
        encoding = stream.encoding or "utf-8"
        text = printable(line if verbatim else spelled(line, self.spell))
        try:
            print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
        except BrokenPipeError:
            mute(stream)

    def progress(self, total: int | None, unit: str, **settings: Any) -> tqdm[Any]:
        """A progress bar on standard error (tqdm). Of several processes, only the first shows it.

        Args:
            total: how many units there are; None when it is not known.
            unit: the name of what is counted, in the singular.
            **settings: further arguments of tqdm.
        """
        from tqdm import tqdm

        hidden = settings.pop("disable", False)
        if self.silent or not is_speaker() or sys.stderr is None:
            hidden = True
        file: Any = _Unread(sys.stderr)
        return tqdm(total=total, unit=unit, dynamic_ncols=True, disable=hidden, file=file, **settings)

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Say nothing inside the block.

        >>> with console.silenced():
        ...     say("not seen")
        """
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before


class _Unread:
    """A stream that stays silent when nobody reads it any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with self._silent_when_unread():
            self._stream.write(text)

    def flush(self) -> None:
        with self._silent_when_unread():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _silent_when_unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            mute(self._stream)


def mute(stream: Any) -> None:
    """Send everything that is still written on a stream to nowhere; Python also flushes it when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


console = Console()
say = console.say


def now() -> str:
    """The time in UTC, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars and warnings of the libraries while a model is read or written."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)  # it suggests a package of optional kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
