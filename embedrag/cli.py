"""The command line: `embedrag NAME …` finds the command in `embedrag/commands/`, parses its options and runs it.

This is where errors become messages and exit codes. An error names the argument of a function; here it is spelled as
the flag of the command that the user typed.

Exit codes: 0 done, 1 the run went wrong, 2 the user can fix it, 70 another process ended, 75 stopped by a signal with
its state saved, 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from embedrag import __version__
from embedrag.errors import (
    LAUNCHED,
    ChildError,
    EmbedRagError,
    LostContactError,
    RunError,
    Spelling,
    UserError,
    as_python,
    is_out_of_memory,
    near_miss,
    to_record,
)
from embedrag.options.command import Command
from embedrag.options.field import Options, extra
from embedrag.options.parsing import parse
from embedrag.runtime.console import PYTHON_NAMES, console, mute, printable
from embedrag.runtime.disk import disk_error
from embedrag.runtime.files import is_standard_output

# In the order of `embedrag --help`; each is a module of `embedrag.commands`.
COMMANDS = (
    "train",
    "merge",
    "encode",
    "evaluate",
    "playground",
    "mteb",
    "check",
    "mine",
    "sweep",
    "export",
    "serve",
    "docstrings",
    "compose",
    "synth",
    "crawl",
    "demo",
)


UNREAD = 128 + signal.SIGPIPE  # as shells report a program that this signal ended


def main(argv: Sequence[str] | None = None, script: bool = False) -> int:
    """Run one command and return its exit code.

    Args:
        argv: command name and its words; left out: those of the process.
        script: the command was called as `python NAME.py`, and `--help` should say so.
    """
    _hold_closed_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        return _guarded(lambda: _show(_overview()))
    if words[0] == "--version":
        return _guarded(lambda: _show(__version__))
    name = words[0]
    earlier = console.spell, console.aside
    try:
        if sys.platform == "win32":
            raise UserError("EmbedRAG does not run on Windows itself; use it under WSL 2")
        command = load_command(name)
        console.spell = as_python if os.environ.get(PYTHON_NAMES) == "1" else spelling(command.options)
        return _guarded(lambda: run(name, command, words[1:], script))
    except UserError as error:
        return _report(error)
    finally:
        console.spell, console.aside = earlier


def load_command(name: str) -> Command:
    """The command of a name.

    Raises:
        UserError: when there is none, with the nearest name.
    """
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{near_miss(name, COMMANDS)}; see embedrag --help")
    command: Command = importlib.import_module(f"embedrag.commands.{name}").COMMAND
    return command


def run(name: str, command: Command, words: Sequence[str], script: bool) -> int:
    """Parse the words of a command and run it; raises UserError for anything that the user can fix."""
    prog = f"python {name}.py" if script else f"embedrag {name}"
    options = parse(command.options, words, prog, command.text, command.config_file)
    values = [value for value in options.model_dump().values() if isinstance(value, str)]
    console.aside = any(is_standard_output(Path(value)) for value in values)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that half-written files are removed
    return command.run(options)


def spelling(options: type[Options]) -> Spelling:
    """How the arguments in a message are written: as flags if the command has them.

    >>> from embedrag.commands.merge import MergeOptions
    >>> spelling(MergeOptions)("output_path", "merged"), spelling(MergeOptions)("epochs", None)
    ('--output_path merged', '`epochs`')
    """
    flags = {flag for name, field in options.model_fields.items() for flag in (name, *extra(field)["aliases"])}
    flags.add("config")  # every command line may have it, but it is not an option

    def spell(name: str, value: str | None) -> str:
        if name not in flags:
            return as_python(name, value)
        return f"--{name}" if value is None else f"--{name} {value}"

    return spell


def _hold_closed_streams() -> None:
    """Keep the numbers 0, 1 and 2 from becoming those of data files when the caller closed the streams (`>&-`)."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # it gets the lowest free number; writing on it is an error


def _show(text: str) -> int:
    print(text, flush=True)  # so that a full disk is met here
    return 0


def _guarded(run: Callable[[], int]) -> int:
    """Run a command; the errors that we know become a message and an exit code."""
    try:
        return run()
    except EmbedRagError as error:
        return _report(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _report(RunError("memory ran out; on a GPU try `dtype=bfloat16`, `device=cpu` or a smaller model"))
    except BrokenPipeError:  # whoever read our output has ended, as `head` does
        for stream in (sys.stdout, sys.stderr):
            mute(stream)
        return UNREAD
    except OSError as error:
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        print(f"error: {f'{place}: ' if place else ''}{disk_error(error, place)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _report(error: EmbedRagError) -> int:
    """Write the message of an error, or hand it to the process that started this one; returns the exit code."""
    if LAUNCHED in os.environ:
        if not isinstance(error, LostContactError):  # the process that ended first says why
            Path(os.environ[LAUNCHED]).write_text(json.dumps(to_record(error)), encoding="utf-8")
        return error.exit_code
    if isinstance(error, ChildError) and error.said:
        return error.exit_code
    for line in printable(error.text(console.spell)).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return error.exit_code


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: embedrag COMMAND …    (embedrag COMMAND --help for its options)", ""]
    return "\n".join(lines + [f"  {name:{width}}  {load_command(name).text}" for name in COMMANDS])
