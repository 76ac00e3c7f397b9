"""Score a model on a retrieval set, and tell whether it is better than another one.

Exact search in blocks of both sides, so memory is bounded by the blocks and the vectors. The comparison is paired: both
models answer the same queries, and the interval is a bootstrap over the differences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from embedrag.config import EvaluateOptions
from embedrag.encoder import Encoder
from embedrag.errors import UserError
from embedrag.files import write_atomic
from embedrag.logs import say
from embedrag.metrics import METRICS
from embedrag.saved import load_encoder

BLOCK = 4096
RESAMPLES = 10_000


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, passages and which passages answer which query.

    Attributes:
        queries: texts of the q queries.
        passages: texts of the p passages.
        relevant: for each query, passage number -> gain (above 0).
    """

    queries: list[str]
    passages: list[str]
    relevant: list[dict[int, float]]


def load_beir(folder: str, split: str = "test") -> RetrievalSet:
    """Read a folder in the BEIR layout; queries without a relevant passage are left out.

    Raises:
        UserError: naming file and line.
    """
    root = Path(folder)
    corpus = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in _jsonl(root / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in _jsonl(root / "queries.jsonl")}
    number = {identity: index for index, identity in enumerate(corpus)}
    relevant: dict[str, dict[int, float]] = {}
    path = root / "qrels" / f"{split}.tsv"
    for line, text in enumerate(_lines(path), 1):
        query, document, gain = _judgement(text)
        if line == 1 and gain is None:
            continue  # the header
        if gain is None or query not in queries or document not in number:
            raise UserError(f"{path}:{line}: must be a known query-id, a known corpus-id and a score, tab-separated")
        if gain > 0:
            relevant.setdefault(query, {})[number[document]] = gain
    if not relevant:
        raise UserError(f"{path}: no query has a relevant passage")
    return RetrievalSet([queries[q] for q in relevant], list(corpus.values()), list(relevant.values()))


def search(queries: np.ndarray, passages: np.ndarray, k: int, block: int = BLOCK) -> np.ndarray:
    """The k passages of highest cosine for each query; ties go to the earlier passage.

    Args:
        queries: [q, D], length 1.
        passages: [p, D], length 1.
        k: how many.
        block: rows of both sides that are compared at once.

    Returns:
        [q, min(k, p)] passage numbers, best first.
    """
    k = min(k, len(passages))
    result = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        best = np.empty((len(part), 0), np.float32)
        numbers = np.empty((len(part), 0), np.int64)
        for first in range(0, len(passages), block):
            scores = part @ passages[first : first + block].T
            new = np.broadcast_to(np.arange(first, first + scores.shape[1]), scores.shape)
            best, numbers = np.concatenate([best, scores], 1), np.concatenate([numbers, new], 1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, numbers = np.take_along_axis(best, order, 1), np.take_along_axis(numbers, order, 1)
        result[start : start + block] = numbers
    return result


def score(encoder: Encoder, data: RetrievalSet, cutoffs: Sequence[int], title: str = "") -> dict[str, np.ndarray]:
    """Metrics of a model, query by query.

    Returns:
        `ndcg@10` and so on -> [q].
    """
    bar = tqdm(total=len(data.queries) + len(data.passages), unit="text", desc=title, dynamic_ncols=True)
    queries = _unit(encoder.encode(data.queries, "query", progress=bar.update))
    passages = _unit(encoder.encode(data.passages, "passage", progress=bar.update))
    bar.close()
    found = search(queries, passages, max(cutoffs))
    gains = [[rel.get(int(doc), 0.0) for doc in docs] for docs, rel in zip(found, data.relevant, strict=True)]
    pairs = list(zip(gains, [list(rel.values()) for rel in data.relevant], strict=True))
    return {
        f"{name}@{k}": np.array([metric(got, rel, k) for got, rel in pairs])
        for name, metric in METRICS.items()
        for k in cutoffs
    }


def difference(base: np.ndarray, tuned: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of tuned - base over the queries, and its 95 % bootstrap interval (paired, percentile).

    Args:
        base: [q] of one model.
        tuned: [q] of the other, same queries.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap

    gain = tuned - base
    if len(gain) < 2 or np.ptp(gain) == 0:
        return float(gain.mean()), float(gain.mean()), float(gain.mean())
    generator = np.random.default_rng(seed)
    interval = bootstrap(
        (gain,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=generator
    ).confidence_interval
    return float(gain.mean()), float(interval.low), float(interval.high)


def verdict(low: float, high: float) -> str:
    """In words: better when the whole interval is above 0, worse when below."""
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


def comparison(base: dict[str, np.ndarray], tuned: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row a metric: both means, the difference with its interval, and the verdict."""
    rows = []
    for name in tuned:
        gain, low, high = difference(base[name], tuned[name])
        rows.append(
            {
                "metric": name,
                "base": float(base[name].mean()),
                "tuned": float(tuned[name].mean()),
                "difference": gain,
                "low": low,
                "high": high,
                "verdict": verdict(low, high),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A comparison as text."""
    cells = [
        [
            row["metric"],
            f"{row['base']:.4f}",
            f"{row['tuned']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} … {row['high']:+.4f}",
            row["verdict"],
        ]
        for row in rows
    ]
    headers = ["metric", "base", "tuned", "difference", "95 % interval", "tuned is"]
    return tabulate(cells, headers, disable_numparse=True)


def run(options: EvaluateOptions) -> int:
    """`embedrag evaluate`: a table on the screen and, with `--output`, a JSON file."""
    data = load_beir(options.data)
    say(f"data: {len(data.queries):,} queries, {len(data.passages):,} passages from {options.data}")
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    tuned = score(
        load_encoder(options.model, options.device, base_name=options.base_model_path), data, options.k, "model"
    )
    result: dict[str, Any] = {name: float(values.mean()) for name, values in tuned.items()}
    if options.baseline:
        base = score(load_encoder(options.baseline, options.device), data, options.k, "baseline")
        rows = comparison(base, tuned)
        result["comparison"] = rows
        say(table(rows))
    else:
        say(tabulate([[name, f"{value:.4f}"] for name, value in result.items()], disable_numparse=True))
    if options.output:
        write_atomic(Path(options.output), json.dumps(result, indent=2))
    return 0


def _judgement(line: str) -> tuple[str, str, float | None]:
    """Query, document and gain of a qrels line; no gain when it is not one."""
    try:
        query, document, gain = line.split("\t")
        return query, document, float(gain) if math.isfinite(float(gain)) else None
    except ValueError:
        return "", "", None


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --data needs corpus.jsonl, queries.jsonl, qrels/test.tsv") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            if not isinstance(row["text"], str) or str(row["_id"]) in seen:
                raise ValueError
            seen.add(str(row["_id"]))
            rows.append({"_id": str(row["_id"]), "title": row.get("title"), "text": row["text"]})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{path}:{number}: must be an object with an "_id" of its own and a "text"') from None
    return rows
