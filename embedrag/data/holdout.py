"""Rows that are held out of a training, so that the model is evaluated on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedrag.data.retrieval_dataset import RetrievalDataset, gather_rows
from embedrag.data.rows import read_rows
from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError

DISTRACTORS = 10_000  # training rows, at most; their passages are searched too


def hold_out(store: TokenStore, share: float, seed: int) -> tuple[TokenStore, np.ndarray]:
    """Divide the rows: about a share of them is held out, the others are for training.

    Rows with a common query or a common positive stay together, even if these differ in case or spacing. So held-out
    queries and their positives are never trained on.

    Args:
        store: all rows.
        share: of the rows that are held out, between 0 and 1.
        seed: of the draw.

    Returns:
        The training rows, and the numbers of the held-out rows in rising order.

    Raises:
        UserError: one of the two parts would be empty.
    """
    groups = _groups(store)
    sizes = np.bincount(groups)
    room = wanted = max(1, round(share * len(store)))
    held = np.zeros(len(sizes), bool)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[group] <= room:
            held[group] = True
            room -= sizes[group]
    chosen = held[groups]
    if not chosen.any() or chosen.all():
        raise UserError(f"{_refusal(sizes, wanted, bool(chosen.all()))}; name an `eval_dataset`", "eval_split", share)
    return _only(store, ~chosen), np.flatnonzero(chosen)


def _refusal(sizes: np.ndarray, room: int, everything: bool) -> str:
    """Why rows in groups of these sizes can't be divided."""
    together = "rows with a common query or positive stay together"
    if everything or sizes.sum() == 1:
        return f"all {int(sizes.sum()):,} rows would be held out, and none would be left for training"
    if len(sizes) == 1:
        return f"{together}, and here these are all {int(sizes.sum()):,} rows"
    return f"{together}, and the smallest such group has {int(sizes.min()):,} rows, but {room:,} are wanted"


def held_out_set(sources: Sequence[str], rows: np.ndarray, total: int, seed: int) -> RetrievalDataset:
    """The held-out rows as a retrieval data set.

    Its corpus has the passages of the held-out rows, and those of up to `DISTRACTORS` other rows.

    Args:
        sources: the data, as for training.
        rows: numbers of the held-out rows.
        total: number of all rows.
        seed: of the draw of the other rows.
    """
    others = np.setdiff1d(np.arange(total), rows, assume_unique=True)
    drawn = np.random.default_rng(seed).permutation(others)[:DISTRACTORS]
    wanted, distracting = set(rows.tolist()), set(drawn.tolist())
    numbered = enumerate(row for _, row in read_rows(sources))
    kept = [(number, row) for number, row in numbered if number in wanted or number in distracting]
    return gather_rows(
        (row for number, row in kept if number in wanted),
        (text for number, row in kept if number in distracting for text in (*row.pos, *row.neg)),
    )


def _groups(store: TokenStore) -> np.ndarray:
    """[N] number of the group of each row; rows of one group are linked by common queries and positives."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = store.row_positives.astype(np.int64) + 1  # positives and the query
    rows = np.repeat(np.arange(len(store)), links)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(links) - links, links)
    texts = store.row_texts[np.repeat(np.asarray(store.row_offsets[:-1]), links) + within]
    forms = store.forms[texts] + (within > 0) * len(
        store.forms
    )  # a query is not linked to a positive of the same words
    nodes = len(store) + 2 * len(store.forms)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, len(store) + forms)), shape=(nodes, nodes))
    found = connected_components(graph, directed=False)[1][: len(store)]
    return np.unique(found, return_inverse=True)[1].ravel()


def _only(store: TokenStore, chosen: np.ndarray) -> TokenStore:
    """A store with some of the rows of another."""
    lengths = np.diff(store.row_offsets)
    none = (lengths - 1 - store.row_positives)[chosen] == 0
    counts = {"rows": int(chosen.sum()), "rows_without_negatives": int(none.sum())}
    numbers = {"rows_with_teacher_scores": store.row_scores, "rows_with_grades": store.row_grades}
    for name, values in numbers.items():
        if len(values):
            rows = np.repeat(np.arange(len(store)), lengths)[~np.isnan(values)]
            counts[name] = int(chosen[np.unique(rows)].sum())
    return replace(
        store,
        report=store.report | counts,
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
