"""The passages of a corpus, and the labelled positives of queries, compared by fingerprints.

A fingerprint (64 bits, `embedrag.data.text.identity`) ignores case, spacing and Unicode form, so the same text is found
when only these differ. Memory holds the texts of the corpus, and 16 bytes for each labelled pair.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from embedrag.data.rows import TrainingRow
from embedrag.data.text import identity


class Corpus:
    """Different passages; if several are the same, the first one is kept.

    Attributes:
        texts: [p] the passages.
    """

    def __init__(self, texts: Iterable[str], bare: Iterable[str] | None = None) -> None:
        """Keep one passage of each fingerprint.

        Args:
            texts: passages, each after its title if it has one.
            bare: the same passages without their titles, because rows may have them so; None: there are no titles.

        >>> Corpus(["a frog", "A  FROG", "a heron"]).texts
        ['a frog', 'a heron']
        """
        seen: dict[int, str] = {}
        others = array("Q")
        for text, untitled in zip(texts, bare, strict=True) if bare else ((text, text) for text in texts):
            own = identity(text)
            if text.strip() and own not in seen:
                seen[own] = text
                others.append(own if untitled == text else identity(untitled))
        self.texts = list(seen.values())
        self._titled = _Places(np.fromiter(seen, np.uint64, len(seen)))
        self._bare = _Places(np.frombuffer(others, np.uint64)) if bare else self._titled

    def number(self, text: str) -> int | None:
        """The number of the passage that is this text, title included; None when the corpus does not have it."""
        found = self._titled.of(np.array([identity(text)], np.uint64))
        return int(found[0]) if len(found) else None

    def numbers(self, fingerprints: np.ndarray) -> np.ndarray:
        """The numbers of all passages with one of these fingerprints, with their title or without it."""
        return np.union1d(self._titled.of(fingerprints), self._bare.of(fingerprints))


class KnownPositives:
    """The labelled positives of each query, collected from all rows.

    Attributes:
        rows: number of rows.
        prompted: how many of them have a prompt of their own.
    """

    def __init__(self, rows: Iterable[TrainingRow]) -> None:
        """Read all rows."""
        flat = array("Q")
        self.rows = self.prompted = 0
        for row in rows:
            query = identity(row.query)
            for text in row.pos:
                flat.extend((query, identity(text)))
            self.rows += 1
            self.prompted += row.prompt is not None
        self._pairs = np.unique(np.frombuffer(flat, np.uint64).reshape(-1, 2), axis=0)

    def of(self, query: str) -> np.ndarray:
        """Fingerprints of texts that can't be negatives of a query: its positives in any row, and the query itself."""
        own = np.uint64(identity(query))
        start, stop = (np.searchsorted(self._pairs[:, 0], own, side) for side in ("left", "right"))
        return np.append(self._pairs[start:stop, 1], own)


class _Places:
    """Finds the places of fingerprints in a list [p]; the list may hold the same fingerprint several times."""

    def __init__(self, fingerprints: np.ndarray) -> None:
        self._order = np.argsort(fingerprints)
        self._sorted = fingerprints[self._order]

    def of(self, wanted: np.ndarray) -> np.ndarray:
        starts, stops = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        return np.concatenate([self._order[start:stop] for start, stop in zip(starts, stops, strict=True)])
