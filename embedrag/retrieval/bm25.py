"""BM25 over texts in any language. The package bm25s computes the scores (arXiv 2407.03618)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

# Scripts without spaces between words, and Hangul, where particles are attached to words. Their terms are pairs of
# neighbouring letters.
PAIRED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\u0e00-\u0e7f"
PIECE = re.compile(rf"[{PAIRED}]+|[^\W{PAIRED}]+")
IS_PAIRED = re.compile(f"[{PAIRED}]")


def words(text: str) -> list[str]:
    """The terms of a text.

    >>> words("The Ω-meter 저항은")
    ['the', 'ω', 'meter', '저항', '항은']
    """
    return list(_terms(unicodedata.normalize("NFKC", text).casefold()))


def _terms(text: str) -> Iterator[str]:
    for piece in PIECE.findall(text):
        if len(piece) > 1 and IS_PAIRED.match(piece):
            yield from (piece[i : i + 2] for i in range(len(piece) - 1))
        else:
            yield piece


class Bm25:
    """A BM25 index of passages, in memory."""

    def __init__(self, passages: Sequence[str]) -> None:
        """Index passages, with k1 = 1.5, b = 0.75, and the score of Lucene."""
        import bm25s

        self._index = bm25s.BM25(backend="numpy")
        self._index.index([words(text) or [""] for text in passages], show_progress=False)
        self._vocabulary = self._index.vocab_dict

    def scores(self, query: str) -> np.ndarray:
        """Scores of all passages for a query: [passages] float32. Terms that are in no passage do not count."""
        known = [self._vocabulary[term] for term in words(query) if term in self._vocabulary]
        if not known:
            return np.zeros(self._index.scores["num_docs"], np.float32)
        return np.asarray(self._index.get_scores_from_ids(known), np.float32)
