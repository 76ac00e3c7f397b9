"""What is to be said of a model and its base, as a dictionary, as text and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from embedrag import __version__
from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.evaluation.evaluator import Scores
from embedrag.evaluation.report.html import write_html
from embedrag.evaluation.significance import comparison, table
from embedrag.runtime.files import write_atomic

SHOWN = 10  # queries that won most, and that lost most
EDGES = np.linspace(-1, 1, 81)
LONGEST = 2000  # letters of a text in a result


def leave(result: dict[str, Any], folder: Path) -> None:
    """Write evaluation.json and evaluation.html, the page, into the folder of a run."""
    write_atomic(folder / "evaluation.json", json.dumps(result, indent=2, ensure_ascii=False))
    write_html(result, folder / "evaluation.html")


def outcome(data: RetrievalDataset, tuned: Scores, base: Scores | None, metric: str) -> dict[str, Any]:
    """What is to be said of a model, and of what became of its base.

    Args:
        data: what both were scored on.
        tuned: scores of the model.
        base: of the one that it is compared with.
        metric: that the verdict is about.
    """
    result: dict[str, Any] = {
        "queries": len(data.queries),
        "passages": len(data.passages),
        "metric": metric,
        **tuned.summary(),
        "histograms": {"edges": EDGES.tolist(), "model": _histograms(tuned)},
        "map": {"points": _map(tuned, data)},
        "date": date.today().isoformat(),
        "versions": {"embedrag": __version__, "torch": version("torch"), "transformers": version("transformers")},
    }
    if tuned.forms:
        size = tuned.vectors.shape[1]
        result["forms"] = [
            {"dim": form.dim or size, "precision": form.precision, "bytes": form.bytes(size), **means}
            for form, means in tuned.forms
        ]
    if base:
        result |= {"baseline_metrics": base.summary(), "comparison": comparison(base.metrics, tuned.metrics)}
        result["verdict"] = _row(result["comparison"], metric)["verdict"]
        result["histograms"]["baseline"] = _histograms(base)
        result |= winners(base, tuned, data, metric)
    return result


def lines(result: dict[str, Any]) -> Iterator[str]:
    """A result as text."""
    metric = result["metric"]
    if "comparison" not in result:
        figures = [[name, f"{value:.4f}"] for name, value in result.items() if isinstance(value, float)]
        yield tabulate(figures, disable_numparse=True)
    if "forms" in result:
        rows = [[form["dim"], form["precision"], form["bytes"], f"{form[metric]:.4f}"] for form in result["forms"]]
        yield tabulate(rows, ["components", "precision", "bytes a vector", metric], "github", disable_numparse=True)
    if "comparison" not in result:
        return
    yield table(result["comparison"])
    if "general" in result:
        general = result["general"]
        row = _row(general["comparison"], metric)
        yield f"general data ({general['data']}): {sentence(row, general['queries'])}"
    yield f"verdict: {sentence(_row(result['comparison'], metric), result['queries'])}"


def _row(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return next(row for row in rows if row["metric"] == metric)


def sentence(row: dict[str, Any], queries: int) -> str:
    """A row of a comparison in words."""
    p = "p < 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.3f}"
    return (
        f"{row['verdict']}: {row['metric']} {row['base']:.4f} -> {row['tuned']:.4f}, {row['difference']:+.4f} "
        f"(95 % interval {row['low']:+.4f} … {row['high']:+.4f}, {p}, {queries:,} queries)"
    )


def forgetting(base: Scores, tuned: Scores, metric: str) -> dict[str, Any]:
    """What became of a set that the model was not trained for."""
    rows = comparison(base.metrics, tuned.metrics)
    return {"queries": len(tuned.first), "comparison": rows, "verdict": _row(rows, metric)["verdict"]}


def winners(base: Scores, tuned: Scores, data: RetrievalDataset, metric: str) -> dict[str, list[dict[str, Any]]]:
    """The queries that won most and that lost most, with what each model put first."""
    gain = tuned.metrics[metric] - base.metrics[metric]
    order = np.argsort(-gain, kind="stable")

    def row(query: int) -> dict[str, Any]:
        relevant = data.relevant[query]
        return {
            "query": data.queries[query][:LONGEST],
            "base": float(base.metrics[metric][query]),
            "tuned": float(tuned.metrics[metric][query]),
            "relevant": data.passages[max(relevant, key=lambda number: relevant[number])][:LONGEST],
            "base_first": data.passages[base.first[query]][:LONGEST],
            "tuned_first": data.passages[tuned.first[query]][:LONGEST],
        }

    return {
        "won": [row(int(query)) for query in order[:SHOWN] if gain[query] > 0],
        "lost": [row(int(query)) for query in order[::-1][:SHOWN] if gain[query] < 0],
    }


def training_curve(model: Path, metric: str) -> list[dict[str, Any]]:
    """Losses, and the metric where it was measured, of the run that made a model; empty where no log is beside it."""
    try:
        folder = model.expanduser().resolve(strict=True).parent
        log = json.loads((folder / "detailed_training_logs.json").read_text(encoding="utf-8"))
        rows = [{"step": row["global_step"], "loss": row["loss"]} for row in log["step_logs"]]
        measured = [row for row in log.get("eval_logs", []) if metric in row]
        return rows + [{"step": row["global_step"], "loss": None, metric: row[metric]} for row in measured]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _histograms(scores: Scores) -> dict[str, list[int]]:
    return {
        name: np.histogram(np.clip(values, -1, 1), EDGES)[0].tolist()
        for name, values in (("positive", scores.positive), ("negative", scores.negative))
    }


def _map(scores: Scores, data: RetrievalDataset) -> list[dict[str, Any]]:
    """Queries and their passages in the plane of largest variance."""
    centred = scores.vectors - scores.vectors.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    texts = [data.queries[query] for query, _ in scores.places] + [data.passages[p] for _, p in scores.places]
    half = len(scores.places)
    return [
        {
            "x": float(x),
            "y": float(y),
            "kind": "query" if number < half else "passage",
            "text": text[:LONGEST],
            "pair": number % half,
        }
        for number, ((x, y), text) in enumerate(zip(plane, texts, strict=True))
    ]
