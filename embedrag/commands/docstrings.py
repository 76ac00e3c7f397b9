"""`embedrag docstrings`: training rows from the documentation of installed packages."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option
from embedrag.runtime.console import say


class DocstringsOptions(Options):
    """Options of `embedrag docstrings`."""

    packages: TextList = option(
        ["stdlib", "numpy", "torch"],
        "installed packages to read; stdlib is Python's standard library",
        group="docstrings",
    )
    output: str = option(..., "JSONL file to write", group="docstrings", min_length=1)
    neg_nums: int = option(
        4, "hard negatives of a row, which are other passages of the same module", group="docstrings", ge=0
    )
    seed: int = option(42, "seed of the draws", group="docstrings", ge=0, le=2**32 - 1)
    overwrite: bool = option(False, "replace the output file", group="docstrings")


def run(options: DocstringsOptions) -> int:
    """Write the rows and print how many there are."""
    from embedrag.datagen.docstrings import docstrings

    result = docstrings(**options.model_dump())
    say(f"{result.rows:,} rows in {result.output}")
    return 0


COMMAND = Command(DocstringsOptions, run, "make training rows from the documentation of packages")
