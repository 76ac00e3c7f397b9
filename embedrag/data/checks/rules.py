"""What can be wrong with training rows (`KINDS`), and the comparison of rows with each other.

The comparison works on numbers that are equal for equal texts (ids of the token store, or hashes). It needs no text in
memory, and costs the same in a check and at the start of a training. Only rows with the same query can repeat or
contradict each other. They are compared part by part, so the memory needed is about that of the numbers themselves.

Dimensions: T texts of all rows, N rows, r rows of one part, t texts of one part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from embedrag.data.shapes import NEGATIVE_KEYS
from embedrag.errors import near_miss

ERROR, FAULT, NOTE = "error", "fault", "note"
# Name -> level, and what such rows have. An error stops a training, a fault does not, and a note is not a fault. A new
# kind is one line here.
KINDS = {
    "file": (ERROR, "can't be read to its end"),
    "unreadable": (ERROR, "can't be read"),
    "blank_text": (ERROR, "have a blank query or positive"),
    "duplicate_row": (FAULT, "repeat an earlier row"),
    "leaked_pair": (FAULT, "have a query of the evaluation set and its positive"),
    "leaked_query": (FAULT, "have a query of the evaluation set"),
    "own_positive": (FAULT, "have a positive among their negatives"),
    "other_positive": (FAULT, "have a negative that is a positive of the same query in another row"),
    "query_is_positive": (FAULT, "have their query as a positive"),
    "query_is_negative": (FAULT, "have their query among their negatives"),
    "doubled_positive": (FAULT, "have a positive twice"),
    "doubled_negative": (FAULT, "have a negative twice"),
    "blank_negative": (FAULT, "have a blank negative"),
    "unused_texts": (FAULT, "have a key like those of negatives, which training does not use"),
    "markup": (FAULT, "have HTML tags or entities in a text"),
    "control": (FAULT, "have control characters in a text"),
    "repeated_query": (NOTE, "share their query with an earlier row"),
}
LISTED = 20  # rows of each kind that are listed; all are counted
TEXTS_IN_PART = 4_000_000
SHOWN_KEYS = 10  # that training does not use


class Findings:
    """What was found, by kind: how many rows, and the first rows with their places."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def add(self, kind: str, place: str, text: str = "") -> None:
        """Count a row. Its `file:line` and what is wrong there are kept if it is one of the first of its kind."""
        self.counts[kind] += 1
        if len(self.listed[kind]) < LISTED:
            self.listed[kind].append((place, text))


@dataclass(frozen=True)
class Rows:
    """Rows as numbers.

    Attributes:
        texts: [T] row by row: the query, the positives, the negatives; equal texts have equal numbers.
        offsets: [N + 1] into `texts`.
        positives: [N] number of positives of each row.
    """

    texts: np.ndarray
    offsets: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """What was found when rows were compared, in the order of the rows.

    Attributes:
        repeated: [a, 2] a row with the query of an earlier row, and the first row with that query.
        duplicates: [b, 2] a row with the query, the positives and the negatives of an earlier row, in any order, and
            that earlier row.
        contradictions: [c, 3] a row, a row that calls one of its negatives a positive of the same query, and the place
            of this negative in `Rows.texts`.
    """

    repeated: np.ndarray
    duplicates: np.ndarray
    contradictions: np.ndarray


def compare(rows: Rows) -> Comparison:
    """Compare the rows that share a query.

    >>> texts = np.array([1, 5, 6] + [1, 7, 5] + [2, 5] + [1, 5, 6])
    >>> found = compare(Rows(texts, np.array([0, 3, 6, 8, 11]), np.array([1, 1, 1, 1])))
    >>> found.repeated.tolist(), found.duplicates.tolist(), found.contradictions.tolist()
    ([[1, 0], [3, 0]], [[3, 0]], [[1, 0, 5]])
    """
    queries = rows.texts[rows.offsets[:-1]]
    _, first, group, counts = np.unique(queries, return_index=True, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[group] > 1)
    later = shared[first[group[shared]] != shared]
    duplicates, contradictions = [np.empty((0, 2), np.int64)], [np.empty((0, 3), np.int64)]
    for part in _parts(rows, shared, group):
        a, b = _compare_part(rows, part)
        duplicates.append(a)
        contradictions.append(b)
    return Comparison(np.stack([later, first[group[later]]], axis=1), _in_order(duplicates), _in_order(contradictions))


def unused_line(keys: Mapping[str, int]) -> str:
    """A line about keys that training does not use, with the number of rows that have them.

    >>> unused_line({"id": 5, "negativ": 9})
    'data: keys that training does not use: negativ; did you mean negative? (9), id (5)'
    """
    most = sorted(keys.items(), key=lambda item: -item[1])
    named = [f"{key or '(no name)'}{near_miss(key, NEGATIVE_KEYS)} ({rows:,})" for key, rows in most[:SHOWN_KEYS]]
    return f"data: keys that training does not use: {', '.join(named)}{', …' if len(most) > SHOWN_KEYS else ''}"


def short_report(rows: Rows) -> Iterator[str]:
    """A line for the start of a training, if rows repeat or contradict each other."""
    found = compare(rows)
    counts = {
        "duplicate_row": len(found.duplicates),
        "other_positive": len(np.unique(found.contradictions[:, 0])),
    }
    parts = [f"rows that {KINDS[name][1]}: {count:,}" for name, count in counts.items() if count]
    if parts:
        yield f"data: {'; '.join(parts)}; embedrag check shows them"


def _parts(rows: Rows, shared: np.ndarray, group: np.ndarray) -> Iterator[np.ndarray]:
    """The rows `shared`, divided into parts; all rows with the same query are in the same part."""
    total = int((rows.offsets[shared + 1] - rows.offsets[shared]).sum())
    parts = 1 + total // TEXTS_IN_PART
    for number in range(parts if len(shared) else 0):
        part = shared[group[shared] % parts == number]
        if len(part):
            yield part


def _compare_part(rows: Rows, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Duplicates [b, 2] and contradictions [c, 3] among the rows `part` [r]."""
    lengths = (rows.offsets[part + 1] - rows.offsets[part]).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(part), dtype=np.int32), lengths)  # [t] into part
    within = np.arange(len(owner)) - starts[owner]
    place = rows.offsets[part][owner] + within
    mixed = _mix(rows.texts[place].astype(np.uint64))
    is_negative = within > rows.positives[part][owner]
    is_positive = ~is_negative & (within > 0)

    # A row's key is a sum, so that the order of its positives and of its negatives does not matter.
    role = is_negative.astype(np.uint64) + is_positive.astype(np.uint64) * np.uint64(2)
    keys = np.add.reduceat(_mix(mixed + role), starts)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    earlier = first[inverse]
    again = np.flatnonzero(earlier != np.arange(len(part)))
    duplicates = np.stack([part[again], part[earlier[again]]], axis=1)

    pairs = _mix(mixed[starts][owner] + mixed * np.uint64(3))  # (query, text)
    known, labelled_at = np.unique(pairs[is_positive], return_index=True)
    labeller = owner[is_positive][labelled_at]
    negatives = np.flatnonzero(is_negative)
    found = np.minimum(np.searchsorted(known, pairs[negatives]), len(known) - 1)
    hit = known[found] == pairs[negatives]
    at = negatives[hit]
    return duplicates, np.stack([part[owner[at]], part[labeller[found[hit]]], place[at]], axis=1)


def _in_order(parts: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(parts)
    return joined[np.lexsort((joined[:, -1], joined[:, 0]))]


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread numbers over 64 bits, one to one (the last step of splitmix64); sums may overflow."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
