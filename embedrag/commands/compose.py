"""`embedrag compose`: training rows with hard negatives from a glossary."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from embedrag.options.command import Command
from embedrag.options.field import Device, Options, as_list, option
from embedrag.runtime.console import say


class ComposeOptions(Options):
    """Options of `embedrag compose`."""

    input: str = option(
        ...,
        "CSV, TSV or Excel file of terms and definitions, or of anchors and positives",
        group="compose",
        min_length=1,
    )
    output: str = option(..., "JSONL file of training rows", group="compose", min_length=1)
    hard_k: int = option(3, "hard negatives of a row: the nearest definitions of other terms", group="compose", ge=0)
    columns: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None,
        "names of the two columns, the term first, or their numbers if there is no header; default: found by name",
        group="compose",
        min_length=2,
        max_length=2,
    )
    encoding: str | None = option(
        None, "encoding of the file; default: it is detected (UTF-8, UTF-16, CP949, GB18030, Big5)", group="compose"
    )
    model: str | None = option(
        None, "model or adapter folder, or hub id, that finds the negatives; default: BM25", group="compose"
    )
    device: Device = option("auto", "where the model computes", group="compose")
    overwrite: bool = option(False, "replace the output file", group="compose")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="compose")


def run(options: ComposeOptions) -> int:
    """Write the rows and print how many there are, and how many lack negatives."""
    from embedrag.datagen.glossary.compose import compose

    result = compose(**options.model_dump())
    say(
        f"composed: {result.rows:,} rows of {result.pairs:,} pairs into {result.output}; "
        f"{result.short:,} have fewer than {options.hard_k} negatives, {result.without_negatives:,} have none"
    )
    return 0


COMMAND = Command(ComposeOptions, run, "make training rows with hard negatives from a glossary")
