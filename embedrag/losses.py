"""Contrastive loss on embeddings.

Dimensions: B queries, P passages, D components, E excluded pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_SCORES = 1 << 22


def info_nce(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    labels: Tensor,
    excluded: Tensor,
    temperature: float,
    shared: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE: each query should score its positive above every other candidate (arXiv 1807.03748, 2004.04906).

    loss_i = -log( exp(s(i, label_i) / t) / sum_{j in candidates(i)} exp(s(i, j) / t) ), s = cosine, in float32.
    Without exclusions this is sentence-transformers' MultipleNegativesRankingLoss with scale = 1 / t. Needs (query,
    positive) rows, own negatives optional. Cost: 8 * B * P * D operations; the scores exist in tiles of `TILE_SCORES`.

    Args:
        query_embeddings: [B, D].
        passage_embeddings: [P, D].
        labels: [B] column of each query's positive.
        excluded: [E, 2] (query, passage) pairs that are no candidates.
        temperature: t, above 0.
        shared: [P] True where a passage is a candidate of every query; a query's own positive always is one. Left out:
            all passages are.

    Returns:
        The loss of each query [B], and whether its positive scored best [B].

    >>> q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> loss, correct = info_nce(q, q, torch.tensor([0, 1]), torch.empty(0, 2, dtype=torch.long), temperature=1.0)
    >>> round(loss.mean().item(), 4), correct.tolist()
    (0.3133, [True, True])
    """
    queries = F.normalize(_float(query_embeddings), dim=-1)
    passages = F.normalize(_float(passage_embeddings), dim=-1)
    candidates = _Candidates(labels, excluded, shared)
    loss, correct = _TiledInfoNCE.apply(queries, passages, candidates, temperature)  # type: ignore[no-untyped-call]
    return loss, correct


@dataclass(frozen=True)
class _Candidates:
    """Which passages count for which query."""

    labels: Tensor
    excluded: Tensor
    shared: Tensor | None

    def close(self, scores: Tensor, start: int) -> Tensor:
        """Set the scores of what is no candidate to -inf, in place; `scores` are those of queries `start` and later."""
        labels = self.labels[start : start + len(scores)]
        rows = torch.arange(len(scores), device=scores.device)
        own = scores[rows, labels]
        if self.shared is not None:
            scores.masked_fill_(~self.shared, float("-inf"))
        query, passage = self.excluded.unbind(1)
        here = (query >= start) & (query < start + len(scores))
        scores[query[here] - start, passage[here]] = float("-inf")
        scores[rows, labels] = own
        return scores


class _TiledInfoNCE(torch.autograd.Function):
    """Scores are computed for some queries at a time, once for the value and once more for the gradient.

    So memory is that of one tile, whatever B and P, for 8 instead of 6 * B * P * D operations (Inf-CL, arXiv
    2410.17243, tiles both sides; a row of scores is small enough to be whole).
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, passages: Tensor, candidates: _Candidates, temperature: float
    ) -> tuple[Tensor, Tensor]:
        losses, correct = [], []
        for start, tile in _tiles(queries, len(passages)):
            labels = candidates.labels[start : start + len(tile)]
            scores = candidates.close((tile @ passages.T).div_(temperature), start)
            losses.append(scores.logsumexp(1) - scores.gather(1, labels[:, None])[:, 0])
            correct.append(scores.argmax(1) == labels)
        ctx.save_for_backward(queries, passages)
        ctx.candidates, ctx.temperature = candidates, temperature
        ctx.mark_non_differentiable(every := torch.cat(correct))
        return torch.cat(losses), every

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, passages = ctx.saved_tensors
        of_queries, of_passages = torch.empty_like(queries), torch.zeros_like(passages)
        for start, tile in _tiles(queries, len(passages)):
            here = slice(start, start + len(tile))
            scores = ctx.candidates.close((tile @ passages.T).div_(ctx.temperature), start)
            of_scores = scores.softmax(1)
            of_scores[torch.arange(len(tile), device=tile.device), ctx.candidates.labels[here]] -= 1
            of_scores *= gradients[0][here, None] / ctx.temperature
            of_queries[here] = of_scores @ passages
            of_passages.addmm_(of_scores.T, tile)
        return of_queries, of_passages, None, None


def _tiles(queries: Tensor, passages: int) -> Iterator[tuple[int, Tensor]]:
    """(first query, [b, D]) of each tile."""
    rows = max(1, TILE_SCORES // passages)
    return ((start, queries[start : start + rows]) for start in range(0, len(queries), rows))


def _float(embeddings: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
