"""`embedrag evaluate`: score a model, and tell whether it is better than another one; both answer the same queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedrag.commands import EvaluateOptions
from embedrag.data.retrieval_dataset import load_set
from embedrag.errors import UserError, flag_named
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.metrics import METRICS
from embedrag.evaluation.report.html import write_html
from embedrag.evaluation.result import forgetting, lines, outcome, training_curve
from embedrag.models.base_model import check_local_path
from embedrag.models.embedding_format import View
from embedrag.models.load import adapter_file, load_encoder, model_settings
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_atomic


def run(options: EvaluateOptions) -> int:
    """`embedrag evaluate`: a table on the screen; with `--output` a JSON file, with `--html` a page."""
    metric = options.metric or f"ndcg@{10 if 10 in options.k else options.k[0]}"
    known = [f"{name}@{k}" for name in METRICS for k in options.k]
    if metric not in known:
        raise UserError(f"--metric {metric}: not among those that are computed, {', '.join(known)}")
    check_targets(
        {"--output": options.output, "--html": options.html},
        [options.data, options.general_data, options.model, options.baseline],
        options.overwrite,
    )
    for flag, name in (("--model", options.model), ("--baseline", options.baseline)):
        if name and not adapter_file(Path(name).expanduser()):
            with flag_named(flag, "--model_name_or_path"):
                check_local_path(name)
    data = load_set(options.data, options.sample_size)
    general = load_set(options.general_data, flag="--general_data") if options.general_data else None
    left_out = f"; {data.skipped:,} queries without a relevant passage are left out" if data.skipped else ""
    say(f"data: {len(data.queries):,} queries, {len(data.passages):,} passages from {options.data}{left_out}")
    of_both: dict[str, Any] = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    encoder = load_encoder(options.model, options.device, base_name=options.base_model_path, **of_both)
    tuned = score(encoder, data, options.k, "model", options.faiss_index, forms=_forms(options, encoder.dimension))
    tuned_general = score(encoder, general, options.k, "model, general") if general else None
    del encoder
    base = base_general = None
    if options.baseline:
        encoder = load_encoder(options.baseline, options.device, **of_both)
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


def _forms(options: EvaluateOptions, dimension: int) -> list[View]:
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
    return [View(dim, name) for dim in sorted({dimension, *dims}, reverse=True) for name in precisions]
