"""The errors that this package raises on purpose: the caller made a mistake, or the run went wrong.

Each has a message for people and an exit code, and none is shown as a traceback. A message names arguments in
backticks, as in Python: `batch_size` or, with a value, `batch_size=0`. The program that shows the message may spell
them in another way (`spelled`): the command line writes `--batch_size 0`.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import Any

# Messages of torch's allocator on a CPU, of cuBLAS, and of kernels that allocate memory themselves. (torch has a class
# for its own errors on a GPU.)
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
# In the environment of a process that `embedrag.training.launcher` started: the file for its error, see `to_record`.
LAUNCHED = "EMBEDRAG_LAUNCHED"
ARGUMENT = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")

Spelling = Callable[[str, str | None], str]


class EmbedRagError(Exception):
    """Base of the errors that this package raises on purpose.

    Attributes:
        exit_code: exit code of a command that ends with this error.
    """

    exit_code = 1

    def text(self, spell: Spelling) -> str:
        """The message, its arguments spelled by `spell(name, value)`."""
        return spelled(str(self), spell)


class UserError(EmbedRagError):
    """A mistake that the caller can fix: a bad argument, a bad file, a missing package. Raised before expensive work.

    Exit code 2.

    Attributes:
        argument: the name of the argument that is wrong; None when it is not one argument (a line of a file).
        value: what was passed.
        reason: what is wrong with it, and the remedy.
        problems: all errors, when several were found at once; otherwise only this one.

    >>> str(UserError("must be 1 or more", "batch_size", 0))
    '`batch_size=0`: must be 1 or more'
    """

    exit_code = 2

    def __init__(self, reason: str, argument: str | None = None, value: object = None) -> None:
        """Describe what is wrong.

        Args:
            reason: a sentence that also says what to do. Other arguments stand in backticks.
            argument: of the called function.
            value: as passed; None is not shown.
        """
        self.reason, self.argument, self.value = reason, argument, value
        self.problems: tuple[UserError, ...] = (self,)
        super().__init__(reason if argument is None else f"{as_python(argument, _shown(value))}: {reason}")

    def text(self, spell: Spelling) -> str:
        """The message, its arguments spelled by `spell(name, value)`; several problems are several lines."""
        if len(self.problems) > 1:
            return "\n".join(problem.text(spell) for problem in self.problems)
        reason = spelled(self.reason, spell)
        return reason if self.argument is None else f"{spell(self.argument, _shown(self.value))}: {reason}"


class RunError(EmbedRagError):
    """The run went wrong (a loss that is not finite, a full disk). Exit code 1; earlier checkpoints are whole."""


class StoppedError(RunError):
    """A signal asked the run to stop, and it stopped after saving its state. Exit code 75: the same call can go on."""

    exit_code = 75


class LostContactError(RunError):
    """Another process ended. Exit code 70; whoever started the processes knows which one, and why."""

    exit_code = 70


class ChildError(RunError):
    """Processes that this one started have failed.

    Attributes:
        exit_code: exit code of the process that failed first.
        said: True when that process has already written the reason to standard error.
    """

    def __init__(self, reason: str, exit_code: int = 1, said: bool = False) -> None:
        super().__init__(reason)
        self.exit_code, self.said = exit_code, said


def to_record(error: EmbedRagError) -> dict[str, Any]:
    """An error as JSON, for the process that started this one."""
    problems = error.problems if isinstance(error, UserError) else ()
    return {
        "kind": type(error).__name__,
        "text": str(error),
        "problems": [[problem.reason, problem.argument, _shown(problem.value)] for problem in problems],
    }


def from_record(record: dict[str, Any]) -> EmbedRagError:
    """The error of which `to_record` made the record.

    >>> error = from_record(to_record(UserError("must be 1 or more", "batch_size", 0)))
    >>> error.argument, str(error)
    ('batch_size', '`batch_size=0`: must be 1 or more')
    """
    if not record["problems"]:
        return {"StoppedError": StoppedError}.get(record["kind"], RunError)(record["text"])
    return joined([UserError(*problem) for problem in record["problems"]])


def all_problems(checks: Iterable[Callable[[], object]]) -> None:
    """Run checks to the end, and report what all of them found.

    Raises:
        UserError: with every problem; `problems` has them one by one.
    """
    problems: list[UserError] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.problems
    raise_all(problems)


def raise_all(problems: Iterable[UserError]) -> None:
    """Raise one UserError for all problems; nothing happens when there are none."""
    if found := list(problems):
        raise joined(found)


def joined(errors: Iterable[UserError]) -> UserError:
    """One UserError for all problems of one or more errors."""
    found = tuple(problem for error in errors for problem in error.problems)
    if len(found) == 1:
        return found[0]
    error = UserError("\n".join(map(str, found)))
    error.problems = found
    return error


def as_python(argument: str, value: str | None) -> str:
    """An argument as messages write it."""
    return f"`{argument}`" if value is None else f"`{argument}={value}`"


def spelled(text: str, spell: Spelling) -> str:
    """A message with each argument in backticks replaced by what `spell(name, value)` gives.

    >>> spelled("give `batch_size=8`, or lower `lr`", lambda name, value: f"--{name} {value or ''}".strip())
    'give --batch_size 8, or lower --lr'
    """
    return ARGUMENT.sub(lambda found: spell(found[1], found[2]), text)


def need(extra: str, *modules: str) -> None:
    """Raise UserError when a module of an optional feature is not installed.

    Args:
        extra: the extra of this package that brings them.
        modules: names by which they are imported.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: pip install -e '.[{extra}]' in EmbedRAG's folder")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU.

    torch's own class is recognised by its name, so torch does not have to be imported.
    """
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def near_miss(word: str, known: Iterable[str]) -> str:
    """Suggest the closest known word.

    >>> near_miss("temprature", ["temperature", "epochs"])
    '; did you mean temperature?'
    >>> near_miss("xyz", ["temperature"])
    ''
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def check_choice(argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise UserError when a value is not one of those that an argument accepts.

    >>> check_choice("role", "query", ("query", "passage"))
    """
    known = list(choices)
    if value not in known:
        names = [str(choice) for choice in known if choice is not None]
        raise UserError(f"must be one of {', '.join(names)}{near_miss(str(value), names)}", argument, value)


def _shown(value: object) -> str | None:
    """A value as people typed it: lists word by word, truth values in lower case."""
    if value is None or value == "":
        return None
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
