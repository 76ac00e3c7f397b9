"""`embedrag docstrings`."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option


class DocstringsOptions(Options):
    """Options of `embedrag docstrings`."""

    packages: TextList = option(
        ["stdlib", "numpy", "torch"], "installed packages to read; stdlib is Python's own library", group="docstrings"
    )
    output: str = option(..., "JSONL file to write", group="docstrings", min_length=1)
    neg_nums: int = option(4, "hard negatives of a row: other passages of the same module", group="docstrings", ge=0)
    seed: int = option(42, "seed of the draws", group="docstrings", ge=0, le=2**32 - 1)
    overwrite: bool = option(False, "replace the output file", group="docstrings")


def run(options: DocstringsOptions) -> int:
    """Do what the options say."""
    from embedrag.datagen.docstrings import run

    return run(options)


COMMAND = Command(DocstringsOptions, run, "make training rows from documentation of packages")
