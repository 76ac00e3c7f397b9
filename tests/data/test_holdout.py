"""Held-out rows share no query and no positive with the rows that are trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedrag.data.holdout import held_out_set, hold_out
from embedrag.data.rows import load_rows
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import open_store
from embedrag.errors import UserError


def store_of(path: Path, folder: Path) -> TokenStore:
    def tokenize(role: str, texts: list[str]) -> list[list[int]]:
        return [[1, 2] for _ in texts]

    return open_store([str(path)], tokenize, "key", folder)[0]


def test_neither_a_held_out_query_nor_its_passage_is_trained_on_as_a_pair(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Rows 3i and 3i+1 share a query, 3i+1 and 3i+2 a positive."""
    rows = []
    for i in range(30):
        rows += [
            {"query": f"q{i}", "pos": [f"a{i}"]},
            {"query": f"q{i}", "pos": [f"b{i}"], "neg": [f"a{i + 1}"]},
            {"query": f"r{i}", "pos": [f"c{i}", f"b{i}"]},
        ]
    path = write_jsonl(rows)
    store = store_of(path, tmp_path / "cache")
    kept, held = hold_out(store, 0.1, seed=1)
    assert len(held) == 9 and len(kept) == 81
    all_rows = load_rows(path)
    out = [all_rows[number] for number in held]
    left = [all_rows[int(place.rsplit(":", 1)[1]) - 1] for place in (kept.place(i) for i in range(len(kept)))]
    assert len(left) == 81
    for side in (lambda row: {row.query}, lambda row: set(row.pos)):
        assert not set().union(*map(side, out)) & set().union(*map(side, left))
    for number, row in enumerate(left):  # the rows that are left are whole
        query, positives, negatives = kept.row(number)
        assert (len(positives), len(negatives)) == (len(row.pos), len(row.neg))
        assert query in kept.row_texts and len(kept.known(query)) >= 1
    again, same = hold_out(store, 0.1, seed=1)
    assert np.array_equal(held, same) and again.checksum == kept.checksum != store.checksum
    assert not np.array_equal(hold_out(store, 0.1, seed=2)[1], held)
    data = held_out_set([str(path)], held, len(store), seed=1)
    assert set(data.queries) == {row.query for row in out}
    assert len(data.passages) == len({text for row in all_rows for text in (*row.pos, *row.neg)})


def test_rows_that_differ_in_case_spacing_or_unicode_form_stay_together(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Rows 3i and 3i+1 share a query, 3i and 3i+2 a positive, all in other letters."""
    rows = []
    for i in range(30):
        rows += [
            {"query": f"what is caf\u00e9 {i}", "pos": [f"a place {i}"]},
            {"query": f"What  is CAFE\u0301 {i} ", "pos": [f"a bar {i}"]},
            {"query": f"what is bar {i}", "pos": [f"A  Place \uff11{i}", f"A  Place {i}"]},
        ]
    store = store_of(write_jsonl(rows), tmp_path / "cache")
    _, held = hold_out(store, 0.2, seed=1)
    assert len(held) == 18 and np.array_equal(held.reshape(6, 3) // 3, np.repeat(held[::3] // 3, 3).reshape(6, 3))


def test_rows_with_a_common_positive_cannot_be_divided(write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    store = store_of(write_jsonl([{"query": f"q{i}", "pos": ["the same"]} for i in range(9)]), tmp_path)
    with pytest.raises(UserError, match="^`eval_split=0.2`: rows with a common .* and here these are all 9 rows"):
        hold_out(store, 0.2, 0)
    one = store_of(write_jsonl([{"query": "q", "pos": ["p"]}], "one.jsonl"), tmp_path)
    with pytest.raises(UserError, match="all 1 rows would be held out, and none would be left for training"):
        hold_out(one, 0.2, 0)


def test_rows_with_numbers_of_a_teacher_are_counted_without_those_that_are_held_out(write_jsonl, tmp_path) -> None:
    rows = [{"query": f"q{i}", "pos": [f"a{i}"], "neg": [f"n{i}"]} for i in range(20)]
    rows += [row | {"query": f"s{i}", "pos": [f"b{i}"], "teacher_scores": [2, 1]} for i, row in enumerate(rows)]
    kept, held = hold_out(store_of(write_jsonl(rows), tmp_path / "cache"), 0.5, seed=1)
    scored = sum(number >= 20 for number in held)
    assert 0 < scored < 20 and kept.report["rows_with_teacher_scores"] == 20 - scored
    assert kept.report["rows_with_grades"] == 0
