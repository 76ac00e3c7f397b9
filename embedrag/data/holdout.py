"""Rows held out of a training, so that what is measured on them was not learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedrag.data.retrieval_dataset import RetrievalDataset, gather_rows
from embedrag.data.rows import read_rows
from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError

DISTRACTORS = 10_000  # rows of the training part whose passages are searched too


def hold_out(store: TokenStore, share: float, seed: int) -> tuple[TokenStore, np.ndarray]:
    """Take about a share of the rows away.

    Rows that have a query or a positive in common, be it in other letters or spaces, stay together, so neither a
    held-out query nor one of its passages is trained on as a pair.

    Args:
        store: all rows.
        share: of the rows, between 0 and 1.
        seed: of the draw.

    Returns:
        The rows that are left, and the numbers of those held out, in order.

    Raises:
        UserError: when the rows hang together, or one side would be empty.
    """
    groups = _groups(store)
    sizes = np.bincount(groups)
    room = max(1, round(share * len(store)))
    held = np.zeros(len(sizes), bool)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[group] <= room:
            held[group] = True
            room -= sizes[group]
    chosen = held[groups]
    if not chosen.any() or chosen.all():
        raise UserError(
            f"{int(chosen.sum()):,} of {len(store):,} rows can be held out, because rows with a common query or "
            "positive stay together; name an `eval_dataset`",
            "eval_split",
            share,
        )
    return _only(store, ~chosen), np.flatnonzero(chosen)


def held_out_set(sources: Sequence[str], rows: np.ndarray, total: int, seed: int) -> RetrievalDataset:
    """Queries of the held-out rows; their passages, and those of up to `DISTRACTORS` other rows, are searched.

    Args:
        sources: the data, as for training.
        rows: numbers of the held-out rows.
        total: number of all rows.
        seed: of the draw of the others.
    """
    others = np.setdiff1d(np.arange(total), rows, assume_unique=True)
    drawn = np.random.default_rng(seed).permutation(others)[:DISTRACTORS]
    wanted, distracting = set(rows.tolist()), set(drawn.tolist())
    numbered = enumerate(record for _, record in read_rows(sources))
    kept = [(number, record) for number, record in numbered if number in wanted or number in distracting]
    return gather_rows(
        (record for number, record in kept if number in wanted),
        (text for number, record in kept if number in distracting for text in (*record.pos, *record.neg)),
    )


def _groups(store: TokenStore) -> np.ndarray:
    """[N] number of the group of each row; rows of one group hang together by queries and positives."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = store.row_positives.astype(np.int64) + 1  # the query too
    rows = np.repeat(np.arange(len(store)), links)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(links) - links, links)
    texts = store.row_texts[np.repeat(np.asarray(store.row_offsets[:-1]), links) + within]
    forms = store.forms[texts] + (within > 0) * len(store.forms)  # a query is no positive of the same words
    nodes = len(store) + 2 * len(store.forms)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, len(store) + forms)), shape=(nodes, nodes))
    found = connected_components(graph, directed=False)[1][: len(store)]
    return np.unique(found, return_inverse=True)[1].ravel()


def _only(store: TokenStore, chosen: np.ndarray) -> TokenStore:
    """The store with some of its rows."""
    lengths = np.diff(store.row_offsets)
    none = (lengths - 1 - store.row_positives)[chosen] == 0
    return replace(
        store,
        report=store.report | {"rows": int(chosen.sum()), "rows_without_negatives": int(none.sum())},
        row_texts=np.asarray(store.row_texts)[np.repeat(chosen, lengths)],
        row_offsets=np.concatenate([[0], np.cumsum(lengths[chosen])]),
        row_positives=np.asarray(store.row_positives)[chosen],
        row_lines=np.asarray(store.row_lines)[chosen],
        row_sources=np.asarray(store.row_sources)[chosen],
        row_sets=np.asarray(store.row_sets)[chosen],
        row_scores=np.asarray(store.row_scores)[np.repeat(chosen, lengths)] if store.has_scores else store.row_scores,
        row_grades=np.asarray(store.row_grades)[np.repeat(chosen, lengths)]
        if len(store.row_grades)
        else store.row_grades,
    )
