"""Which rows, positives and negatives a step sees: a function of (seed, visit, row) alone.

Nothing here has state, so a resumed run, another number of workers or another number of processes meets the same
data. A `Batch` carries what the loss needs beside the tokens: where each text's vector goes, each query's own positive
and which passages must not count against it.

Dimensions: B queries, P passages (with repetitions), n unique texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedrag.order import RowOrder, generator
from embedrag.tokens import TokenBatch, TokenStore


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        tokens: n unique texts, queries and passages together.
        query_index: [B] position of each query among the texts.
        passage_index: [P] position of each passage; grouped by query, its positive first.
        labels: [B] position of each query's positive among the passages.
        excluded: [E, 2] (query, passage) pairs that do not count: another labelled positive of the query, or a copy of
            its own positive. Pairs and not a matrix, for they are few and B x P may be large.
        rows: [B] row numbers, for messages.
        negatives: [B] own negatives of each query.
        teacher: [P] a teacher's score of each passage for the query it came with, NaN where there is none; None where
            no row has any.
    """

    tokens: TokenBatch
    query_index: Tensor
    passage_index: Tensor
    labels: Tensor
    excluded: Tensor
    rows: Tensor
    negatives: Tensor
    teacher: Tensor | None = None

    @property
    def owner(self) -> Tensor:
        """[P] the query that each passage came with."""
        return torch.repeat_interleave(self.negatives + 1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; the tokens stay, for the encoder takes them from here chunk by chunk."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def draw(store: TokenStore, row: int, neg_nums: int, seed: int, visit: int) -> tuple[int, np.ndarray]:
    """A row's query, and the places among its passages of one positive and up to `neg_nums` negatives.

    Several positives take turns from visit to visit; negatives are drawn without repetition, anew each time.
    """
    query, positives, negatives = store.row(row)
    chosen = np.arange(len(negatives))
    if len(negatives) > neg_nums:
        chosen = generator(seed, visit, row + 1).choice(len(negatives), neg_nums, replace=False)
    return query, np.array([(row + visit) % len(positives), *(len(positives) + chosen)])


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


def make_batch(store: TokenStore, picked: list[tuple[int, int]], neg_nums: int, seed: int) -> Batch:
    """Assemble a micro-batch.

    Args:
        store: the data.
        picked: (visit, row) pairs, see `RowOrder`.
        neg_nums: own negatives of a row, at most.
        seed: of the draws.
    """
    queries: list[int] = []
    passages: list[int] = []
    labels: list[int] = []
    counts: list[int] = []
    teacher: list[np.ndarray] = []
    for visit, row in picked:
        query, places = draw(store, row, neg_nums, seed, visit)
        queries.append(query)
        labels.append(len(passages))
        passages += store.passages(row)[places].tolist()
        counts.append(len(places) - 1)
        teacher.append(store.scores(row)[places])
    texts, inverse = np.unique(np.array(queries + passages, np.int64), return_inverse=True)
    return Batch(
        tokens=store.batch(texts),
        query_index=torch.from_numpy(inverse[: len(queries)].copy()),
        passage_index=torch.from_numpy(inverse[len(queries) :].copy()),
        labels=torch.tensor(labels),
        excluded=torch.tensor(list(_excluded(store, queries, passages, labels)), dtype=torch.long).reshape(-1, 2),
        rows=torch.tensor([row for _, row in picked]),
        negatives=torch.tensor(counts),
        teacher=torch.from_numpy(np.concatenate(teacher)) if store.has_scores else None,
    )


def _excluded(
    store: TokenStore, queries: list[int], passages: list[int], labels: list[int]
) -> Iterator[tuple[int, int]]:
    """Pairs (query, passage) where the passage is a labelled positive of the query, its own label apart."""
    columns: dict[int, list[int]] = {}
    for column, text in enumerate(passages):
        columns.setdefault(text, []).append(column)
    for number, query in enumerate(queries):
        for text in store.known(query):
            yield from ((number, column) for column in columns.get(int(text), ()) if column != labels[number])


class Batches(Dataset[Batch]):
    """The micro-batches of one epoch, by number; assembled where they are asked for (here or in a worker)."""

    def __init__(
        self,
        store: TokenStore,
        order: RowOrder,
        bounds: list[tuple[int, int]],
        neg_nums: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Keep what `make_batch` needs; `bounds` are positions of the row stream, `part` is (number, of how many)."""
        self.store, self.order, self.bounds, self.neg_nums, self.part = store, order, bounds, neg_nums, part

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Batch:
        picked = list(self.order.between(*self.bounds[index]))
        number, parts = self.part
        picked = picked[len(picked) * number // parts : len(picked) * (number + 1) // parts]
        return make_batch(self.store, picked, self.neg_nums, self.order.seed)
