"""What the page of an evaluation shows besides the metrics: single queries, histograms, the map, the training curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.evaluation.evaluator import Scores

SHOWN = 10  # number of queries that gained most, and of queries that lost most
EDGES = np.linspace(-1, 1, 81)  # of the bins of the histograms
LONGEST = 2000  # characters of a text in a result


def gains_and_losses(
    base: Scores, tuned: Scores, data: RetrievalDataset, metric: str
) -> dict[str, list[dict[str, Any]]]:
    """The queries that gained most (`won`) and those that lost most (`lost`), with each model's first passage."""
    gain = tuned.metrics[metric] - base.metrics[metric]
    order = np.argsort(-gain, kind="stable")

    def row(query: int) -> dict[str, Any]:
        relevant = data.relevant[query]
        return {
            "query": data.queries[query][:LONGEST],
            "base": float(base.metrics[metric][query]),
            "tuned": float(tuned.metrics[metric][query]),
            "relevant": data.passages[max(relevant, key=lambda n: relevant[n])][:LONGEST] if relevant else "",
            "base_first": data.passages[base.first[query]][:LONGEST],
            "tuned_first": data.passages[tuned.first[query]][:LONGEST],
        }

    return {
        "won": [row(int(query)) for query in order[:SHOWN] if gain[query] > 0],
        "lost": [row(int(query)) for query in order[::-1][:SHOWN] if gain[query] < 0],
    }


def training_curve(model: Path, metric: str) -> list[dict[str, Any]]:
    """Losses, and the metric if it was measured, of the run that made a model; empty without the run's log."""
    try:
        folder = model.expanduser().resolve(strict=True).parent
        log = json.loads((folder / "detailed_training_logs.json").read_text(encoding="utf-8"))
        rows = [{"step": row["global_step"], "loss": row["loss"]} for row in log["step_logs"]]
        measured = [row for row in log.get("eval_logs", []) if metric in row]
        return rows + [{"step": row["global_step"], "loss": None, metric: row[metric]} for row in measured]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def histograms(scores: Scores) -> dict[str, list[int]]:
    """Numbers of positive and negative cosines in each bin of `EDGES`."""
    return {
        name: np.histogram(np.clip(values, -1, 1), EDGES)[0].tolist()
        for name, values in (("positive", scores.positive), ("negative", scores.negative))
    }


def map_points(scores: Scores, data: RetrievalDataset) -> list[dict[str, Any]]:
    """Queries and their passages in the plane of largest variance (PCA)."""
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
