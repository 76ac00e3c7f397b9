"""BM25 over texts in any language. The package bm25s computes the scores (arXiv 2407.03618)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedrag.retrieval.analyzer import ANALYZER, analyze


class Bm25:
    """A BM25 index of passages, in memory.

    Attributes:
        analyzer: name of the rules by which texts were split into terms.
    """

    analyzer = ANALYZER

    def __init__(self, passages: Sequence[str]) -> None:
        """Index passages, with k1 = 1.5, b = 0.75, and the score of Lucene."""
        import bm25s

        self._index = bm25s.BM25(backend="numpy")
        self._index.index([analyze(text) or [""] for text in passages], show_progress=False)
        self._vocabulary = self._index.vocab_dict

    def scores(self, query: str) -> np.ndarray:
        """Scores of all passages for a query: [passages] float32. Terms that are in no passage do not count."""
        known = [self._vocabulary[term] for term in analyze(query) if term in self._vocabulary]
        if not known:
            return np.zeros(self._index.scores["num_docs"], np.float32)
        return np.asarray(self._index.get_scores_from_ids(known), np.float32)
