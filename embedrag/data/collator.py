"""Rows -> batches: which positives and negatives a step sees, and what its loss needs to know of them.

What is drawn depends only on (seed, visit, row). Nothing here has state, so a resumed run, another number of
workers or another number of processes sees the same data. Besides tokens, a `Batch` holds the place of the vector of
each text, the passages that are positives of each query, and those that must not count as its negatives.

Dimensions: B queries, L pairs of a query and a positive (L = B unless rows show several positives), P passages (with
repetitions), n unique texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How many texts of a row a batch shows.

    Attributes:
        neg_nums: negatives of a row, at most; drawn anew at each visit.
        pos_nums: positives of a row, at most; with more, they take turns from visit to visit.
        seed: of the draws.
    """

    neg_nums: int
    pos_nums: int = 1
    seed: int = 42


@dataclass(frozen=True)
class Triplet:
    """A row as one visit shows it: a query, positives and negatives, as numbers of texts in the store.

    Attributes:
        row: number of the row.
        query: its query.
        pos: [p] positives, at least one.
        neg: [m] negatives, possibly none.
        grades: [p] how well each positive answers the query.
        scores: [p + m] a teacher's score of each passage, NaN for a passage without one.
    """

    row: int
    query: int
    pos: np.ndarray
    neg: np.ndarray
    grades: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        tokens: the n unique texts, queries and passages together.
        query_index: [B] position of each query among the texts.
        passage_index: [P] position of each passage among the texts. The passages of one query follow each other, its
            positives first.
        labels: [L] position of each pair's positive among the passages.
        excluded: [E, 2] (pair, passage): the passage is not a negative of the pair, because it is another labelled
            positive of the query, or a copy of the pair's own. It is a list and not a matrix, because the exclusions
            are few and L x P may be large.
        rows: [B] row numbers, for messages.
        negatives: [B] number of own negatives of each query.
        teacher: [P] a teacher's score of each passage for the query that it came with, NaN for a passage without one;
            None when no row of the data has any.
        query: [L] the query of each pair, in rising order; None: every query has one pair.
        share: [L] weight of each pair in the loss of its query; None: 1.
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
        """The places of the pairs of some queries."""
        if self.query is None:
            return queries
        start, stop, _ = queries.indices(len(self.query_index))
        ends = torch.searchsorted(self.query, torch.tensor([start, stop], device=self.query.device))
        return slice(*ends.tolist())

    def by_query(self, values: Tensor, queries: slice) -> Tensor:
        """A value for each pair of some queries -> a value for each query: the mean, weighted by the pairs' shares."""
        if self.query is None or self.share is None:
            return values
        pairs, (start, stop, _) = self.pairs(queries), queries.indices(len(self.query_index))
        return values.new_zeros(stop - start).index_add(
            0, self.query[pairs] - start, values * self.share[pairs].to(values)
        )

    def by_texts(self, values: Tensor, queries: slice) -> Tensor:
        """Values [n] of the texts -> for each of some queries, the mean over the query and its own passages."""
        owner, count = self.owner, len(self.query_index)
        total = values[self.query_index].index_add(0, owner, values.index_select(0, self.passage_index))
        return (total / (1 + torch.bincount(owner, minlength=count)))[queries]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; `tokens` and `texts` stay on the CPU, because the encoder selects texts there."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "texts"
        }
        return replace(self, **moved)


def draw(store: TokenStore, row: int, visit: int, sampling: SamplingSettings) -> Triplet:
    """The texts that a row shows at a visit.

    Args:
        store: the data.
        row: number of the row.
        visit: how often the row came before, see `ShuffledSampler`.
        sampling: how many texts. Negatives are drawn without repetition.
    """
    query, positives, negatives = store.row(row)
    chosen = np.arange(len(negatives))
    if len(negatives) > sampling.neg_nums:
        chosen = generator(sampling.seed, visit, row + 1).choice(len(negatives), sampling.neg_nums, replace=False)
    shown = min(sampling.pos_nums, len(positives))
    rotation = (row + visit * sampling.pos_nums + np.arange(shown)) % len(positives)
    return Triplet(
        row=row,
        query=query,
        pos=positives[rotation],
        neg=negatives[chosen],
        grades=store.grades(row)[rotation],
        scores=store.scores(row)[[*rotation, *(len(positives) + chosen)]],
    )


def steps_of_epoch(
    *,
    rows: int,
    batch_size: int,
    accumulation: int,
    epoch: int,
    steps_per_epoch: int | None = None,
    first: int | None = None,
    least: int = 2,
) -> list[list[tuple[int, int]]]:
    """The optimizer steps of one epoch. A step is a list of micro-batches [start, stop) of the endless stream of rows.

    Position p of the stream is place `p % rows` of pass `p // rows`.

    Args:
        rows: positions of a pass.
        batch_size: rows of a micro-batch, over all processes.
        accumulation: micro-batches of an optimizer step.
        epoch: counted from 0.
        steps_per_epoch: optimizer steps of an epoch; None: an epoch is one pass, and its last batch may be short.
        first: position at which an epoch of one pass begins; None: its beginning.
        least: a last batch with fewer rows joins the batch before it, because a single row has no in-batch negatives.

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


def make_batch(store: TokenStore, picked: Sequence[tuple[int, int]], sampling: SamplingSettings) -> Batch:
    """Draw the texts of some rows, and put them together into a micro-batch.

    Args:
        store: the data.
        picked: (visit, row) pairs, see `ShuffledSampler`.
        sampling: how many texts of each row.
    """
    return collate(store, [draw(store, row, visit, sampling) for visit, row in picked])


def collate(store: TokenStore, triplets: Sequence[Triplet]) -> Batch:
    """Put rows together into a micro-batch: each different text once, and what the loss needs.

    Each positive makes a pair with its query. If a row shows several positives, the grade of a positive is the weight
    of its pair in the loss of the query. A positive of lower grade is a negative of the pair; the other positives are
    not negatives (RINCE, arXiv 2201.11736).

    Args:
        store: the data.
        triplets: from `draw`.

    Example:
        Two rows, each with one positive; the second one has a negative, which is the first one's positive::

            query   pos    neg
            q0      a      -
            q1      b      a

        The texts are q0, q1, a, b (in the order of their numbers in the store), and the batch is::

            query_index    [0, 1]
            passage_index  [2, 3, 2]     a; b, a
            labels         [0, 1]        q0's positive is passage 0, q1's is passage 1
            excluded       [[0, 2]]      passage 2 is a copy of q0's positive
            negatives      [0, 1]
    """
    queries = [triplet.query for triplet in triplets]
    passages: list[int] = []
    pairs: list[_Pair] = []
    for number, triplet in enumerate(triplets):
        for text, grade in zip(triplet.pos.tolist(), triplet.grades, strict=True):
            lower = frozenset(triplet.pos[triplet.grades < grade].tolist())
            pairs.append(_Pair(number, len(passages), float(grade / triplet.grades.sum()), lower))
            passages.append(text)
        passages += triplet.neg.tolist()
    texts, inverse = np.unique(np.array(queries + passages, np.int64), return_inverse=True)
    several = len(pairs) > len(queries)
    scores = [triplet.scores for triplet in triplets]
    return Batch(
        tokens=store.batch(texts),
        query_index=torch.from_numpy(inverse[: len(queries)].copy()),
        passage_index=torch.from_numpy(inverse[len(queries) :].copy()),
        labels=torch.tensor([pair.label for pair in pairs]),
        excluded=torch.tensor(list(_excluded(store, queries, passages, pairs)), dtype=torch.long).reshape(-1, 2),
        rows=torch.tensor([triplet.row for triplet in triplets]),
        negatives=torch.tensor([len(triplet.neg) for triplet in triplets]),
        teacher=torch.from_numpy(np.concatenate(scores)) if store.has_scores else None,
        query=torch.tensor([pair.query for pair in pairs]) if several else None,
        share=torch.tensor([pair.share for pair in pairs]) if several else None,
        texts=torch.from_numpy(texts),
    )


@dataclass(frozen=True)
class _Pair:
    """A query and one of its positives.

    Attributes:
        query: number of the query in the batch.
        label: place of the positive among the passages.
        share: weight of the pair in the loss of its query.
        lower: positives of the query that have a lower grade.
    """

    query: int
    label: int
    share: float
    lower: frozenset[int]


def _excluded(
    store: TokenStore, queries: list[int], passages: list[int], pairs: list[_Pair]
) -> Iterator[tuple[int, int]]:
    """(pair, passage): the passage is a positive of the query, but not the pair's own and not of lower grade."""
    columns: dict[int, list[int]] = {}
    for column, text in enumerate(passages):
        columns.setdefault(text, []).append(column)
    for number, pair in enumerate(pairs):
        for text in map(int, store.known(queries[pair.query])):
            if text not in pair.lower:
                yield from ((number, column) for column in columns.get(text, ()) if column != pair.label)


class Batches(Dataset[Batch]):
    """The micro-batches of one epoch, by number. A batch is made in the process that asks for it (here or a worker)."""

    def __init__(
        self,
        store: TokenStore,
        sampler: ShuffledSampler,
        bounds: list[tuple[int, int]],
        sampling: SamplingSettings,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Keep what `make_batch` needs.

        Args:
            store: the data.
            sampler: the order of the rows.
            bounds: [start, stop) of each batch in the stream of rows.
            sampling: how many texts of each row.
            part: (number, of how many): only this part of each batch, for processes with rows of their own.
        """
        self.store, self.sampler, self.bounds, self.sampling, self.part = store, sampler, bounds, sampling, part

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Batch:
        picked = list(self.sampler.between(*self.bounds[index]))
        number, parts = self.part
        picked = picked[len(picked) * number // parts : len(picked) * (number + 1) // parts]
        return make_batch(self.store, picked, self.sampling)
