"""Slow, obvious forms that the fast ones are tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embedrag.losses.contrastive import LossSettings
from embedrag.losses.pairs import Pairs


def info_nce_loop(
    queries: Tensor, passages: Tensor, labels: list[int], closed: set[tuple[int, int]], temperature: float
) -> Tensor:
    """InfoNCE by a double loop: one number a query, with the gradient of plain arithmetic."""
    losses = []
    for i, label in enumerate(labels):
        scores = []
        for j in range(len(passages)):
            if (i, j) in closed and j != label:
                continue
            cosine = (queries[i] * passages[j]).sum() / (queries[i].norm() * passages[j].norm())
            scores.append((cosine / temperature, j == label))
        total = sum((score - scores[0][0]).exp() for score, _ in scores)
        own = next(score for score, is_own in scores if is_own)
        losses.append(scores[0][0] + total.log() - own)
    return torch.stack(losses)


def contrastive_loop(q: Tensor, p: Tensor, pairs: Pairs, settings: LossSettings, guide: bool = False) -> Tensor:
    """Every part of the loss by loops over pairs and candidates: one number a pair."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / (a.norm() * b.norm())

    labels, owner = pairs.labels.tolist(), pairs.owner.tolist()
    excluded = {(n, j) for n, j in pairs.excluded.tolist()}
    asks = list(range(len(labels))) if pairs.query is None else pairs.query.tolist()
    queries, passages = range(len(q)), range(len(owner))

    def friends(n: int, j: int) -> bool:
        """Whether the pair's query has a positive of query j among its own, or j the pair's positive."""
        theirs = [m for m, query in enumerate(asks) if query == j]
        return any((n, labels[m]) in excluded or (m, labels[n]) in excluded for m in theirs)

    losses = []
    for n, i in enumerate(asks):
        own = cosine(q[i], p[labels[n]])
        groups: dict[str, list[Tensor]] = {name: [] for name in settings.directions}
        for j in passages:
            score = cosine(q[i], p[j])
            seen = score if not guide else pairs.guide[0][i] @ pairs.guide[1][j]
            bar = own if not guide else pairs.guide[0][i] @ pairs.guide[1][labels[n]]
            false = settings.false_negative_margin is not None and bool(seen > bar + settings.false_negative_margin)
            narrow = settings.candidates == "hard" and j in labels
            if j != labels[n] and (false or narrow or (n, j) in excluded):
                continue
            counts = {"all": True, "own": owner[j] == i, "in_batch": owner[j] != i}[settings.hardness_mode]
            harder = settings.hardness_strength * float(score.detach()) if counts and j != labels[n] else 0.0
            groups["query_passage"].append(score / settings.temperature + harder)
        for direction in settings.directions:
            if direction == "query_passage":
                continue
            for j in passages if direction == "passage_passage" else queries:
                if direction == "passage_passage":
                    if owner[j] == i or (n, j) in excluded:
                        continue
                    pair = p[labels[n]], p[j]
                else:
                    if (direction == "query_query" and i == j) or (i != j and friends(n, j)):
                        continue
                    pair = (q[i] if direction == "query_query" else p[labels[n]]), q[j]
                groups[direction].append(cosine(*pair) / settings.temperature)
        sets = list(groups.values())
        if settings.partition_mode == "joint":
            sets = [[score for group in sets for score in group]]
        total = sum(torch.stack(scores).logsumexp(0) for scores in sets) / len(sets)
        loss = total - own / settings.temperature
        if settings.distillation:
            teacher = pairs.teacher.tolist()
            mine = [j for j in passages if owner[j] == i and not math.isnan(teacher[j])]
            if labels[n] in mine and len(mine) > 1:
                student = torch.stack([cosine(q[i], p[j]) / settings.temperature for j in mine])
                target = torch.tensor([teacher[j] / settings.teacher_temperature for j in mine], dtype=q.dtype)
                if settings.distillation == "kl":
                    distance = torch.nn.functional.kl_div(student.log_softmax(0), target.softmax(0), reduction="sum")
                else:
                    at = mine.index(labels[n])
                    rest = [place for place in range(len(mine)) if place != at]
                    gaps = [(student[at] - student[r] - target[at] + target[r]) ** 2 for r in rest]
                    distance = torch.stack(gaps).mean()
                loss = (1 - settings.distillation_weight) * loss + settings.distillation_weight * distance
        losses.append(loss)
    return torch.stack(losses)


def pool_loop(hidden: list[Tensor], pooling: str) -> Tensor:
    """Pooling of texts given as a list of [length, H]."""
    kinds = {
        "mean": lambda h: h.sum(0) / len(h),
        "cls": lambda h: h[0],
        "last_token": lambda h: h[-1],
        "max": lambda h: torch.stack([max(column, key=lambda x: x.item()) for column in h.T]),
        "weighted_mean": lambda h: sum((i + 1) * row for i, row in enumerate(h)) / sum(range(1, len(h) + 1)),
        "mean_sqrt_len": lambda h: h.sum(0) / math.sqrt(len(h)),
    }
    return torch.stack([torch.cat([kinds[name](h) for name in pooling.split("+")]) for h in hidden])


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
