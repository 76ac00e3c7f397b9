"""`embedrag export`."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, option
from embedrag.runtime.console import say


class ExportOptions(Options):
    """Options of `embedrag export`."""

    model: str = option(..., "merged or full model folder, or hub id", group="export", min_length=1)
    output: str = option(
        ..., "folder to write: tokenizer, configuration, onnx/model.onnx", group="export", min_length=1
    )
    int8: bool = option(False, "also write onnx/model_int8.onnx, which has weights of 8 bits", group="export")
    data: str | None = option(
        None,
        "score the model and its exports on it (nDCG@10): a folder with a retrieval set (folder@dev is its split dev), "
        "or a file of rows",
        group="export",
        min_length=1,
    )
    overwrite: bool = option(False, "replace the output folder, if it is an export", group="export")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="export")


def run(options: ExportOptions) -> int:
    """Export, and print how close the files are to the model."""
    from embedrag.export.export import export

    report = export(**options.model_dump())
    for line in report.lines():
        say(line)
    return 0


COMMAND = Command(ExportOptions, run, "write a model as ONNX and check it (extra onnx)")
