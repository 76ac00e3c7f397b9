"""A command: its options, what it does, and its line in `embedrag --help`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from embedrag.options.field import Options


@dataclass(frozen=True)
class Command:
    """One file of `embedrag/commands/` defines one, under the name COMMAND.

    Attributes:
        options: what the command line is parsed into.
        run: does it, and returns the exit code.
        text: one line for `embedrag --help`.
        config_file: whether `--config FILE` is understood.
    """

    options: type[Options]
    run: Callable[[Any], int]
    text: str
    config_file: bool = False
