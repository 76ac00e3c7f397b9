"""Contrastive loss on embeddings.

Dimensions: B queries, P passages, D components, E excluded pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE_SCORES = 1 << 20
ROWS = 1024


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
    candidates = _Candidates(labels, excluded, shared)
    loss, correct = _TiledInfoNCE.apply(  # type: ignore[no-untyped-call]
        _float(query_embeddings), _float(passage_embeddings), candidates, temperature
    )
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
    2410.17243, tiles both sides; a row of scores is small enough to be whole). Vectors are not normalised as a whole
    either, their scores are: copies of the vectors would be the larger part of the memory.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, passages: Tensor, candidates: _Candidates, temperature: float
    ) -> tuple[Tensor, Tensor]:
        scales = _inverse_norms(queries) / temperature, _inverse_norms(passages)
        # Results have their place from the start: small ones left between large ones would scatter the memory.
        losses, correct = queries.new_empty(len(queries)), torch.empty_like(candidates.labels, dtype=torch.bool)
        for here, tile in _tiles(queries, len(passages)):
            scores = candidates.close(_scores(tile, passages, scales[0][here], scales[1]), here.start)
            labels = candidates.labels[here]
            torch.sub(scores.logsumexp(1), scores.gather(1, labels[:, None])[:, 0], out=losses[here])
            torch.eq(scores.argmax(1), labels, out=correct[here])
        ctx.save_for_backward(queries, passages, *scales)
        ctx.candidates, ctx.temperature = candidates, temperature
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, passages, of_query, of_passage = ctx.saved_tensors
        of_queries, of_passages = torch.empty_like(queries), torch.zeros_like(passages)
        for here, tile in _tiles(queries, len(passages)):
            scores = ctx.candidates.close(_scores(tile, passages, of_query[here], of_passage), here.start)
            of_scores = scores.softmax(1)
            of_scores[torch.arange(len(tile), device=tile.device), ctx.candidates.labels[here]] -= 1
            of_scores *= gradients[0][here, None] * of_query[here, None] * of_passage
            of_queries[here] = of_scores @ passages
            of_passages.addmm_(of_scores.T, tile)
        _remove_radial(of_queries, queries, of_query * ctx.temperature)
        _remove_radial(of_passages, passages, of_passage)
        return of_queries, of_passages, None, None


def _inverse_norms(vectors: Tensor) -> Tensor:
    """[n, D] -> [n]."""
    norms: Tensor = vectors.norm(dim=1)
    return norms.clamp(min=1e-12).reciprocal()


def _scores(queries: Tensor, passages: Tensor, of_query: Tensor, of_passage: Tensor) -> Tensor:
    """[b, P] products, scaled by a factor a row and one a column."""
    return (queries @ passages.T).mul_(of_query[:, None]).mul_(of_passage)


def _remove_radial(gradient: Tensor, vectors: Tensor, inverse_norms: Tensor) -> None:
    """Take out, in place, what would lengthen the vectors, for a cosine does not depend on their length.

    Args:
        gradient: [n, D], of the products, with the norms' factors in it.
        vectors: [n, D].
        inverse_norms: [n].
    """
    for start in range(0, len(vectors), ROWS):
        here = slice(start, start + ROWS)
        along = (gradient[here] * vectors[here]).sum(1) * inverse_norms[here].square()
        gradient[here].addcmul_(vectors[here], along[:, None], value=-1)


def _tiles(queries: Tensor, passages: int) -> Iterator[tuple[slice, Tensor]]:
    """(place, [b, D]) of each tile."""
    rows = max(1, TILE_SCORES // passages)
    places = (slice(start, min(start + rows, len(queries))) for start in range(0, len(queries), rows))
    return ((place, queries[place]) for place in places)


def _float(embeddings: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
