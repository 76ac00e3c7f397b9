"""Comparing rows finds what double loops find, and a training says at its start what a check finds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.checks import rules as faults
from embedrag.data.checks.rules import FAULT, KINDS, NOTE, Rows, compare

TEXTS = st.integers(0, 4)


@given(
    data=st.lists(
        st.tuples(st.integers(0, 2), st.sets(TEXTS, min_size=1, max_size=3), st.sets(TEXTS, max_size=3)),
        min_size=1,
        max_size=12,
    ),
    small_parts=st.booleans(),
)
def test_comparison_finds_what_double_loops_find(data, small_parts: bool) -> None:
    data = [(query, sorted(pos), sorted(neg - pos)) for query, pos, neg in data]
    flat = [[query, *pos, *neg] for query, pos, neg in data]
    offsets = np.cumsum([0, *map(len, flat)])
    rows = Rows(np.array(sum(flat, [])), offsets, np.array([len(pos) for _, pos, _ in data]))
    default = faults.TEXTS_IN_PART
    faults.TEXTS_IN_PART = 5 if small_parts else default
    try:
        found = compare(rows)
    finally:
        faults.TEXTS_IN_PART = default
    duplicates, contradictions, repeated = [], [], []
    for i, (query, _, neg) in enumerate(data):
        same = [j for j in range(i) if data[j][0] == query]
        repeated += [[i, same[0]]] if same else []
        duplicates += [[i, j] for j in same if data[j] == data[i]][:1]
        for place, text in enumerate(neg, int(offsets[i]) + len(flat[i]) - len(neg)):
            contradictions += [
                [i, j, place] for j, (other, pos, _) in enumerate(data) if other == query and text in pos
            ][:1]
    assert found.repeated.tolist() == repeated
    assert found.duplicates.tolist() == duplicates
    assert found.contradictions.tolist() == contradictions


def test_many_equal_queries_are_compared_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    texts = [[draw.randrange(9), draw.randrange(50), draw.randrange(50, 99)] for _ in range(3000)]
    rows = Rows(np.array(texts).ravel(), np.arange(3001) * 3, np.ones(3000, int))
    whole = compare(rows)
    monkeypatch.setattr(faults, "TEXTS_IN_PART", 500)
    for one, other in zip(vars(whole).values(), vars(compare(rows)).values(), strict=True):
        assert one.tolist() == other.tolist()


def test_every_kind_has_a_level_and_words() -> None:
    assert {level for level, _ in KINDS.values()} == {"error", FAULT, NOTE}


def test_start_of_a_training_reports_what_check_finds(tmp_path: Path) -> None:
    from embedrag.data.tokenization import open_store
    from embedrag.training.data import _data_lines

    def lines(rows: list[dict[str, Any]], name: str) -> list[str]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        store, _ = open_store([str(path)], lambda _, texts: [[1]] * len(texts), name, tmp_path / "cache")
        return list(_data_lines(store, found=False, stream=False))[2:]

    good = [{"query": f"q{i // 2}", "pos": [f"p{i}"], "neg": ["n"]} for i in range(20)]
    assert lines(good, "good") == []
    bad = [*good, good[3], {"query": "q0", "pos": ["x"], "neg": ["p0", "p1"]}]
    [line] = lines(bad, "bad")
    assert "rows that repeat an earlier row: 1;" in line and "positive of the same query in another row: 1;" in line
    assert line.endswith("embedrag check shows them")


def test_start_of_a_training_compares_as_check_does(tmp_path: Path) -> None:
    from embedrag.data.tokenization import open_store
    from embedrag.training.data import _data_lines

    path = tmp_path / "rows.jsonl"
    rows = [{"query": "a", "pos": ["b"], "neg": ["c"]}, {"query": "A ", "pos": ["B"], "neg": ["C"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prompts = [("query: ", "passage: ")]
    store, _ = open_store([str(path)], lambda _, texts: [[1]] * len(texts), "key", tmp_path / "cache", prompts)
    assert "rows that repeat an earlier row: 1;" in list(_data_lines(store, found=False, stream=False))[-1]
    assert len(store.forms) == 6 and len(set(store.forms)) == 3
