"""A loss of cosines in the memory of one tile.

The matrix of cosines between queries and passages grows with the square of the batch. Here it never exists as a whole:
a tile of it (some rows, all columns) is computed, a plain PyTorch function makes losses of it, and the tile is
forgotten. The backward pass computes every tile once more. So memory does not grow with the batch. The price is 8
instead of 6 * B * P * D operations. (Inf-CL, arXiv 2410.17243, cuts both sides into tiles; here a row of cosines is
small enough to be whole.) The products are normalised and not the vectors, because a normalised copy of all vectors
would be the larger part of the memory.

Dimensions: B queries, P passages, D dimensions, b pairs of a tile, n vectors of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}  # larger tiles leave the caches of a CPU; a GPU wants few launches
ROWS = 1024
QUERIES, PASSAGES = 0, 1  # the two sides


@dataclass(frozen=True)
class Block:
    """Cosines between some vectors of one side and all vectors of a side.

    Attributes:
        side: QUERIES or PASSAGES, the side of the rows.
        rows: the b vectors of that side, one for each pair of the tile.
        columns: QUERIES or PASSAGES, the side of the columns.
    """

    side: int
    rows: slice | Tensor
    columns: int


# From the pairs of a tile to the blocks that their loss needs.
Blocks = Callable[[slice], list[Block]]
# From the cosines of these blocks, [b, B] or [b, P] each, and the pairs, to their losses [b] and hits [b]. It must be
# differentiable PyTorch, and each loss may depend only on its own row.
TileLoss = Callable[[list[Tensor], slice], tuple[Tensor, Tensor]]


def tiled(queries: Tensor, passages: Tensor, pairs: slice, blocks: Blocks, loss: TileLoss) -> tuple[Tensor, Tensor]:
    """Losses of some pairs, with a gradient for all vectors.

    Args:
        queries: [B, D], of any length, float32 or float64.
        passages: [P, D].
        pairs: the pairs that the loss is computed for, with start and stop.
        blocks: which cosines the pairs of a tile need.
        loss: makes losses and hits of them.

    Returns:
        The losses [stop - start], and the hits [stop - start], which are bool and have no gradient.
    """
    result: tuple[Tensor, Tensor] = _Tiled.apply(queries, passages, pairs, blocks, loss)  # type: ignore[no-untyped-call]
    return result


class _Tiled(torch.autograd.Function):
    """Computes the cosines of each tile twice, once for the value and once for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, passages: Tensor, pairs: slice, blocks: Blocks, loss: TileLoss
    ) -> tuple[Tensor, Tensor]:
        sides = _Side(queries), _Side(passages)
        count = pairs.stop - pairs.start
        # Memory for all results is taken at the start. Small results between large ones would fragment the memory.
        losses, hits = queries.new_empty(count), torch.empty(count, dtype=torch.bool, device=queries.device)
        for here in _tiles(pairs, passages):
            tile = slice(here.start - pairs.start, here.stop - pairs.start)
            losses[tile], hits[tile] = loss([_cosines(block, sides) for block in blocks(here)], here)
        ctx.save_for_backward(queries, passages)
        ctx.pairs, ctx.blocks, ctx.loss = pairs, blocks, loss
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        pairs, of_losses = ctx.pairs, gradients[0]
        sides = tuple(_Side(vectors, torch.zeros_like(vectors)) for vectors in ctx.saved_tensors)
        for here in _tiles(pairs, sides[PASSAGES].vectors):
            blocks = ctx.blocks(here)
            cosines = [_cosines(block, sides).requires_grad_() for block in blocks]
            with torch.enable_grad():
                losses, _ = ctx.loss(cosines, here)
            tile = of_losses[here.start - pairs.start : here.stop - pairs.start]
            of_cosines = torch.autograd.grad(losses, cosines, tile, allow_unused=True)
            for block, gradient in zip(blocks, of_cosines, strict=True):
                if gradient is not None:
                    _add_gradient(block, sides, gradient)
        for side in sides:
            side.remove_radial()
        return sides[QUERIES].gradient, sides[PASSAGES].gradient, None, None, None


class _Side:
    """Vectors [n, D], 1 / their lengths [n], and the sum of their gradients [n, D]."""

    def __init__(self, vectors: Tensor, gradient: Tensor | None = None) -> None:
        self.vectors = vectors
        self.inverse_norms: Tensor = vectors.norm(dim=1).clamp(min=1e-12).reciprocal()
        self.gradient = torch.empty(0) if gradient is None else gradient

    def remove_radial(self) -> None:
        """Remove the radial part of the gradient, in place: a cosine does not depend on the length of a vector."""
        for start in range(0, len(self.vectors), ROWS):
            here = slice(start, start + ROWS)
            along = (self.gradient[here] * self.vectors[here]).sum(1) * self.inverse_norms[here].square()
            self.gradient[here].addcmul_(self.vectors[here], along[:, None], value=-1)


def _cosines(block: Block, sides: Sequence[_Side]) -> Tensor:
    """[b, n]."""
    side, columns = sides[block.side], sides[block.columns]
    products = side.vectors[block.rows] @ columns.vectors.T
    return products.mul_(side.inverse_norms[block.rows][:, None]).mul_(columns.inverse_norms)


def _add_gradient(block: Block, sides: Sequence[_Side], gradient: Tensor) -> None:
    """Turn the gradient [b, n] of the cosines into gradients of both sides, without the radial part, and add them."""
    side, columns = sides[block.side], sides[block.columns]
    gradient = gradient * side.inverse_norms[block.rows][:, None] * columns.inverse_norms
    of_rows = gradient @ columns.vectors
    columns.gradient.addmm_(gradient.T, side.vectors[block.rows])
    if isinstance(block.rows, slice):
        side.gradient[block.rows] += of_rows
    else:
        side.gradient.index_add_(0, block.rows, of_rows)


def _tiles(pairs: slice, passages: Tensor) -> Iterator[slice]:
    rows = max(1, TILE_SCORES.get(passages.device.type, 1 << 20) // len(passages))
    return (slice(start, min(start + rows, pairs.stop)) for start in range(pairs.start, pairs.stop, rows))
