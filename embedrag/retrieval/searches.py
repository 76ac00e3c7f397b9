"""Searches for mining: they rank the passages of a corpus for training rows, by the vectors of a model or by words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedrag.data.rows import TrainingRow
from embedrag.models.encoder import Encoder
from embedrag.retrieval.bm25 import Bm25
from embedrag.retrieval.corpus import Corpus
from embedrag.retrieval.topk import TopK, best_of, cosines
from embedrag.retrieval.vector_cache import cached_vectors, unit
from embedrag.runtime.console import say


@dataclass(frozen=True)
class SearchResult:
    """What a search finds for one row.

    Attributes:
        numbers: passages of the corpus, best first.
        scores: of these passages.
        positives: score of each positive of the row.
    """

    numbers: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


Search = Callable[[Sequence[TrainingRow], int], Iterator[SearchResult]]  # (rows, passages for each) -> a result a row


def dense_search(corpus: Corpus, encoder: Encoder, cache: Path) -> Search:
    """A search by the vectors of a model.

    Args:
        corpus: the passages.
        encoder: the model.
        cache: folder in which the vectors of the corpus are kept.
    """
    vectors, found = cached_vectors(encoder, corpus.texts, "passage", cache)
    say(f"corpus: vectors of {vectors.shape[1]} dimensions, {'found' if found else 'kept'} in the cache")

    def search(block: Sequence[TrainingRow], depth: int) -> Iterator[SearchResult]:
        queries = unit(encoder.encode([row.query for row in block], "query"))
        top = TopK(queries, depth, "cuda" if encoder.device.type == "cuda" else "cpu")
        top.add(vectors)
        positives = _positive_vectors(block, corpus, vectors, encoder)
        for row, (numbers, scores) in enumerate(zip(*top.result(), strict=True)):
            own = np.stack([positives[text] for text in block[row].pos])
            yield SearchResult(numbers, scores, cosines(queries[row], own))

    return search


def lexical_search(corpus: Corpus, rows: Iterable[TrainingRow]) -> Search:
    """A search by words (BM25).

    Args:
        corpus: the passages.
        rows: all rows. Positives that the corpus lacks are indexed too, so that they have scores; a search never
            returns them.
    """
    others = {text: None for row in rows for text in row.pos if corpus.number(text) is None}
    places = {text: len(corpus.texts) + number for number, text in enumerate(others)}
    index = Bm25([*corpus.texts, *others])
    say(f"corpus: ranked by words (BM25, analyzer {index.analyzer})")

    def search(block: Sequence[TrainingRow], depth: int) -> Iterator[SearchResult]:
        for row in block:
            scores = index.scores(row.query)
            own = [places[text] if text in places else corpus.number(text) or 0 for text in row.pos]
            numbers = best_of(scores[: len(corpus.texts)], depth)
            numbers = numbers[scores[numbers] > 0]  # the rest shares no word with the query
            yield SearchResult(numbers, scores[numbers], scores[own])

    return search


def _positive_vectors(
    block: Sequence[TrainingRow], corpus: Corpus, vectors: np.ndarray, encoder: Encoder
) -> dict[str, np.ndarray]:
    """The vector of each positive: from the corpus if the corpus has the text, otherwise a new one."""
    places = {text: corpus.number(text) for row in block for text in row.pos}
    new = [text for text, place in places.items() if place is None]
    found = dict(zip(new, unit(encoder.encode(new, "passage")), strict=True))
    known = [(text, place) for text, place in places.items() if place is not None]
    return found | dict(zip((t for t, _ in known), vectors[[place for _, place in known]], strict=True))
