"""`embedrag evaluate`: score a model, and tell whether it is better than another one; both answer the same queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt, model_validator

from embedrag.data.retrieval_dataset import load_retrieval_dataset
from embedrag.errors import UserError
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.metrics import METRICS
from embedrag.evaluation.report.html import write_html
from embedrag.evaluation.result import forgetting, lines, outcome, training_curve
from embedrag.models.base_model import check_local_path
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.load import adapter_file, load_model, model_settings
from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, Precision, as_list, option
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_atomic


class EvaluateOptions(Options):
    """Options of `embedrag evaluate`."""

    model: str = option(..., "model or adapter folder, or hub id", group="evaluate", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="evaluate")
    baseline: str | None = option(None, "model to compare with, usually the base", group="evaluate")
    data: str = option(
        ...,
        "folder with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR layout), or a file of rows in any shape that "
        "training reads; its passages are then the corpus",
        group="evaluate",
        min_length=1,
    )
    general_data: str | None = option(
        None, "a second set, to see what a tuned model has forgotten (with --baseline)", group="evaluate", min_length=1
    )
    k: Annotated[list[PositiveInt], BeforeValidator(lambda v: v if isinstance(v, list) else [v])] = option(
        [1, 5, 10, 100], "cut-offs of the metrics", group="evaluate"
    )
    metric: str | None = option(
        None, "metric of the verdict; left out: ndcg@10, or ndcg at the first of --k", group="evaluate"
    )
    sample_size: int | None = option(
        None, "so many queries, drawn at random; the passages stay all", group="evaluate", ge=1
    )
    faiss_index: str | None = option(
        None, "search with FAISS, named as its index factory does (HNSW32); left out: exact search", group="evaluate"
    )
    dims: Annotated[list[PositiveInt] | None, BeforeValidator(as_list)] = option(
        None,
        "score vectors cut to so many components too, and list the bytes; left out: matryoshka_dims of the training",
        group="evaluate",
    )
    precisions: Annotated[list[Precision] | None, BeforeValidator(as_list)] = option(
        None, "score vectors in these precisions too; left out: embedding_precisions of the training", group="evaluate"
    )
    output: str | None = option(None, "JSON file for the result", group="evaluate", min_length=1)
    html: str | None = option(None, "HTML page for the result, with plots", group="evaluate", min_length=1)
    device: Device = option("auto", "where to compute", group="evaluate")
    dtype: Dtype = option("float32", HALF, group="evaluate")
    overwrite: bool = option(False, "replace the files", group="evaluate")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="evaluate")

    @model_validator(mode="after")
    def _agree(self) -> EvaluateOptions:
        if self.general_data and not self.baseline:
            raise ValueError("--general_data compares with --baseline; name one")
        return self


def run(options: EvaluateOptions) -> int:
    """`embedrag evaluate`: a table on the screen; with `--output` a JSON file, with `--html` a page."""
    metric = options.metric or f"ndcg@{10 if 10 in options.k else options.k[0]}"
    known = [f"{name}@{k}" for name in METRICS for k in options.k]
    if metric not in known:
        raise UserError(f"--metric {metric}: not among those that are computed, {', '.join(known)}")
    check_targets(
        {"output": options.output, "html": options.html},
        [options.data, options.general_data, options.model, options.baseline],
        options.overwrite,
    )
    for argument, name in (("model", options.model), ("baseline", options.baseline)):
        if name and not adapter_file(Path(name).expanduser()):
            check_local_path(name, argument)
    data = load_retrieval_dataset(options.data, options.sample_size)
    general = load_retrieval_dataset(options.general_data, argument="general_data") if options.general_data else None
    left_out = f"; {data.skipped:,} queries without a relevant passage are left out" if data.skipped else ""
    say(f"data: {len(data.queries):,} queries, {len(data.passages):,} passages from {options.data}{left_out}")
    of_both: dict[str, Any] = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    encoder = load_model(options.model, options.device, base_model_path=options.base_model_path, **of_both)
    tuned = score(encoder, data, options.k, "model", options.faiss_index, forms=_forms(options, encoder.dimension))
    tuned_general = score(encoder, general, options.k, "model, general") if general else None
    del encoder
    base = base_general = None
    if options.baseline:
        encoder = load_model(options.baseline, options.device, argument="baseline", **of_both)
        base = score(encoder, data, options.k, "baseline", options.faiss_index)
        base_general = score(encoder, general, options.k, "baseline, general") if general else None
    result: dict[str, Any] = {"model": options.model, "data": options.data}
    result["curve"] = training_curve(Path(options.model), metric)
    result |= {"baseline": options.baseline} if base else {}
    result |= outcome(data, tuned, base, metric)
    if base_general and tuned_general:
        result["general"] = {"data": options.general_data, **forgetting(base_general, tuned_general, metric)}
    for line in lines(result):
        say(line)
    if options.output:
        write_atomic(Path(options.output).expanduser(), json.dumps(result, indent=2, ensure_ascii=False))
    if options.html:
        write_html(result, Path(options.html).expanduser())
    return 0


def _forms(options: EvaluateOptions, dimension: int) -> list[EmbeddingFormat]:
    """The forms that are asked for, else those that the model was trained for: each dimension in each precision.

    Raises:
        UserError: for more components than there are.
    """
    path = Path(options.model).expanduser()
    trained = model_settings(path.parent if path.is_file() else path)
    dims = options.dims or trained.get("matryoshka_dims") or []
    further = options.precisions or trained.get("embedding_precisions") or []
    if not dims and not further:
        return []
    if max(dims, default=0) > dimension:
        raise UserError(f"--dims {max(dims)}: the model's vectors have {dimension} components")
    precisions = dict.fromkeys(["float32", *further])
    return [EmbeddingFormat(dim, name) for dim in sorted({dimension, *dims}, reverse=True) for name in precisions]


COMMAND = Command(EvaluateOptions, run, "score a model on a retrieval set")
