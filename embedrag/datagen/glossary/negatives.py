"""The passages that are nearest to a query: by words (BM25), or by the vectors of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from embedrag.datagen.glossary.tables import bare
from embedrag.models.encoder import TextEncoder
from embedrag.retrieval.bm25 import Bm25
from embedrag.retrieval.topk import TopK, best_of
from embedrag.retrieval.vector_cache import unit


def by_words(queries: Sequence[str], passages: Sequence[str], depth: int) -> Iterator[np.ndarray]:
    """Numbers of the nearest passages of each query, the nearest first. A passage that shares no word is left out.

    Args:
        queries: texts.
        passages: texts to choose from.
        depth: numbers for each query, at most.

    >>> [list(map(int, found)) for found in by_words(["red fox"], ["a blue fox", "a red fox", "a tree"], 3)]
    [[1, 0]]
    """
    index = Bm25(passages)
    for query in queries:
        scores = index.scores(query)
        numbers = best_of(scores, depth)
        yield numbers[scores[numbers] > 0]


def by_model(queries: Sequence[str], passages: Sequence[str], depth: int, encoder: TextEncoder) -> Iterator[np.ndarray]:
    """The same by the cosine of a model's vectors. A model ranks every passage, so none is left out."""
    top = TopK(unit(encoder.encode(list(queries), "query")), depth, "cuda" if encoder.device.type == "cuda" else "cpu")
    top.add(unit(encoder.encode(list(passages), "passage")))
    yield from top.result()[0]


def different(texts: Sequence[str]) -> list[str]:
    """Texts in their order, without those that differ from an earlier one in case, spacing or punctuation only."""
    kept: dict[str, str] = {}
    for text in texts:
        kept.setdefault(bare(text), text)
    return list(kept.values())
