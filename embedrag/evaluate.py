"""Score a model on a retrieval set, and tell whether it is better than another one.

The search is exact. Passages are searched as they are encoded, so their texts are held and their vectors are not. Both
models answer the same queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from embedrag import __version__
from embedrag.config import EvaluateOptions
from embedrag.contract import check_local_path
from embedrag.encoder import TEXTS_PER_BLOCK, Encoder
from embedrag.errors import UserError, flag_named
from embedrag.files import check_targets, write_atomic
from embedrag.logs import say
from embedrag.metrics import METRICS
from embedrag.processes import Processes
from embedrag.report import write_html
from embedrag.retrieval import RetrievalSet, load_set
from embedrag.saved import adapter_file, load_encoder
from embedrag.search import TopK, search_faiss
from embedrag.vectors import unit
from embedrag.verdict import comparison, table

MAPPED = 150  # queries on the 2-D map
SHOWN = 10  # queries that won most, and that lost most
EDGES = np.linspace(-1, 1, 81)
SEED = 0
LONGEST = 2000  # letters of a text in a result


@dataclass(frozen=True)
class Scores:
    """What a model does on a retrieval set of q queries.

    Attributes:
        metrics: `ndcg@10` and so on -> [q].
        first: [q] the passage that came first.
        positive: cosines of queries with their relevant passages.
        negative: cosines with wrong ones: those that were labelled, else one at random for each relevant passage.
        triplets: share of (query, relevant, wrong) in which the relevant passage scores higher.
        places: (query, one of its relevant passages) of the map.
        vectors: [2 * places, D], queries first.
    """

    metrics: dict[str, np.ndarray]
    first: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    triplets: float
    places: list[tuple[int, int]]
    vectors: np.ndarray

    def summary(self) -> dict[str, float]:
        """Mean of every metric, and the figures of the cosines."""
        positive = float(self.positive.mean())
        means = {name: float(values.mean()) for name, values in self.metrics.items()}
        means["mean_positive_score"] = positive
        if not len(self.negative):
            return means  # every passage is relevant
        negative = float(self.negative.mean())
        return means | {
            "mean_negative_score": negative,
            "mean_difference": positive - negative,
            "triplet_accuracy": self.triplets,
        }


def score(
    encoder: Encoder,
    data: RetrievalSet,
    cutoffs: Sequence[int],
    title: str = "",
    faiss_index: str | None = None,
    processes: Processes = Processes(),  # noqa: B008 - immutable
) -> Scores:
    """Rank the passages for every query, and compare with what is relevant.

    Args:
        encoder: the model.
        data: q queries and their passages.
        cutoffs: the k of the metrics.
        title: of the progress bar.
        faiss_index: search by FAISS, as its index factory names it, and not exactly.
        processes: that share the encoding; all get the same scores.
    """
    bar = tqdm(
        total=len(data.queries) + len(data.passages),
        unit="text",
        desc=title,
        dynamic_ncols=True,
        leave=False,
        disable=not processes.main,
    )
    queries = unit(np.concatenate(list(_vectors(encoder, data.queries, "query", bar.update, processes))))
    pairs = _Pairs(data, queries)

    def passages() -> Iterator[np.ndarray]:
        for block in _vectors(encoder, data.passages, "passage", bar.update, processes):
            vectors = unit(block)
            pairs.see(vectors)
            yield vectors

    if faiss_index:
        found, _ = search_faiss(queries, passages(), max(cutoffs), faiss_index)
    else:
        top = TopK(queries, max(cutoffs), "cuda" if encoder.device.type == "cuda" else "cpu")
        for block in passages():
            top.add(block)
        found, _ = top.result()
    bar.close()
    gains = [[rel.get(int(doc), 0.0) for doc in docs] for docs, rel in zip(found, data.relevant, strict=True)]
    judged = list(zip(gains, [list(rel.values()) for rel in data.relevant], strict=True))
    return Scores(
        {
            f"{name}@{k}": np.array([metric(got, rel, k) for got, rel in judged])
            for name, metric in METRICS.items()
            for k in cutoffs
        },
        found[:, 0],
        *pairs.result(),
    )


def _vectors(
    encoder: Encoder, texts: Sequence[str], role: str, progress: Callable[[int], object], processes: Processes
) -> Iterator[np.ndarray]:
    """Vectors of all texts in blocks, in order; several processes encode a part of each block."""
    size = 1 if encoder.sharded else processes.size  # with weights in parts all compute the same, hand in hand
    if size == 1:
        yield from encoder.blocks(texts, role, progress)
        return
    step = TEXTS_PER_BLOCK * size
    for start in range(0, len(texts), step):
        block = texts[start : start + step]
        bounds = [len(block) * rank // size for rank in (processes.rank, processes.rank + 1)]
        yield np.concatenate(processes.gather(encoder.encode(block[slice(*bounds)], role)))
        progress(len(block))


class _Pairs:
    """Cosines of labelled pairs, and vectors for the map, picked out of the passages as they pass by."""

    def __init__(self, data: RetrievalSet, queries: np.ndarray) -> None:
        draw = np.random.default_rng(SEED)
        rows: list[tuple[int, int, bool]] = []
        for query, (relevant, wrong) in enumerate(zip(data.relevant, data.negatives, strict=True)):
            rows += [(query, passage, True) for passage in relevant]
            wrong = wrong or self._drawn(len(data.passages), relevant, draw)
            rows += [(query, passage, False) for passage in wrong]
        rows.sort(key=lambda row: row[1])
        self._query, self._passage = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
        self._is_positive = np.array([row[2] for row in rows], bool)
        self._cosines = np.zeros(len(rows), np.float32)
        picked = np.sort(draw.permutation(len(data.queries))[:MAPPED])
        self._places = [(int(query), next(iter(data.relevant[query]))) for query in picked]
        self._kept: dict[int, np.ndarray] = {}
        self._wanted = {passage for _, passage in self._places}
        self._queries, self._seen = queries, 0

    @staticmethod
    def _drawn(passages: int, relevant: dict[int, float], draw: np.random.Generator) -> list[int]:
        """As many wrong passages as there are relevant ones, or as there are at all."""
        if 2 * len(relevant) >= passages:
            return [number for number in range(passages) if number not in relevant]
        found: dict[int, None] = {}
        while len(found) < len(relevant):
            number = int(draw.integers(passages))
            if number not in relevant:
                found[number] = None
        return list(found)

    def see(self, block: np.ndarray) -> None:
        """The next passages [m, D]."""
        start, stop = np.searchsorted(self._passage, [self._seen, self._seen + len(block)])
        rows = slice(start, stop)
        self._cosines[rows] = np.einsum(
            "nd,nd->n", self._queries[self._query[rows]], block[self._passage[rows] - self._seen]
        )
        self._kept |= {n: block[n - self._seen] for n in self._wanted if self._seen <= n < self._seen + len(block)}
        self._seen += len(block)

    def result(self) -> tuple[np.ndarray, np.ndarray, float, list[tuple[int, int]], np.ndarray]:
        """The fields of `Scores` from `positive` on."""
        positive, negative = self._cosines[self._is_positive], self._cosines[~self._is_positive]
        right = total = 0
        by_query = np.argsort(self._query, kind="stable")
        for rows in np.split(by_query, np.flatnonzero(np.diff(self._query[by_query])) + 1):
            own = self._cosines[rows[self._is_positive[rows]]]
            wrong = self._cosines[rows[~self._is_positive[rows]]]
            right += int((own[:, None] > wrong[None]).sum())
            total += len(own) * len(wrong)
        vectors = [self._queries[query] for query, _ in self._places] + [self._kept[p] for _, p in self._places]
        return (
            positive,
            negative,
            right / total if total else 0.0,
            self._places,
            np.stack(vectors),
        )


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
    trusted = options.trust_remote_code
    encoder = load_encoder(options.model, options.device, base_name=options.base_model_path, trust_remote_code=trusted)
    tuned = score(encoder, data, options.k, "model", options.faiss_index)
    tuned_general = score(encoder, general, options.k, "model, general") if general else None
    del encoder
    base = base_general = None
    if options.baseline:
        encoder = load_encoder(options.baseline, options.device, trust_remote_code=trusted)
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


def leave(result: dict[str, Any], folder: Path) -> None:
    """Write evaluation.json and evaluation.html, the page, into the folder of a run."""
    write_atomic(folder / "evaluation.json", json.dumps(result, indent=2, ensure_ascii=False))
    write_html(result, folder / "evaluation.html")


def outcome(data: RetrievalSet, tuned: Scores, base: Scores | None, metric: str) -> dict[str, Any]:
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
    if base:
        result |= {"baseline_metrics": base.summary(), "comparison": comparison(base.metrics, tuned.metrics)}
        result["verdict"] = _row(result["comparison"], metric)["verdict"]
        result["histograms"]["baseline"] = _histograms(base)
        result |= winners(base, tuned, data, metric)
    return result


def lines(result: dict[str, Any]) -> Iterator[str]:
    """A result as text."""
    if "comparison" not in result:
        figures = [[name, f"{value:.4f}"] for name, value in result.items() if isinstance(value, float)]
        yield tabulate(figures, disable_numparse=True)
        return
    yield table(result["comparison"])
    metric = result["metric"]
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


def winners(base: Scores, tuned: Scores, data: RetrievalSet, metric: str) -> dict[str, list[dict[str, Any]]]:
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


def _map(scores: Scores, data: RetrievalSet) -> list[dict[str, Any]]:
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
