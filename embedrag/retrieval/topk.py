"""The k passages with the highest cosines, found block by block: passages may come as a stream and are not kept.

A score is the same whatever else is compared in the same call. Numbers are whole numbers before they are multiplied,
and their products are added up in float64 without any rounding. So blocks, threads, devices and the number of queries
can't change a score, and equal vectors have equal scores. The score is then rounded to float32, as in trec_eval.

Score and number of a passage are put into one 64-bit integer. These integers have the order of the ranking, ties
included. So the best passages of a block are found without sorting it.

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
# A number of a float vector becomes this many steps. With vectors of length 1, all sums of products stay below 2^53,
# up to which float64 holds every whole number.
STEPS = 2**26


class TopK:
    """The k best passages of each query so far. Of passages with equal scores, the earlier one is better."""

    def __init__(self, queries: np.ndarray, k: int, device: str = "cpu", block: int = BLOCK) -> None:
        """Start with no passages.

        Args:
            queries: [q, D], vectors of length 1, or int8 vectors of any length.
            k: passages that are kept for each query.
            device: where vectors are compared.
            block: number of queries, and of passages, that are compared at once.
        """
        self._queries, self._dtype = _whole(queries).to(device), queries.dtype
        self._lengths = _squares(self._queries)[:, None]
        self._k, self._block, self._count = k, block, 0
        self._keys = torch.empty(len(queries), 0, dtype=torch.int64, device=device)

    def add(self, passages: np.ndarray) -> None:
        """Compare with the next passages, [m, D], of the same kind. Their numbers follow the earlier ones."""
        for start in range(0, len(passages), self._block):
            block = _whole(passages[start : start + self._block]).to(self._queries.device)
            lengths = _squares(block)
            bests = [self._best_with(rows, block, lengths) for rows in range(0, len(self._queries), self._block)]
            self._keys = torch.cat(bests)
            self._count += len(block)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Passage numbers and scores, both [q, min(k, p)], best first."""
        keys = self._keys.sort(dim=1, descending=True).values.cpu()
        return (LAST - (keys & LAST)).numpy(), _unordered(keys >> 32).numpy()

    def _best_with(self, start: int, block: Tensor, lengths: Tensor) -> Tensor:
        rows = slice(start, start + self._block)
        scores = _cosines(self._queries[rows] @ block.T, self._lengths[rows], lengths, self._dtype)
        keys = _keys(scores, self._count)
        if self._keys.shape[1]:
            keys = torch.cat([self._keys[rows], keys], 1)
        return keys.topk(min(self._k, keys.shape[1]), dim=1, sorted=False).values


def search(queries: np.ndarray, passages: np.ndarray, k: int, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the k passages with the highest cosines for each query, both [q, min(k, p)].

    Args:
        queries: [q, D], vectors of length 1, or int8 vectors of any length.
        passages: [p, D], likewise.
        k: passages that are found for each query.
        block: see `TopK`.

    >>> search(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]), k=1)
    (array([[1]]), array([[1.]], dtype=float32))
    """
    top = TopK(queries, k, block=block)
    top.add(passages)
    return top.result()


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The scores that `TopK` compares, of n pairs of vectors: [n] float32.

    Args:
        left: [n, D], or [D] for all pairs, vectors of length 1, or int8 vectors of any length.
        right: [n, D], likewise.

    >>> cosines(np.array([0.6, 0.8]), np.array([[1.0, 0.0], [0.6, 0.8]]))
    array([0.6, 1. ], dtype=float32)
    """
    one, other = _whole(np.atleast_2d(left)), _whole(right)
    products = torch.einsum("nd,nd->n", one.expand_as(other), other)
    return _cosines(products, _squares(one), _squares(other), right.dtype).numpy()


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

    The passages that the index finds are ranked by their exact scores.

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
    _, numbers = index.search(np.ascontiguousarray(queries, np.float32), min(k, len(vectors)))
    if (numbers < 0).any():
        raise UserError(f"finds fewer than {k} passages for a query; use another index", "faiss_index", faiss_index)
    numbers.sort(axis=1)  # of equal scores, the earlier one is better
    scores = np.stack([cosines(query, vectors[found]) for query, found in zip(queries, numbers, strict=True)])
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(scores, order, 1)


@contextmanager
def _explained(faiss_index: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(str(error).strip().splitlines()[-1], "faiss_index", faiss_index) from None


def _whole(vectors: np.ndarray) -> Tensor:
    """Vectors in float64: those of int8 as they are, the numbers of others rounded to `STEPS` to the unit."""
    numbers = torch.from_numpy(np.array(vectors, np.float64))  # a copy, because the cache's vectors are read-only
    return numbers if vectors.dtype == np.int8 else numbers.mul_(STEPS).round_().div_(STEPS)


def _cosines(products: Tensor, left: Tensor, right: Tensor, dtype: np.dtype) -> Tensor:
    """float32 cosines from the products of two sets of `_whole` vectors; a vector of zeros has cosine 0 with all.

    Args:
        products: exact, of any shape.
        left: squared lengths of one set, in a shape that fits to `products`.
        right: likewise, of the other set.
        dtype: of the vectors before `_whole`. Vectors of other types than int8 are of length 1 already.
    """
    return (products / (left * right).sqrt_().clamp_(min=1) if dtype == np.int8 else products).float()


def _squares(numbers: Tensor) -> Tensor:
    """[n] squared lengths of `_whole` vectors, [n, D]; exact."""
    return torch.einsum("nd,nd->n", numbers, numbers)


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
