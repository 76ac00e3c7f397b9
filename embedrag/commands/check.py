"""`embedrag check`."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option


class CheckOptions(Options):
    """Options of `embedrag check`."""

    train_dataset: TextList = option(
        ...,
        "training data, as in training; the flag may be left out: embedrag check FILE",
        group="check",
        positional=True,
        min_length=1,
    )
    eval: str | None = option(
        None,
        "evaluation set that must not occur in the training data: a folder in the BEIR layout, or a file of rows",
        group="check",
        min_length=1,
    )
    model: str | None = option(
        None, "model whose tokenizer measures the texts; its weights are not read", group="check", min_length=1
    )
    query_max_len: int = option(256, "longest query, in tokens (with --model)", group="check", ge=2)
    passage_max_len: int = option(1024, "longest passage, in tokens (with --model)", group="check", ge=2)
    fix: str | None = option(None, "JSONL file for the rows without their faults", group="check", min_length=1)
    output: str | None = option(None, "JSON file for the report", group="check", min_length=1)
    overwrite: bool = option(False, "replace the files that --fix and --output name", group="check")
    stream: bool = option(False, "read a hub dataset as a stream instead of downloading it whole", group="check")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="check")


def run(options: CheckOptions) -> int:
    """Do what the options say."""
    from embedrag.data.checks.report import run

    return run(options)


COMMAND = Command(CheckOptions, run, "find what is wrong with training data, and fix it")
