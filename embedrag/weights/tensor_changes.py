"""What an adapter does to one tensor of its base: new values, a low-rank change, single rows, an addition.

Dimensions: r is the rank, i the number of inputs of a layer, o the number of its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The change of one layer's weight: scale * B A. With DoRA (arXiv 2402.09353) its rows get new lengths too.

    Attributes:
        a: [r, i] float32.
        b: [o, r] float32.
        scale: alpha / r, or alpha / sqrt(r) for rsLoRA.
        transposed: the stored weight is [i, o] and not [o, i] (embeddings, GPT-2's layers).
        magnitude: DoRA's lengths of the rows of the merged weight, [o] float32. None: no DoRA.
        embedding: the layer is a table of token vectors; i is then the number of tokens.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the stored weight that it changes."""
        shape = (self.b.shape[0], self.a.shape[1])
        return (shape[1], shape[0]) if self.transposed else shape

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the change, float32."""
        if self.transposed:
            return self.scale * (self.a[:, start:stop].T @ self.b.T)
        return self.scale * (self.b[start:stop] @ self.a)

    def merged(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the merged weight, float32, from the same rows of the base's weight."""
        changed = weight.float() + self.rows(start, stop)
        if self.magnitude is None:
            return changed
        scaled: Tensor = changed * (self.magnitude[start:stop] / changed.norm(dim=1))[:, None]
        return scaled


@dataclass(frozen=True)
class TokenRows:
    """New vectors of single tokens (peft's `trainable_token_indices`).

    Attributes:
        indices: of the n tokens.
        values: their vectors, [n, D].
    """

    indices: tuple[int, ...]
    values: Tensor

    def merged(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the table with the new vectors, from the same rows of the old one."""
        places = [(place, index - start) for place, index in enumerate(self.indices) if start <= index < stop]
        if not places:
            return weight
        changed = weight.float().clone()
        changed[[row for _, row in places]] = self.values[[place for place, _ in places]].float()
        return changed


@dataclass
class TensorChange:
    """Everything that an adapter does to one tensor, in this order.

    Attributes:
        replaced: the values that the tensor has from the start, instead of the base's.
        low_rank: change of a layer's weight.
        tokens: new vectors of single tokens.
        added: what is added to a bias, [o] float32.
    """

    replaced: Tensor | None = None
    low_rank: LowRank | None = None
    tokens: TokenRows | None = None
    added: Tensor | None = None

    def merged(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the merged tensor, from the same rows of the base's."""
        if self.replaced is not None:
            weight = self.replaced[start:stop] if self.replaced.ndim else self.replaced
        if self.low_rank is not None:
            weight = self.low_rank.merged(weight, start, stop)
        if self.tokens is not None:
            weight = self.tokens.merged(weight, start, stop)
        return weight if self.added is None else weight.float() + self.added[start:stop]

    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        low = self.low_rank
        parts = [self.replaced, self.added, self.tokens.values if self.tokens else None]
        parts += [low.a, low.b, low.magnitude] if low else []
        return all(bool(torch.isfinite(part).all()) for part in parts if part is not None)
