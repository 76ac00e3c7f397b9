"""Shorter forms of a vector: its first components (Matryoshka), and numbers of fewer bits.

A model is trained for a form by taking the loss of the vectors in that form too. Rounding has no gradient, so it passes
through as if there were none (straight-through estimator, arXiv 1308.3432).

Dimensions: n vectors, D components, d <= D of them kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": "<f4", "int8": "|i1", "binary": "|u1"}


@dataclass(frozen=True)
class EmbeddingFormat:
    """A form of a vector.

    Attributes:
        dim: d, components that are kept; None: all.
        precision: `float32`; `int8`: of the largest component 127 steps to either side; `binary`: the sign.
        weight: of its loss.

    >>> View(2, "binary")(torch.tensor([[0.6, -0.1, 0.8]]))
    tensor([[ 0.7071, -0.7071]])
    """

    dim: int | None = None
    precision: str = "float32"
    weight: float = 1.0

    def __call__(self, vectors: Tensor) -> Tensor:
        """[n, D] -> [n, d], with the gradient of the vectors before rounding; the length says nothing."""
        if self.precision == "float32":
            return vectors[:, : self.dim]  # losses are of cosines, whatever the length
        kept = torch.nn.functional.normalize(vectors[:, : self.dim], dim=1)
        rounded = self._rounded(kept.detach())
        return kept + (torch.nn.functional.normalize(rounded, dim=1) - kept).detach()

    def of(self, vectors: np.ndarray) -> np.ndarray:
        """[n, D] -> [n, d] as a search engine would compare them: float32 values of what is stored."""
        kept: np.ndarray = vectors[:, : self.dim]
        return kept if self.precision == "float32" else self._rounded(torch.from_numpy(kept)).float().numpy()

    def stored(self, vectors: np.ndarray) -> np.ndarray:
        """What is kept of vectors [n, D]: float32 [n, d], int8 [n, d], or bits [n, ceil(d / 8)] as uint8, 1 for > 0."""
        kept: np.ndarray = vectors[:, : self.dim]
        if self.precision == "binary":
            return np.packbits(kept > 0, axis=1)
        if self.precision == "int8":
            return self._rounded(torch.from_numpy(kept)).numpy().astype(np.int8)
        lengths = np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
        return np.asarray(kept / lengths, np.float32)

    def width(self, dimension: int) -> int:
        """Numbers of a stored vector of a model of `dimension` components."""
        kept = self.dim or dimension
        return -(-kept // 8) if self.precision == "binary" else kept

    def bytes(self, dimension: int) -> int:
        """Bytes of a stored vector of a model of `dimension` components."""
        return self.width(dimension) * np.dtype(DTYPES[self.precision]).itemsize

    def __str__(self) -> str:
        size = f"{self.dim} components" if self.dim else "all components"
        return f"{size}, {self.precision}"

    def _rounded(self, kept: Tensor) -> Tensor:
        if self.precision == "binary":
            return (kept > 0).to(kept) * 2 - 1
        return (kept / kept.abs().amax(1, keepdim=True).clamp(min=1e-12) * 127).round()


def views(dims: Sequence[int], weights: Sequence[float], precisions: Sequence[str]) -> tuple[EmbeddingFormat, ...]:
    """The forms that a training learns: one for each dimension, and the whole vector in each further precision.

    Args:
        dims: Matryoshka dimensions; none: the whole vector.
        weights: one for each of `dims`, or none.
        precisions: beside float32.
    """
    by_dim = [
        EmbeddingFormat(dim, "float32", weight) for dim, weight in zip(dims, weights or [1.0] * len(dims), strict=True)
    ]
    return (
        *(by_dim or [EmbeddingFormat()]),
        *(EmbeddingFormat(None, precision) for precision in precisions if precision != "float32"),
    )
