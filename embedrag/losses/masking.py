"""Which candidates are not negatives of a pair, and how much more the hard negatives count.

A text that is a known positive of a query is never its negative, in any direction. Every mask here is True for a
candidate that is left out of the softmax. A tile holds some pairs of the batch.

Dimensions: B queries, P passages, b pairs of a tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embedrag.losses.pairs import Pairs

# Which negatives `hardness` makes harder: from [b, P] "came with this query" to [b, P] "counts".
HARDNESS_MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "all": torch.ones_like,
    "own": torch.clone,
    "in_batch": torch.logical_not,
}


def passages_for_query(
    cosines: Tensor, pairs: Pairs, here: slice, hard_only: bool = False, false_negative_margin: float | None = None
) -> Tensor:
    """Passages that the query of a pair is not scored against.

    Args:
        cosines: [b, P] of the queries of the pairs with all passages.
        pairs: what belongs together in the batch.
        here: the pairs of the tile.
        hard_only: leave out the positives of other pairs; the hard negatives of all queries stay.
        false_negative_margin: leave out a passage if its cosine is above the positive's by more than this; None: keep
            all of them.

    Returns:
        [b, P]; the positive of the pair is never left out.
    """
    labels = pairs.labels[here]
    closed = torch.zeros_like(cosines, dtype=torch.bool)
    if hard_only:
        closed |= pairs.pair_of >= 0
    if false_negative_margin is not None:
        seen = pairs.guide[0][pairs.queries[here]] @ pairs.guide[1].T if pairs.guide else cosines.detach()
        closed |= seen > seen.gather(1, labels[:, None]) + false_negative_margin
    closed[pairs.excluded_in(here)] = True
    closed[_rows(labels), labels] = False
    return closed


def queries_for_query(pairs: Pairs, here: slice, count: int) -> Tensor:
    """[b, B] queries that the query of a pair is not scored against: itself, and those that share a positive with it.

    Args:
        pairs: what belongs together in the batch.
        here: the pairs of the tile.
        count: B.
    """
    closed, queries = _related_queries(pairs, here, count), pairs.queries[here]
    closed[_rows(queries), queries] = True
    return closed


def queries_for_positive(pairs: Pairs, here: slice, count: int) -> Tensor:
    """[b, B] queries that the positive of a pair is not scored against: others that it answers too.

    Args:
        pairs: what belongs together in the batch.
        here: the pairs of the tile.
        count: B.
    """
    closed, queries = _related_queries(pairs, here, count), pairs.queries[here]
    closed[_rows(queries), queries] = False
    return closed


def passages_for_positive(pairs: Pairs, here: slice, count: int) -> Tensor:
    """[b, P] passages that the positive of a pair is not scored against: those of its own query, and exclusions.

    Args:
        pairs: what belongs together in the batch.
        here: the pairs of the tile.
        count: P.
    """
    closed = pairs.own_passages(here)
    closed[pairs.excluded_in(here)] = True
    return closed


def hardness(cosines: Tensor, pairs: Pairs, here: slice, strength: float, mode: str) -> Tensor:
    """What is added to the logits so that hard negatives count more (arXiv 2503.04812): strength * cosine.

    Args:
        cosines: [b, P] of the queries of the pairs with all passages; they get no gradient from here.
        pairs: what belongs together in the batch.
        here: the pairs of the tile.
        strength: a factor of the cosine, 0 or more.
        mode: a key of `HARDNESS_MODES`.

    Returns:
        [b, P]; 0 for the positive and for what does not count.
    """
    counts = HARDNESS_MODES[mode](pairs.own_passages(here))
    labels = pairs.labels[here]
    counts[_rows(labels), labels] = False
    return strength * cosines.detach() * counts


def _related_queries(pairs: Pairs, here: slice, count: int) -> Tensor:
    """[b, B] queries with a positive that answers the pair's query too, or that the pair's positive answers too."""
    queries = pairs.queries
    row, passage = pairs.excluded_in(here)
    related = torch.zeros(len(queries[here]), count, dtype=torch.bool, device=queries.device)
    is_positive = pairs.pair_of[passage] >= 0
    related[row[is_positive], pairs.owner[passage[is_positive]]] = True
    # The other way round too: exclusions of any pair that name the positive of a pair of this tile.
    other, pair = pairs.excluded[:, 0], pairs.pair_of[pairs.excluded[:, 1]]
    mine = (pair >= here.start) & (pair < here.stop)
    related[pair[mine] - here.start, queries[other[mine]]] = True
    return related


def _rows(values: Tensor) -> Tensor:
    return torch.arange(len(values), device=values.device)
