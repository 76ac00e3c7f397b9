"""How good a model is on a retrieval set and, with a baseline, whether it is better.

`evaluate` encodes and ranks. `Evaluation` is the result. It can be shown as text for a terminal, as JSON, and as a page
(`embedrag.evaluation.report`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from embedrag import __version__
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset, sample_queries
from embedrag.errors import UserError, all_problems, check_choice
from embedrag.evaluation.details import EDGES, gains_and_losses, histograms, map_points, training_curve
from embedrag.evaluation.evaluator import Scores, score
from embedrag.evaluation.metrics import metric_names
from embedrag.evaluation.report.html import write_html
from embedrag.evaluation.report.plots import drawings
from embedrag.evaluation.significance import comparison, sentence, table
from embedrag.models.embedding_format import DTYPES, EmbeddingFormat
from embedrag.models.encoder import TextEncoder
from embedrag.models.load import check_model_path, load_model, model_settings
from embedrag.options.field import as_list
from embedrag.runtime.console import say
from embedrag.runtime.files import write_atomic


@dataclass(frozen=True)
class Forgetting:
    """What a tuned model has lost, or gained, on general data.

    Attributes:
        data: name of the general retrieval set.
        queries: number of its queries.
        comparison: see `Evaluation.comparison`.
        verdict: see `Evaluation.verdict`.
    """

    data: str
    queries: int
    comparison: list[dict[str, Any]]
    verdict: str

    @classmethod
    def of(cls, data: str, metric: str, scores: Scores, baseline_scores: Scores) -> Forgetting:
        """Compare a model with its baseline on general data.

        Args:
            data: name of the data.
            metric: the metric of the verdict.
            scores: of the model.
            baseline_scores: of the baseline, on the same queries.
        """
        rows = comparison(baseline_scores.metrics, scores.metrics)
        return cls(data, len(scores.first), rows, _row(rows, metric)["verdict"])


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on a retrieval set and, with a baseline, whether it is better.

    Attributes:
        model: name of the model.
        data: name of the retrieval set.
        queries: number of its queries.
        passages: number of its passages.
        metric: the metric of the verdict, such as `ndcg@10`.
        metrics: name of each metric -> its mean over the queries; also figures of the cosines.
        scores: the same query by query: `scores.metrics["ndcg@10"]` is [q].
        forms: one row for each embedding format: dimensions, precision, bytes of a vector, and the metrics.
        baseline: name of the model that it is compared with; None: it is not compared.
        baseline_metrics: see `metrics`; empty without a baseline.
        baseline_scores: see `scores`; None without a baseline.
        comparison: one row for each metric: both means, the difference with its 95 % interval, p-value and verdict.
        verdict: `better`, `worse` or `no clear difference`; None without a baseline.
        forgetting: the comparison on general data; None without such data.
        details: what the page shows besides: histograms, map, training curve, single queries, date and versions.
    """

    model: str
    data: str
    queries: int
    passages: int
    metric: str
    metrics: dict[str, float]
    scores: Scores
    forms: list[dict[str, Any]] = field(default_factory=list)
    baseline: str | None = None
    baseline_metrics: dict[str, float] = field(default_factory=dict)
    baseline_scores: Scores | None = None
    comparison: list[dict[str, Any]] = field(default_factory=list)
    verdict: str | None = None
    forgetting: Forgetting | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        retrieval: RetrievalDataset,
        metric: str,
        scores: Scores,
        baseline_scores: Scores | None = None,
        *,
        model: str,
        data: str,
        baseline: str | None = None,
        forgetting: Forgetting | None = None,
    ) -> Evaluation:
        """Build the result from scores.

        Args:
            retrieval: the queries and passages that the scores were measured on.
            metric: the metric of the verdict.
            scores: of the model.
            baseline_scores: of the model that it is compared with.
            model: name of the model; if it is a folder of a run, the run's training curve is read.
            data: name of the retrieval set.
            baseline: name of the model that it is compared with.
            forgetting: the comparison on general data.
        """
        size = scores.vectors.shape[1]
        details: dict[str, Any] = {
            "curve": training_curve(Path(model), metric),
            "histograms": {"edges": EDGES.tolist(), "model": histograms(scores)},
            "map": {"points": map_points(scores, retrieval)},
            "date": date.today().isoformat(),
            "versions": {"embedrag": __version__, "torch": version("torch"), "transformers": version("transformers")},
        }
        compared: dict[str, Any] = {}
        if baseline_scores:
            rows = comparison(baseline_scores.metrics, scores.metrics)
            compared = {
                "baseline_metrics": baseline_scores.summary(),
                "baseline_scores": baseline_scores,
                "comparison": rows,
                "verdict": _row(rows, metric)["verdict"],
            }
            details["histograms"]["baseline"] = histograms(baseline_scores)
            details |= gains_and_losses(baseline_scores, scores, retrieval, metric)
        return cls(
            model=model,
            data=data,
            queries=len(retrieval.queries),
            passages=len(retrieval.passages),
            metric=metric,
            metrics=scores.summary(),
            scores=scores,
            forms=[
                {"dim": form.dim or size, "precision": form.precision, "bytes": form.bytes(size), **means}
                for form, means in scores.forms
            ],
            baseline=baseline,
            forgetting=forgetting,
            details=details,
            **compared,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything except the scores of single queries, as in the JSON file of `embedrag evaluate --output`."""
        shown = dict(self.details)
        result: dict[str, Any] = {"model": self.model, "data": self.data, "curve": shown.pop("curve")}
        if self.baseline is not None:
            result["baseline"] = self.baseline
        examples: dict[str, Any] = {name: shown.pop(name) for name in ("won", "lost") if name in shown}
        result |= {"queries": self.queries, "passages": self.passages, "metric": self.metric, **self.metrics, **shown}
        if self.forms:
            result["forms"] = self.forms
        if self.comparison:
            result |= {"baseline_metrics": self.baseline_metrics, "comparison": self.comparison}
            result |= {"verdict": self.verdict, **examples}
        if self.forgetting:
            result["general"] = vars(self.forgetting)
        return result

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def write(self, folder: Path) -> None:
        """Write evaluation.json, and evaluation.html for people, into a folder.

        Raises:
            RunError: when the file can't be written.
        """
        write_atomic(folder / "evaluation.json", self.to_json())
        write_html(self.to_dict(), folder / "evaluation.html")

    def plots(self) -> dict[str, Any]:
        """The plots of the page as Plotly figures, by name, for a notebook (`evaluation.plots()["bars"].show()`)."""
        return drawings(self.to_dict())

    def lines(self) -> Iterator[str]:
        """The result as text for a terminal; with a baseline, the last line is the verdict."""
        if not self.comparison:
            yield tabulate([[name, f"{value:.4f}"] for name, value in self.metrics.items()], disable_numparse=True)
        if self.forms:
            rows = [[form["dim"], form["precision"], form["bytes"], f"{form[self.metric]:.4f}"] for form in self.forms]
            headers = ["dimensions", "precision", "bytes a vector", self.metric]
            yield tabulate(rows, headers, "github", disable_numparse=True)
        if not self.comparison:
            return
        yield table(self.comparison)
        if self.forgetting:
            row = _row(self.forgetting.comparison, self.metric)
            yield f"general data ({self.forgetting.data}): {sentence(row, self.forgetting.queries)}"
        yield f"verdict: {sentence(_row(self.comparison, self.metric), self.queries)}"


def evaluate(
    model: TextEncoder | str | Path,
    data: RetrievalDataset | str | Path,
    *,
    baseline: TextEncoder | str | Path | None = None,
    general_data: RetrievalDataset | str | Path | None = None,
    k: int | Sequence[int] = (1, 5, 10, 100),
    metric: str | None = None,
    sample_size: int | None = None,
    faiss_index: str | None = None,
    dims: int | Sequence[int] | None = None,
    precisions: str | Sequence[str] | None = None,
    base_model_path: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> Evaluation:
    """Measure how well a model finds relevant passages, and whether it does so better than another one.

    Args:
        model: the model, or its folder or hub id.
        data: the retrieval set, or what `load_retrieval_dataset` reads.
        baseline: a model to compare with, usually the one that `model` was trained from.
        general_data: a second retrieval set, to see what a tuned model has forgotten; it needs `baseline`.
        k: cut-offs of the metrics.
        metric: the metric of the verdict; None: `ndcg@10`, or nDCG at the first of `k` when 10 is not among them.
        sample_size: draw this many queries at random, always the same; all passages stay. None: all queries.
        faiss_index: search with this FAISS index, named as for FAISS's index factory (`HNSW32`); None: exact search.
        dims: also score vectors cut to these numbers of dimensions; None: those that the model was trained for.
        precisions: also score vectors in these precisions; None: those that the model was trained for.
        base_model_path: base of an adapter, when it has moved.
        device: where to compute: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation: `auto`, `float32`, `float16` or `bfloat16`.
        trust_remote_code: run Python code that comes with the models.

    Returns:
        Metrics, scores of each query and, with a baseline, the verdict.

    Raises:
        UserError: naming the argument that is wrong, or file and line of the data.
        RunError: when a model gives vectors that are not finite.

    Example:
        ```python
        evaluation = embedrag.evaluate("merged", "rows.jsonl", baseline="base", k=[10])
        evaluation.metrics["ndcg@10"], evaluation.verdict
        ```
    """
    cutoffs = [k] if isinstance(k, int) else list(k)
    if min(cutoffs, default=0) < 1:
        raise UserError("must be one or several cut-offs, of 1 or more", "k", cutoffs or None)
    metric = metric or f"ndcg@{10 if 10 in cutoffs else cutoffs[0]}"
    check_choice("metric", metric, metric_names(cutoffs))
    if general_data is not None and baseline is None:
        raise UserError(
            "only a comparison with a `baseline` shows what was forgotten; name one",
            "general_data",
            _name(general_data),
        )
    sizes, further = as_list(dims), as_list(precisions)
    for precision in further or ():
        check_choice("precisions", precision, DTYPES)
    opened: dict[str, RetrievalDataset] = {}

    def open_data(argument: str, source: RetrievalDataset | str | Path, size: int | None) -> None:
        opened[argument] = _opened(source, argument, size)

    paths = [(name, one) for name, one in (("model", model), ("baseline", baseline)) if isinstance(one, (str, Path))]
    checks: list[Callable[[], object]] = [partial(check_model_path, one, name) for name, one in paths]
    checks.append(partial(open_data, "data", data, sample_size))
    if general_data is not None:
        checks.append(partial(open_data, "general_data", general_data, None))
    all_problems(checks)
    retrieval, general = opened["data"], opened.get("general_data")
    left_out = (
        f"; {retrieval.skipped:,} queries are left out because no passage answers them" if retrieval.skipped else ""
    )
    counts = f"{len(retrieval.queries):,} queries, {len(retrieval.passages):,} passages"
    say(f"data: {counts} from {_name(data)}{left_out}")

    def measured(one: TextEncoder | str | Path, argument: str) -> tuple[Scores, Scores | None]:
        encoder = one
        if isinstance(encoder, (str, Path)):
            base = base_model_path if argument == "model" else None
            encoder = load_model(encoder, device, dtype, base, trust_remote_code, argument=argument)
        forms = _forms(_name(one), sizes, further, encoder.dimension) if argument == "model" else []
        scores = score(encoder, retrieval, cutoffs, argument, faiss_index, forms=forms)
        return scores, score(encoder, general, cutoffs, f"{argument}, general") if general else None

    tuned, tuned_general = measured(
        model, "model"
    )  # a model that was opened here is closed before the next one is opened
    base, base_general = (None, None) if baseline is None else measured(baseline, "baseline")
    forgetting = None
    if general_data is not None and tuned_general and base_general:
        forgetting = Forgetting.of(_name(general_data), metric, tuned_general, base_general)
    return Evaluation.of(
        retrieval,
        metric,
        tuned,
        base,
        model=_name(model),
        data=_name(data),
        baseline=None if baseline is None else _name(baseline),
        forgetting=forgetting,
    )


def _row(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return next(row for row in rows if row["metric"] == metric)


def _name(source: TextEncoder | RetrievalDataset | str | Path) -> str:
    if isinstance(source, RetrievalDataset):
        return f"{len(source.queries):,} queries in memory"
    return source.name if isinstance(source, TextEncoder) else str(source)


def _opened(data: RetrievalDataset | str | Path, argument: str, sample_size: int | None = None) -> RetrievalDataset:
    if isinstance(data, RetrievalDataset):
        return data if sample_size is None else sample_queries(data, sample_size)
    return load_retrieval_dataset(data, sample_size, argument)


def _forms(
    name: str, dims: Sequence[int] | None, precisions: Sequence[str] | None, dimension: int
) -> list[EmbeddingFormat]:
    """The formats that the caller asks for, otherwise those that the model was trained for.

    Every number of dimensions is combined with every precision.

    Raises:
        UserError: when a size is larger than the model's vectors.
    """
    path = Path(name).expanduser()
    trained = model_settings(path.parent if path.is_file() else path)
    sizes = dims or trained.get("matryoshka_dims") or []
    further = precisions or trained.get("embedding_precisions") or []
    if not sizes and not further:
        return []
    if sizes and not 1 <= min(sizes) <= max(sizes) <= dimension:
        raise UserError(f"must be from 1 to {dimension}, the dimensions of the model's vectors", "dims", sizes)
    names = dict.fromkeys(["float32", *further])
    return [EmbeddingFormat(dim, name) for dim in sorted({dimension, *sizes}, reverse=True) for name in names]
