"""The k passages of highest cosine, found block by block: passages may come as a stream and are never held.

Score and number of a passage are put into one 64-bit integer whose order is that of the ranking, ties included, so the
best of a block are found without sorting it, and the result does not depend on the blocks.

Dimensions: q queries, p passages, D components.
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
    """The best passages so far of each query; ties go to the earlier passage."""

    def __init__(self, queries: np.ndarray, k: int, device: str = "cpu", block: int = BLOCK) -> None:
        """Start with no passages.

        Args:
            queries: [q, D], length 1.
            k: how many passages are kept for each.
            device: where vectors are compared.
            block: queries and passages that are compared at once.
        """
        self._queries = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
        self._k, self._block, self._count = k, block, 0
        self._keys = torch.empty(len(queries), 0, dtype=torch.int64, device=device)

    def add(self, passages: np.ndarray) -> None:
        """Compare with further passages [m, D], length 1; they are numbered on."""
        for start in range(0, len(passages), self._block):
            part = np.array(passages[start : start + self._block], np.float32)  # a copy, for mapped ones are read-only
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
    """Numbers and scores of the k passages of highest cosine for each query, both [q, min(k, p)].

    >>> search(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]), k=1)
    (array([[1]]), array([[1.]], dtype=float32))
    """
    top = TopK(queries, k, block=block)
    top.add(passages)
    return top.result()


def best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest of [p] scores, best first; ties go to the earlier.

    >>> best_of(np.array([1.0, 3.0, 3.0], np.float32), 2)
    array([1, 2])
    """
    keys = _keys(torch.from_numpy(np.ascontiguousarray(scores, np.float32))[None], 0)[0]
    return (LAST - (keys.topk(min(k, len(keys))).values & LAST)).numpy()


def search_faiss(
    queries: np.ndarray, passages: Iterable[np.ndarray], k: int, factory: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same through a FAISS index (arXiv 2401.08281), which may be approximate and holds all passages.

    Args:
        queries: [q, D], length 1.
        passages: blocks of them, length 1.
        k: how many.
        factory: FAISS's own name of the index, such as `HNSW32`, `Flat` or `IVF1024,Flat`.

    Raises:
        UserError: when faiss is missing, does not know the index, or finds fewer than k.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("--faiss_index needs faiss: pip install faiss-cpu (or leave the flag out)") from None
    with _explained(factory):
        index = faiss.index_factory(queries.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    vectors = np.ascontiguousarray(np.concatenate(list(passages)), np.float32)  # they may be encoded only now
    with _explained(factory):
        index.train(vectors)
        index.add(vectors)
    scores, numbers = index.search(np.ascontiguousarray(queries, np.float32), min(k, len(vectors)))
    if (numbers < 0).any():
        raise UserError(f"--faiss_index {factory}: found fewer than {k} passages for a query; take another index")
    return numbers, scores


@contextmanager
def _explained(factory: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"--faiss_index {factory}: {str(error).strip().splitlines()[-1]}") from None


def _keys(scores: Tensor, first: int) -> Tensor:
    """Integers in the order of (score, earlier number)."""
    numbers = torch.arange(first, first + scores.shape[1], device=scores.device)
    return (_ordered(scores).long() << 32) | (LAST - numbers)


def _ordered(scores: Tensor) -> Tensor:
    """The bits of float32 as integers in the order of the numbers; -0.0 is 0.0."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _unordered(bits: Tensor) -> Tensor:
    bits = bits.to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
