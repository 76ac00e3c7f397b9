"""How a model ranks the passages of a retrieval set for each query.

The search is exact unless FAISS is asked for. Passages are searched block by block while they are encoded, so memory
holds their texts but not their vectors. A text that is there several times is encoded once, so all its passages have
the same score.

Letters: q queries, m passages of a block, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.evaluation.metrics import METRICS
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.encoder import TEXTS_PER_BLOCK, TextEncoder
from embedrag.retrieval.topk import TopK, cosines, search_faiss
from embedrag.retrieval.vector_cache import unit
from embedrag.runtime.console import console
from embedrag.runtime.distributed import ProcessGroup

MAPPED = 150  # queries on the 2-D map, at most
SEED = 0  # of the draws of wrong passages and of queries for the map


@dataclass(frozen=True)
class Scores:
    """How a model ranks the passages for each query.

    Attributes:
        metrics: name of each metric, such as `ndcg@10` -> [q].
        first: [q] number of the passage that is ranked first.
        positive: cosines of queries with their relevant passages.
        negative: cosines of queries with wrong passages: the labelled ones; if there are none, random ones, as many as
            there are relevant passages.
        triplets: share of all (query, relevant, wrong) in which the relevant passage has the higher cosine.
        places: (query, one of its relevant passages) for the map.
        vectors: [2 * places, D] of these, queries first.
        forms: embedding formats, and the mean of each metric for vectors in this format.
    """

    metrics: dict[str, np.ndarray]
    first: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    triplets: float
    places: list[tuple[int, int]]
    vectors: np.ndarray
    forms: list[tuple[EmbeddingFormat, dict[str, float]]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Mean of each metric and of the cosines; figures that need wrong passages are left out if there are none."""
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
    encoder: TextEncoder,
    data: RetrievalDataset,
    cutoffs: Sequence[int],
    title: str = "",
    faiss_index: str | None = None,
    processes: ProcessGroup = ProcessGroup(),  # noqa: B008 - immutable
    forms: Sequence[EmbeddingFormat] = (),
) -> Scores:
    """Rank the passages for each query, and compare the ranking with what is relevant.

    Args:
        encoder: the model.
        data: q queries and their passages.
        cutoffs: the k of the metrics.
        title: of the progress bar.
        faiss_index: search with this FAISS index, named as for FAISS's index factory; None: search exactly.
        processes: they share the encoding, and all get the same scores.
        forms: embedding formats that are scored too; their search is always exact.

    Raises:
        RunError: when the model gives a vector that is not finite.
        UserError: when FAISS is missing or does not know the index.
    """
    distinct, places = _distinct(data)
    depth = max(cutoffs) + bool(data.own)
    texts = len(distinct.queries) + len(distinct.passages)
    bar = console.progress(texts, "text", desc=title, leave=False, disable=not processes.main)
    queries = unit(np.concatenate(list(_vectors(encoder, data.queries, "query", bar.update, processes))))
    pairs = _Pairs(distinct, queries)
    place = "cuda" if encoder.device.type == "cuda" else "cpu"
    others = [TopK(_compared(form, queries), depth, place) for form in forms]

    def passages() -> Iterator[np.ndarray]:
        for block in _vectors(encoder, distinct.passages, "passage", bar.update, processes):
            vectors = unit(block)
            pairs.see(vectors)
            for form, top in zip(forms, others, strict=True):
                top.add(_compared(form, vectors))
            yield vectors

    if faiss_index:
        result = search_faiss(queries, passages(), min(depth, len(distinct.passages)), faiss_index)
    else:
        top = TopK(queries, depth, place)
        for block in passages():
            top.add(block)
        result = top.result()
    bar.close()
    found = _rankings(*result, data, places, max(cutoffs))
    of_forms = [_metrics(_rankings(*top.result(), data, places, max(cutoffs)), data, cutoffs) for top in others]
    means = [{name: float(values.mean()) for name, values in metrics.items()} for metrics in of_forms]
    positive, negative, triplets, mapped, vectors = pairs.result()
    return Scores(
        _metrics(found, data, cutoffs),
        np.array([next(iter(numbers), 0) for numbers in found]),
        positive,
        negative,
        triplets,
        [(query, places[passage][0]) for query, passage in mapped],
        vectors,
        forms=list(zip(forms, means, strict=True)),
    )


def _compared(form: EmbeddingFormat, vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, D] in a format, as `TopK` compares them: whole numbers, or float32 of length 1."""
    found = form.of(vectors)
    return found if found.dtype == np.int8 else unit(found)


def _distinct(data: RetrievalDataset) -> tuple[RetrievalDataset, list[list[int]]]:
    """The same data with each text once among the passages, and for each of these its numbers in `data`."""
    numbers: dict[str, list[int]] = {}
    for number, text in enumerate(data.passages):
        numbers.setdefault(text, []).append(number)
    if len(numbers) == len(data.passages):
        return data, list(numbers.values())
    place = {number: index for index, same in enumerate(numbers.values()) for number in same}
    relevant: list[dict[int, float]] = []
    for gains in data.relevant:
        relevant.append({})
        for number, gain in gains.items():
            relevant[-1][place[number]] = max(gain, relevant[-1].get(place[number], 0.0))
    negatives = [
        [index for index in dict.fromkeys(place[number] for number in wrong) if index not in right]
        for wrong, right in zip(data.negatives, relevant, strict=True)
    ]
    return replace(data, passages=list(numbers), relevant=relevant, negatives=negatives), list(numbers.values())


def _rankings(
    found: np.ndarray, scores: np.ndarray, data: RetrievalDataset, places: list[list[int]], k: int
) -> list[list[int]]:
    """[q] numbers of the k best passages of each query, best first.

    Args:
        found: [q, at least k] distinct texts, best first.
        scores: of these.
        data: what is searched.
        places: the passages of each distinct text.
        k: passages of a ranking, at most. The passage that is the query itself is not among them.
    """
    if len(places) == len(data.passages):
        rankings = found.tolist()
    else:
        rankings = [
            [
                number
                for _, number in sorted((-score, n) for text, score in zip(*row, strict=True) for n in places[text])
            ]
            for row in zip(found.tolist(), scores.tolist(), strict=True)
        ]
    own = (data.own.get(query) for query in range(len(rankings)))
    return [[number for number in row if number != itself][:k] for row, itself in zip(rankings, own, strict=True)]


def _metrics(found: Sequence[Sequence[int]], data: RetrievalDataset, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Name of each metric -> [q], of the passages that were found, best first."""
    gains = [[rel.get(number, 0.0) for number in numbers] for numbers, rel in zip(found, data.relevant, strict=True)]
    relevant = [[*rel.values(), *data.missing.get(query, ())] for query, rel in enumerate(data.relevant)]
    judged = list(zip(gains, relevant, strict=True))
    return {
        f"{name}@{k}": np.array([metric(got, rel, k) for got, rel in judged])
        for name, metric in METRICS.items()
        for k in cutoffs
    }


def _vectors(
    encoder: TextEncoder, texts: Sequence[str], role: str, progress: Callable[[int], object], processes: ProcessGroup
) -> Iterator[np.ndarray]:
    """Vectors of all texts in blocks, in order; of several processes, each encodes its share of each block."""
    size = 1 if encoder.sharded else processes.size  # with sharded weights all compute the same texts, in lockstep
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
    """Cosines of labelled pairs, and vectors for the map, collected while the passages are encoded block by block."""

    def __init__(self, data: RetrievalDataset, queries: np.ndarray) -> None:
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
        self._places = [(int(query), next(iter(data.relevant[query]))) for query in picked if data.relevant[query]]
        self._kept: dict[int, np.ndarray] = {}
        self._wanted = {passage for _, passage in self._places}
        self._queries, self._seen = queries, 0

    @staticmethod
    def _drawn(passages: int, relevant: dict[int, float], draw: np.random.Generator) -> list[int]:
        """Random wrong passages, as many as there are relevant ones, or all if there are fewer."""
        if 2 * len(relevant) >= passages:
            return [number for number in range(passages) if number not in relevant]
        found: dict[int, None] = {}
        while len(found) < len(relevant):
            number = int(draw.integers(passages))
            if number not in relevant:
                found[number] = None
        return list(found)

    def see(self, block: np.ndarray) -> None:
        """Use the vectors of the next passages, [m, D]."""
        start, stop = np.searchsorted(self._passage, [self._seen, self._seen + len(block)])
        rows = slice(start, stop)
        self._cosines[rows] = cosines(self._queries[self._query[rows]], block[self._passage[rows] - self._seen])
        self._kept |= {n: block[n - self._seen] for n in self._wanted if self._seen <= n < self._seen + len(block)}
        self._seen += len(block)

    def result(self) -> tuple[np.ndarray, np.ndarray, float, list[tuple[int, int]], np.ndarray]:
        """The fields of `Scores` from `positive` to `vectors`."""
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
