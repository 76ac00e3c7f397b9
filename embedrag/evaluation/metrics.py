"""Retrieval metrics as pure functions of a ranking.

A ranking is given as the gains of the retrieved documents, best first. The gains of all relevant documents are given
too. The definitions are those of trec_eval: DCG has a linear gain and a log2 discount, and recall counts all relevant
documents. A further metric is one entry in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np


def ndcg(gains: Sequence[float], relevant: Sequence[float], k: int) -> float:
    """nDCG@k: the discounted gain, divided by that of the best possible order.

    >>> ndcg([0, 1], [1], k=10)
    0.6309297535714575
    """
    return _dcg(gains[:k]) / _dcg(sorted(relevant, reverse=True)[:k])


def recall(gains: Sequence[float], relevant: Sequence[float], k: int) -> float:
    """Recall@k: share of the relevant documents among the first k.

    >>> recall([0, 1, 0], [1, 1], k=3)
    0.5
    """
    return sum(gain > 0 for gain in gains[:k]) / len(relevant)


def mrr(gains: Sequence[float], relevant: Sequence[float], k: int) -> float:
    """MRR@k: 1 / place of the first relevant document; 0 when there is none among the first k.

    >>> mrr([0, 1, 1], [1, 1], k=3)
    0.5
    """
    return next((1 / place for place, gain in enumerate(gains[:k], 1) if gain > 0), 0.0)


def average_precision(gains: Sequence[float], relevant: Sequence[float], k: int) -> float:
    """AP@k: mean over the relevant documents of the precision at their place; 0 for one that is not among the first k.

    >>> average_precision([1, 0, 1], [1, 1], k=3)
    0.8333333333333333
    """
    places = [place for place, gain in enumerate(gains[:k], 1) if gain > 0]
    return sum(found / place for found, place in enumerate(places, 1)) / len(relevant)


def precision(gains: Sequence[float], relevant: Sequence[float], k: int) -> float:
    """Precision@k: share of relevant documents among the first k places.

    >>> precision([1, 0], [1, 1], k=4)
    0.25
    """
    return sum(gain > 0 for gain in gains[:k]) / k


def _dcg(gains: Sequence[float]) -> float:
    return float(sum(gain / np.log2(place + 1) for place, gain in enumerate(gains, 1)))


METRICS: dict[str, Callable[[Sequence[float], Sequence[float], int], float]] = {
    "ndcg": ndcg,
    "recall": recall,
    "mrr": mrr,
    "map": average_precision,
    "precision": precision,
}


def metric_names(cutoffs: Iterable[int]) -> list[str]:
    """The names of all metrics at some cut-offs.

    >>> metric_names([10])
    ['ndcg@10', 'recall@10', 'mrr@10', 'map@10', 'precision@10']
    """
    return [f"{name}@{k}" for name in METRICS for k in cutoffs]
