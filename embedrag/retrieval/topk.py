"""The k passages with the highest cosines, found block by block: passages may come as a stream and are not kept.

Score and number of a passage are put into one 64-bit integer. These integers have the order of the ranking, ties
included. So the best passages of a block are found without sorting it, and the result does not depend on the blocks.

Letters: q queries, p passages, m passages of a block, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from embedrag.errors import UserError

BLOCK = 2048
LAST = 2**32 - 1


class TopK:
    """The k best passages of each query so far. Of passages with equal scores, the earlier one is better."""

    def __init__(self, queries: np.ndarray, k: int, device: str = "cpu", block: int = BLOCK) -> None:
        """Start with no passages.

        Args:
            queries: [q, D], vectors of length 1.
            k: passages that are kept for each query.
            device: where vectors are compared.
            block: number of queries, and of passages, that are compared at once.
        """
        self._queries = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
        self._k, self._block, self._count = k, block, 0
        self._keys = torch.empty(len(queries), 0, dtype=torch.int64, device=device)

    def add(self, passages: np.ndarray) -> None:
        """Compare with the next passages, [m, D] vectors of length 1. Their numbers follow the earlier ones."""
        for start in range(0, len(passages), self._block):
            part = np.array(
                passages[start : start + self._block], np.float32
            )  # a copy, because the cache's are read-only
            block = torch.from_numpy(part).to(self._queries.device)
            keys = torch.cat([self._best_with(rows, block) for rows in range(0, len(self._queries), self._block)])
            self._keys = keys
            self._count += len(block)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Passage numbers and scores, both [q, min(k, p)], best first."""
        keys = self._keys.sort(dim=1, descending=True).values.cpu()
        return (LAST - (keys & LAST)).numpy(), _unordered(keys >> 32).numpy()

    def _best_with(self, start: int, block: Tensor) -> Tensor:
        rows = slice(start, start + self._block)
        keys = _keys(self._queries[rows] @ block.T, self._count)
        if self._keys.shape[1]:
            keys = torch.cat([self._keys[rows], keys], 1)
        return keys.topk(min(self._k, keys.shape[1]), dim=1, sorted=False).values


def search(queries: np.ndarray, passages: np.ndarray, k: int, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the k passages with the highest cosines for each query, both [q, min(k, p)].

    Args:
        queries: [q, D], vectors of length 1.
        passages: [p, D], likewise.
        k: passages that are found for each query.
        block: see `TopK`.

    >>> search(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]), k=1)
    (array([[1]]), array([[1.]], dtype=float32))
    """
    top = TopK(queries, k, block=block)
    top.add(passages)
    return top.result()


def best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest of [p] scores, best first. Of equal scores, the earlier one is better.

    >>> best_of(np.array([1.0, 3.0, 3.0], np.float32), 2)
    array([1, 2])
    """
    keys = _keys(torch.from_numpy(np.ascontiguousarray(scores, np.float32))[None], 0)[0]
    return (LAST - (keys.topk(min(k, len(keys))).values & LAST)).numpy()


def search_faiss(
    queries: np.ndarray, passages: Iterable[np.ndarray], k: int, faiss_index: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same with an index of FAISS (arXiv 2401.08281). It may be approximate, and holds all passages in memory.

    Args:
        queries: [q, D], vectors of length 1.
        passages: [m, D] blocks of vectors of length 1. They are not computed when the index is unknown.
        k: passages that are found for each query.
        faiss_index: name of the index for FAISS's index factory, such as `HNSW32`, `Flat` or `IVF1024,Flat`.

    Raises:
        UserError: when faiss is missing or does not know the index, or when the index finds fewer than k passages.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("needs faiss: pip install faiss-cpu (or leave it out)", "faiss_index", faiss_index) from None
    with _explained(faiss_index):
        index = faiss.index_factory(queries.shape[1], faiss_index, faiss.METRIC_INNER_PRODUCT)
    vectors = np.ascontiguousarray(np.concatenate(list(passages)), np.float32)  # they are perhaps encoded only now
    with _explained(faiss_index):
        index.train(vectors)
        index.add(vectors)
    scores, numbers = index.search(np.ascontiguousarray(queries, np.float32), min(k, len(vectors)))
    if (numbers < 0).any():
        raise UserError(f"finds fewer than {k} passages for a query; use another index", "faiss_index", faiss_index)
    return numbers, scores


@contextmanager
def _explained(faiss_index: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(str(error).strip().splitlines()[-1], "faiss_index", faiss_index) from None


def _keys(scores: Tensor, first: int) -> Tensor:
    """Integers in the order of the ranking, [q, m] -> [q, m]; `first` is the number of the first passage."""
    numbers = torch.arange(first, first + scores.shape[1], device=scores.device)
    return (_ordered(scores).long() << 32) | (LAST - numbers)


def _ordered(scores: Tensor) -> Tensor:
    """The bits of float32 numbers as integers that have the order of the numbers; -0.0 becomes 0.0."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _unordered(bits: Tensor) -> Tensor:
    """The reverse of `_ordered`."""
    bits = bits.to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
