"""How a model ranks the passages of a retrieval set for each query.

The search is exact unless FAISS is asked for. Passages are searched block by block while they are encoded, so memory
holds their texts but not their vectors.

Letters: q queries, m passages of a block, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.evaluation.metrics import METRICS
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.encoder import TEXTS_PER_BLOCK, TextEncoder
from embedrag.retrieval.topk import TopK, search_faiss
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
    texts = len(data.queries) + len(data.passages)
    bar = console.progress(texts, "text", desc=title, leave=False, disable=not processes.main)
    queries = unit(np.concatenate(list(_vectors(encoder, data.queries, "query", bar.update, processes))))
    pairs = _Pairs(data, queries)
    place = "cuda" if encoder.device.type == "cuda" else "cpu"
    others = [TopK(unit(form.of(queries)), max(cutoffs), place) for form in forms]

    def passages() -> Iterator[np.ndarray]:
        for block in _vectors(encoder, data.passages, "passage", bar.update, processes):
            vectors = unit(block)
            pairs.see(vectors)
            for form, top in zip(forms, others, strict=True):
                top.add(unit(form.of(vectors)))
            yield vectors

    if faiss_index:
        found, _ = search_faiss(queries, passages(), max(cutoffs), faiss_index)
    else:
        top = TopK(queries, max(cutoffs), place)
        for block in passages():
            top.add(block)
        found, _ = top.result()
    bar.close()
    of_forms = [_metrics(top.result()[0], data, cutoffs) for top in others]
    means = [{name: float(values.mean()) for name, values in metrics.items()} for metrics in of_forms]
    return Scores(
        _metrics(found, data, cutoffs), found[:, 0], *pairs.result(), forms=list(zip(forms, means, strict=True))
    )


def _metrics(found: np.ndarray, data: RetrievalDataset, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Name of each metric -> [q], of the passages that were found, [q, k]."""
    gains = [[rel.get(int(doc), 0.0) for doc in docs] for docs, rel in zip(found, data.relevant, strict=True)]
    judged = list(zip(gains, [list(rel.values()) for rel in data.relevant], strict=True))
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
        self._places = [(int(query), next(iter(data.relevant[query]))) for query in picked]
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
        self._cosines[rows] = np.einsum(
            "nd,nd->n", self._queries[self._query[rows]], block[self._passage[rows] - self._seen]
        )
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
