"""Slow, obvious forms that the fast ones are tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def info_nce_loop(
    queries: Tensor, passages: Tensor, labels: list[int], closed: set[tuple[int, int]], temperature: float
) -> Tensor:
    """InfoNCE by double loop: one number a query, autograd through plain arithmetic."""
    losses = []
    for i, label in enumerate(labels):
        terms = []
        for j in range(len(passages)):
            if (i, j) in closed and j != label:
                continue
            cosine = (queries[i] * passages[j]).sum() / (queries[i].norm() * passages[j].norm())
            terms.append((cosine / temperature, j == label))
        total = sum((score - terms[0][0]).exp() for score, _ in terms)
        own = next(score for score, is_own in terms if is_own)
        losses.append(terms[0][0] + total.log() - own)
    return torch.stack(losses)


def pool_loop(hidden: list[Tensor], pooling: str) -> Tensor:
    """Pooling of texts given as a list of [length, H]."""
    kinds = {"mean": lambda h: h.sum(0) / len(h), "cls": lambda h: h[0], "last_token": lambda h: h[-1]}
    return torch.stack([kinds[pooling](h) for h in hidden])


def cosine_distance(a: Tensor, b: Tensor) -> float:
    """Largest 1 - cosine over rows."""
    return float((1 - torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)).max())


def ndcg_loop(gains: list[float], relevant: list[float], k: int) -> float:
    """nDCG@k by its definition."""
    ideal = sorted(relevant, reverse=True)
    dcg = sum(gains[i] / math.log2(i + 2) for i in range(min(k, len(gains))))
    return dcg / sum(ideal[i] / math.log2(i + 2) for i in range(min(k, len(ideal))))


def attention_loop(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scaling: float, causal: bool, window: int | None
) -> Tensor:
    """Attention of packed texts, one token of one head at a time: [H, T, D], [G, T, D] -> [T, H, D]."""
    out = torch.zeros(q.shape[1], q.shape[0], q.shape[2], dtype=q.dtype)
    start = 0
    for length in lengths:
        for head in range(len(q)):
            group = head // (len(q) // len(k))
            for i in range(length):
                seen = [
                    j
                    for j in range(length)
                    if not (causal and j > i) and not (window is not None and abs(i - j) >= window)
                ]
                scores = torch.stack([q[head, start + i] @ k[group, start + j] * scaling for j in seen])
                weights = scores.softmax(0)
                out[start + i, head] = sum(w * v[group, start + j] for w, j in zip(weights, seen, strict=True))
        start += length
    return out
