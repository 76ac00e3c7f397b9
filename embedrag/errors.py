"""The two ways in which a command ends early: the user can mend it, or the run went wrong.

Both carry a message for people and an exit code; neither is ever shown as a traceback.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Of torch's allocator on a CPU, of cuBLAS, and of kernels that allocate by themselves (torch has a class for its own).
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
LAUNCHED = "EMBEDRAG_LAUNCHED"  # in the environment of processes whose end `embedrag.training.launcher` explains


class UserError(Exception):
    """Something the user can mend: bad flag, bad file, missing package. Exit code 2, before any expensive work."""

    exit_code = 2


class RunError(UserError):
    """The run went wrong (a loss that is not finite, a full disk). Exit code 1; earlier checkpoints are whole."""

    exit_code = 1


class StoppedError(RunError):
    """A signal asked the run to stop, and it did after saving its state. Exit code 75: the same command can go on."""

    exit_code = 75


class LostContactError(RunError):
    """Another process ended. Exit code 70; whoever started the processes knows which, and why."""

    exit_code = 70


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

    torch's own class is known by its name, for torch need not be imported.
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


@contextmanager
def flag_named(name: str, *others: str) -> Iterator[None]:
    """Errors inside speak of the flag `name` where shared code knows it by another name."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for other in others:
            text = text.replace(other, name)
        raise UserError(text) from None
    except OSError as error:
        raise UserError(f"{name} {error.filename or ''}: {error.strerror or error}") from None
