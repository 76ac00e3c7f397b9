"""`embedrag evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PositiveInt

import embedrag
from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, Precision, as_list, option
from embedrag.runtime.console import say


class EvaluateOptions(Options):
    """Options of `embedrag evaluate`."""

    model: str = option(..., "model or adapter folder, or hub id", group="evaluate", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="evaluate")
    baseline: str | None = option(None, "model to compare with, usually the base", group="evaluate")
    data: str = option(
        ...,
        "a folder with a retrieval set (corpus, queries and judgements; folder@dev is its split dev), or a file of rows"
        " in any shape that training reads; the passages of the rows are then the corpus",
        group="evaluate",
        min_length=1,
    )
    general_data: str | None = option(
        None,
        "a second data set, to see what a tuned model has forgotten; needs --baseline",
        group="evaluate",
        min_length=1,
    )
    k: Annotated[list[PositiveInt], BeforeValidator(lambda v: v if isinstance(v, list) else [v])] = option(
        [1, 5, 10, 100], "cut-offs of the metrics", group="evaluate"
    )
    metric: str | None = option(
        None, "metric of the verdict; default: ndcg@10, or ndcg at the first of --k", group="evaluate"
    )
    sample_size: int | None = option(
        None, "number of queries, drawn at random; default: all. All passages are searched", group="evaluate", ge=1
    )
    faiss_index: str | None = option(
        None,
        "search with this FAISS index, named as FAISS's index factory does (HNSW32); default: exact search",
        group="evaluate",
    )
    dims: Annotated[list[PositiveInt] | None, BeforeValidator(as_list)] = option(
        None,
        "also score vectors cut to these numbers of dimensions, and list their bytes; default: the training's "
        "matryoshka_dims",
        group="evaluate",
    )
    precisions: Annotated[list[Precision] | None, BeforeValidator(as_list)] = option(
        None,
        "also score vectors in these precisions; default: the training's embedding_precisions",
        group="evaluate",
    )
    output: str | None = option(None, "JSON file for the result", group="evaluate", min_length=1)
    html: str | None = option(None, "HTML page for the result, with plots", group="evaluate", min_length=1)
    device: Device = option("auto", "where to compute", group="evaluate")
    dtype: Dtype = option("float32", HALF, group="evaluate")
    overwrite: bool = option(False, "replace the output files", group="evaluate")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="evaluate")


def run(options: EvaluateOptions) -> int:
    """`embedrag evaluate`: a table on the screen; with `--output` a JSON file, with `--html` a page."""
    from pathlib import Path

    from embedrag.data.retrieval_dataset import folder_and_split
    from embedrag.evaluation.report.html import write_html
    from embedrag.runtime.files import check_targets, write_atomic

    check_targets(
        {"output": options.output, "html": options.html},
        [
            *(folder_and_split(name)[0] for name in (options.data, options.general_data or "")),
            options.model,
            options.baseline,
        ],
        options.overwrite,
    )
    evaluation = embedrag.evaluate(**options.model_dump(exclude={"output", "html", "overwrite"}))
    for line in evaluation.lines():
        say(line)
    if options.output:
        write_atomic(Path(options.output).expanduser(), evaluation.to_json())
    if options.html:
        write_html(evaluation.to_dict(), Path(options.html).expanduser())
    return 0


COMMAND = Command(EvaluateOptions, run, "score a model on a retrieval set")
