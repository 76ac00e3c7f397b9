"""Passages nearest to a query that are no answer to it: by words (BM25), or by the vectors of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from embedrag.datagen.glossary.tables import bare
from embedrag.models.load import load_model
from embedrag.retrieval.bm25 import Bm25
from embedrag.retrieval.topk import TopK, best_of
from embedrag.retrieval.vector_cache import unit


def by_words(queries: Sequence[str], passages: Sequence[str], depth: int) -> Iterator[np.ndarray]:
    """Numbers of at most `depth` passages for each query, nearest first; those that share no word are not among them.

    >>> [list(map(int, found)) for found in by_words(["red fox"], ["a blue fox", "a red fox", "a tree"], 3)]
    [[1, 0]]
    """
    index = Bm25(passages)
    for query in queries:
        scores = index.scores(query)
        numbers = best_of(scores, depth)
        yield numbers[scores[numbers] > 0]


def by_model(
    queries: Sequence[str], passages: Sequence[str], depth: int, model: str, device: str, trust_remote_code: bool
) -> Iterator[np.ndarray]:
    """The same by cosine of a model's vectors; a model ranks every passage."""
    encoder = load_model(model, device, trust_remote_code=trust_remote_code)
    top = TopK(unit(encoder.encode(list(queries), "query")), depth, "cuda" if encoder.device.type == "cuda" else "cpu")
    top.add(unit(encoder.encode(list(passages), "passage")))
    yield from top.result()[0]


def different(texts: Sequence[str]) -> list[str]:
    """The first of all texts that are the same but for case, spacing and punctuation, in order."""
    kept: dict[str, str] = {}
    for text in texts:
        kept.setdefault(bare(text), text)
    return list(kept.values())
