"""Contrastive loss on embeddings.

Dimensions: B queries, P passages, D components, E excluded pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    positive) rows, own negatives optional. Cost: B * P * D multiplications and a [B, P] matrix.

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
    scores = queries @ passages.T / temperature
    closed = torch.zeros_like(scores, dtype=torch.bool)
    if shared is not None:
        closed |= ~shared[None, :]
    closed[excluded[:, 0], excluded[:, 1]] = True
    closed[torch.arange(len(labels), device=labels.device), labels] = False
    scores = scores.masked_fill(closed, float("-inf"))
    loss = F.cross_entropy(scores, labels, reduction="none")
    return loss, scores.detach().argmax(dim=1) == labels


def _float(embeddings: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
