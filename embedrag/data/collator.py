"""Which rows, positives and negatives a step sees: a function of (seed, visit, row) alone.

Nothing here has state, so a resumed run, another number of workers or another number of processes meets the same
data. A `Batch` carries what the loss needs beside the tokens: where each text's vector goes, each query's own positives
and which passages must not count against them.

Dimensions: B queries, L pairs of a query and a positive (B, unless rows show several), P passages (with repetitions),
n unique texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedrag.data.sampler import ShuffledSampler
from embedrag.data.token_batch import TokenBatch
from embedrag.data.token_store import TokenStore
from embedrag.runtime.random_state import generator


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        tokens: n unique texts, queries and passages together.
        query_index: [B] position of each query among the texts.
        passage_index: [P] position of each passage; grouped by query, its positives first.
        labels: [L] position of each pair's positive among the passages.
        excluded: [E, 2] (pair, passage) that do not count: another labelled positive of the query, or a copy of the
            pair's own. Pairs and not a matrix, for they are few and L x P may be large.
        rows: [B] row numbers, for messages.
        negatives: [B] own negatives of each query.
        teacher: [P] a teacher's score of each passage for the query it came with, NaN where there is none; None where
            no row has any.
        query: [L] the query of each pair, in rising order; None: each has one pair.
        share: [L] what the pair counts for in the loss of its query; None: all of it.
        texts: [n] numbers of the texts in the store.
    """

    tokens: TokenBatch
    query_index: Tensor
    passage_index: Tensor
    labels: Tensor
    excluded: Tensor
    rows: Tensor
    negatives: Tensor
    teacher: Tensor | None = None
    query: Tensor | None = None
    share: Tensor | None = None
    texts: Tensor | None = None

    @property
    def owner(self) -> Tensor:
        """[P] the query that each passage came with."""
        positives = 1 if self.query is None else torch.bincount(self.query, minlength=len(self.negatives))
        return torch.repeat_interleave(self.negatives + positives)

    def pairs(self, queries: slice) -> slice:
        """The pairs of some queries."""
        if self.query is None:
            return queries
        start, stop, _ = queries.indices(len(self.query_index))
        ends = torch.searchsorted(self.query, torch.tensor([start, stop], device=self.query.device))
        return slice(*ends.tolist())

    def by_query(self, values: Tensor, queries: slice) -> Tensor:
        """Numbers of the pairs of some queries -> the mean of each query, weighted by the pairs' shares."""
        if self.query is None or self.share is None:
            return values
        pairs, (start, stop, _) = self.pairs(queries), queries.indices(len(self.query_index))
        return values.new_zeros(stop - start).index_add(
            0, self.query[pairs] - start, values * self.share[pairs].to(values)
        )

    def by_texts(self, values: Tensor, queries: slice) -> Tensor:
        """Numbers [n] of the texts -> for some queries the mean of its own and those of the passages it came with."""
        owner, count = self.owner, len(self.query_index)
        total = values[self.query_index].index_add(0, owner, values[self.passage_index])
        return (total / (1 + torch.bincount(owner, minlength=count)))[queries]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; tokens and numbers of texts stay, for what they stand for is taken from here."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "texts"
        }
        return replace(self, **moved)


def draw(
    store: TokenStore, row: int, neg_nums: int, seed: int, visit: int, pos_nums: int = 1
) -> tuple[int, np.ndarray, np.ndarray]:
    """A row's query, and the places among its passages of up to `pos_nums` positives and up to `neg_nums` negatives.

    Where there are more positives they take turns from visit to visit; negatives are drawn without repetition, anew
    each time.
    """
    query, positives, negatives = store.row(row)
    chosen = np.arange(len(negatives))
    if len(negatives) > neg_nums:
        chosen = generator(seed, visit, row + 1).choice(len(negatives), neg_nums, replace=False)
    turn = (row + visit * pos_nums + np.arange(min(pos_nums, len(positives)))) % len(positives)
    return query, turn, len(positives) + chosen


def steps_of_epoch(
    rows: int,
    batch_size: int,
    accumulation: int,
    epoch: int,
    steps_per_epoch: int | None = None,
    first: int | None = None,
    least: int = 2,
) -> list[list[tuple[int, int]]]:
    """The optimizer steps of one epoch, each a list of micro-batches [start, stop) of the endless row stream.

    Position p of the stream is place `p % rows` of pass `p // rows`. Without `steps_per_epoch` an epoch is one pass and
    its last batch may be short; one of fewer rows than `least` joins the one before it, for a single row has no
    in-batch negatives. `first` is the position at which such an epoch is taken up, left out: its beginning.

    >>> steps_of_epoch(rows=5, batch_size=2, accumulation=2, epoch=0)
    [[(0, 2), (2, 5)]]
    """
    if steps_per_epoch:
        before = epoch * steps_per_epoch * accumulation
        bounds = [(before + i) * batch_size for i in range(steps_per_epoch * accumulation + 1)]
    else:
        end = (epoch + 1) * rows
        bounds = [*range(epoch * rows if first is None else first, end, batch_size), end]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < min(least, batch_size):
            del bounds[-2]
    batches = list(zip(bounds[:-1], bounds[1:], strict=True))
    return [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]


def make_batch(store: TokenStore, picked: list[tuple[int, int]], neg_nums: int, seed: int, pos_nums: int = 1) -> Batch:
    """Assemble a micro-batch.

    Args:
        store: the data.
        picked: (visit, row) pairs, see `ShuffledSampler`.
        neg_nums: own negatives of a row, at most.
        seed: of the draws.
        pos_nums: positives of a row, at most. Each makes a pair with the query, whose loss counts by its grade; a
            positive of lower grade is a negative for the pair, the others are not (RINCE, arXiv 2201.11736).
    """
    queries: list[int] = []
    passages: list[int] = []
    pairs: list[_Pair] = []
    counts: list[int] = []
    teacher: list[np.ndarray] = []
    for number, (visit, row) in enumerate(picked):
        query, positives, negatives = draw(store, row, neg_nums, seed, visit, pos_nums)
        own, grades = store.passages(row), store.grades(row)[positives]
        for place, grade in zip(positives, grades, strict=True):
            lower = frozenset(own[positives[grades < grade]].tolist())
            pairs.append(_Pair(number, len(passages), float(grade / grades.sum()), lower))
            passages.append(int(own[place]))
        queries.append(query)
        passages += own[negatives].tolist()
        counts.append(len(negatives))
        teacher.append(store.scores(row)[[*positives, *negatives]])
    texts, inverse = np.unique(np.array(queries + passages, np.int64), return_inverse=True)
    several = len(pairs) > len(queries)
    return Batch(
        tokens=store.batch(texts),
        query_index=torch.from_numpy(inverse[: len(queries)].copy()),
        passage_index=torch.from_numpy(inverse[len(queries) :].copy()),
        labels=torch.tensor([pair.label for pair in pairs]),
        excluded=torch.tensor(list(_excluded(store, queries, passages, pairs)), dtype=torch.long).reshape(-1, 2),
        rows=torch.tensor([row for _, row in picked]),
        negatives=torch.tensor(counts),
        teacher=torch.from_numpy(np.concatenate(teacher)) if store.has_scores else None,
        query=torch.tensor([pair.query for pair in pairs]) if several else None,
        share=torch.tensor([pair.share for pair in pairs]) if several else None,
        texts=torch.from_numpy(texts),
    )


@dataclass(frozen=True)
class _Pair:
    """A query (number) and a positive of it (column), its share in the query's loss, and texts of lower grade."""

    query: int
    label: int
    share: float
    lower: frozenset[int]


def _excluded(
    store: TokenStore, queries: list[int], passages: list[int], pairs: list[_Pair]
) -> Iterator[tuple[int, int]]:
    """(pair, passage) where the passage is a labelled positive of the query; its own label and lower grades apart."""
    columns: dict[int, list[int]] = {}
    for column, text in enumerate(passages):
        columns.setdefault(text, []).append(column)
    for number, pair in enumerate(pairs):
        for text in map(int, store.known(queries[pair.query])):
            if text not in pair.lower:
                yield from ((number, column) for column in columns.get(text, ()) if column != pair.label)


class Batches(Dataset[Batch]):
    """The micro-batches of one epoch, by number; assembled where they are asked for (here or in a worker)."""

    def __init__(
        self,
        store: TokenStore,
        order: ShuffledSampler,
        bounds: list[tuple[int, int]],
        neg_nums: int,
        part: tuple[int, int] = (0, 1),
        pos_nums: int = 1,
    ) -> None:
        """Keep what `make_batch` needs; `bounds` are positions of the row stream, `part` is (number, of how many)."""
        self.store, self.order, self.bounds, self.part = store, order, bounds, part
        self.neg_nums, self.pos_nums = neg_nums, pos_nums

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Batch:
        picked = list(self.order.between(*self.bounds[index]))
        number, parts = self.part
        picked = picked[len(picked) * number // parts : len(picked) * (number + 1) // parts]
        return make_batch(self.store, picked, self.neg_nums, self.order.seed, self.pos_nums)
