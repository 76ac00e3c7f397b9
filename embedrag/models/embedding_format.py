"""Smaller formats of a vector: only its first dimensions (Matryoshka, arXiv 2205.13147), or numbers of fewer bits.

To train a model for a format, the loss is also computed on vectors in that format. Rounding has no gradient, so the
gradient passes through it unchanged (straight-through estimator, arXiv 1308.3432).

Letters: n vectors, D dimensions of a vector, d <= D of them kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": "<f4", "int8": "|i1", "binary": "|u1"}


@dataclass(frozen=True)
class EmbeddingFormat:
    """A format of a vector.

    Attributes:
        dim: d, how many of the first dimensions are kept; None: all.
        precision: `float32`; `int8`, 127 steps between zero and the largest number of the vector; `binary`, the signs.
        weight: of the loss on vectors in this format.

    >>> EmbeddingFormat(2, "binary")(torch.tensor([[0.6, -0.1, 0.8]]))
    tensor([[ 0.7071, -0.7071]])
    """

    dim: int | None = None
    precision: str = "float32"
    weight: float = 1.0

    def __call__(self, vectors: Tensor) -> Tensor:
        """[n, D] -> [n, d] for a loss of cosines, with the gradient of the vectors before rounding."""
        if self.precision == "float32":
            return vectors[:, : self.dim]  # a cosine does not depend on the lengths of the vectors
        kept = torch.nn.functional.normalize(vectors[:, : self.dim], dim=1)
        rounded = self._rounded(kept.detach())
        return kept + (torch.nn.functional.normalize(rounded, dim=1) - kept).detach()

    def of(self, vectors: np.ndarray) -> np.ndarray:
        """[n, D] -> [n, d], the numbers of what is stored, as a search engine compares them.

        Returns:
            float32 as given; for `int8` and `binary` whole numbers of int8, those of `binary` -1 and 1.
        """
        kept: np.ndarray = vectors[:, : self.dim]
        return kept if self.precision == "float32" else self._rounded(torch.from_numpy(kept)).numpy().astype(np.int8)

    def stored(self, vectors: np.ndarray) -> np.ndarray:
        """What is stored of vectors [n, D].

        Returns:
            [n, d] float32 of length 1, [n, d] int8, or bits [n, ceil(d / 8)] as uint8; a bit is 1 for a number above 0.
        """
        kept: np.ndarray = vectors[:, : self.dim]
        if self.precision == "binary":
            return np.packbits(kept > 0, axis=1)
        if self.precision == "int8":
            return self.of(vectors)
        lengths = np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
        return np.asarray(kept / lengths, np.float32)

    def width(self, dimension: int) -> int:
        """Numbers (bytes, for bits) of a stored vector of a model with `dimension` dimensions."""
        kept = self.dim or dimension
        return -(-kept // 8) if self.precision == "binary" else kept

    def bytes(self, dimension: int) -> int:
        """Bytes of a stored vector of a model with `dimension` dimensions."""
        return self.width(dimension) * np.dtype(DTYPES[self.precision]).itemsize

    def __str__(self) -> str:
        size = f"{self.dim} dimensions" if self.dim else "all dimensions"
        return f"{size}, {self.precision}"

    def _rounded(self, kept: Tensor) -> Tensor:
        if self.precision == "binary":
            return (kept > 0).to(kept) * 2 - 1
        return (kept / kept.abs().amax(1, keepdim=True).clamp(min=1e-12) * 127).round()


def trained_formats(
    dims: Sequence[int], weights: Sequence[float], precisions: Sequence[str]
) -> tuple[EmbeddingFormat, ...]:
    """The formats that a model is trained for: each number of dimensions, and the whole vector in other precisions.

    Args:
        dims: numbers of dimensions (Matryoshka); empty: the whole vector only.
        weights: of the losses, one for each of `dims`; empty: all 1.
        precisions: other precisions than float32.
    """
    by_dim = [
        EmbeddingFormat(dim, "float32", weight) for dim, weight in zip(dims, weights or [1.0] * len(dims), strict=True)
    ]
    return (
        *(by_dim or [EmbeddingFormat()]),
        *(EmbeddingFormat(None, precision) for precision in precisions if precision != "float32"),
    )


def matryoshka_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a model that was trained for several numbers of dimensions; vLLM reads it.

    Args:
        settings: of the training, by the names of its options.

    >>> matryoshka_keys({"matryoshka_dims": [64, 32]})
    {'is_matryoshka': True, 'matryoshka_dimensions': [32, 64]}
    """
    dims = settings.get("matryoshka_dims")
    return {"is_matryoshka": True, "matryoshka_dimensions": sorted(dims)} if dims else {}
