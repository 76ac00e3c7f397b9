"""`embedrag check`."""

from __future__ import annotations

import embedrag
from embedrag.errors import UserError
from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option
from embedrag.runtime.console import say

EXIT_CODES = {"clean": 0, "fault": 1, "error": 2}


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
        "evaluation set that must not occur in the training data: a folder with a retrieval set (folder@dev is its "
        "split dev), or a file of rows",
        group="check",
        min_length=1,
    )
    model: str | None = option(
        None,
        "model that the data is for; its tokenizer measures the texts, its weights are not read",
        group="check",
        min_length=1,
    )
    query_max_len: int = option(256, "longest query, in tokens (with --model)", group="check", ge=2)
    passage_max_len: int = option(1024, "longest passage, in tokens (with --model)", group="check", ge=2)
    fix: str | None = option(
        None, "write the rows without their faults to this JSONL file", group="check", min_length=1
    )
    output: str | None = option(None, "write the report to this JSON file", group="check", min_length=1)
    overwrite: bool = option(False, "replace the files that --fix and --output name", group="check")
    stream: bool = option(False, "read a hub dataset as a stream instead of downloading it whole", group="check")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="check")


def run(options: CheckOptions) -> int:
    """Print the report; the exit code is 0 for clean data, 1 for faults, 2 for rows that can't be read."""
    import json
    from pathlib import Path

    from embedrag.data.checks.scan import expand
    from embedrag.data.retrieval_dataset import folder_and_split
    from embedrag.runtime.files import atomic_file, check_targets

    sources = [*options.train_dataset, *expand(options.train_dataset), folder_and_split(options.eval or "")[0]]
    check_targets({"fix": options.fix, "output": options.output}, sources, options.overwrite)
    lengths = options.model_dump(include={"query_max_len", "passage_max_len"} & options.model_fields_set)
    report = embedrag.check(
        options.train_dataset,
        eval=options.eval,
        model=options.model,
        fix=options.fix,
        stream=options.stream,
        overwrite=options.overwrite,
        trust_remote_code=options.trust_remote_code,
        **lengths,
    )
    for line in report.lines():
        # A key may hold half a surrogate pair.
        say(line.encode("utf-8", "backslashreplace").decode(), verbatim=True)
    code = EXIT_CODES[report.level]
    if options.output:
        with atomic_file(Path(options.output).expanduser()) as file:
            file.write(json.dumps(report.as_dict() | {"exit_code": code}, indent=2) + "\n")
    if report.not_fixed:
        raise UserError(report.not_fixed, "fix", options.fix)
    return code


COMMAND = Command(CheckOptions, run, "find what is wrong with training data, and fix it")
