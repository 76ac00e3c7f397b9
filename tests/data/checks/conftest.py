"""Rows with every kind of fault, and an evaluation set that they leak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

# One line of every kind of fault; the kinds each line has, in KINDS' names.
LINES: list[tuple[str, set[str]]] = [
    ('{"query": "frogs", "pos": ["in ponds"], "neg": ["herons"], "id": 1}', set()),
    ('{"query": "herons", "positive": "in reeds"}', set()),
    ('{"query": "broken, "pos": ["a"]}', {"unreadable"}),
    ('{"query": 7, "pos": ["a"]}', {"unreadable"}),
    ('{"frage": "q", "antwort": "a"}', {"unreadable"}),
    ('{"query": " \\u3000", "pos": ["a"]}', {"blank_text"}),
    ('{"query": "half blank", "pos": ["kept", " "]}', {"blank_text"}),
    ('{"anchor": "frogs", "positive": "in ponds", "hard_negatives": ["herons"]}', {"duplicate_row", "repeated_query"}),
    ('{"query": "own", "pos": ["mine", "also"], "neg": ["mine", "not"]}', {"own_positive"}),
    ('{"query": "doubled", "pos": ["p", "p"], "neg": ["n", "n", "m"]}', {"doubled_positive", "doubled_negative"}),
    ('{"query": "blank", "pos": ["p1"], "neg": ["", "n1", " "]}', {"blank_negative"}),
    ('{"query": "same", "pos": ["same "], "neg": ["n2"]}', {"query_is_positive"}),
    ('{"query": "same too", "pos": ["same too", "other"]}', {"query_is_positive"}),
    ('{"query": "split", "pos": ["one"], "neg": ["x"]}', set()),
    ('{"query": "split", "pos": ["two"], "neg": ["one", "y"]}', {"other_positive", "repeated_query"}),
    ('{"query": "  EVAL\\u3000ｑuery", "pos": ["something"]}', {"leaked_query"}),
    ('{"query": "eval query", "pos": ["Its  answer"]}', {"leaked_pair", "repeated_query"}),
    ('{"query": "연못", "pos": ["개구리"], "neg": ["백로"]}', set()),
    (
        '{"query": "lens", "pos": ["A  lens"], "neg": ["a LENS", "Ｌens", "n"]}',
        {"own_positive", "query_is_negative"},
    ),
    ('{"query": "FROGS ", "pos": ["In\\u00a0ponds"], "neg": ["HERONS"]}', {"duplicate_row", "repeated_query"}),
    ('{"query": "cafe\\u0301", "pos": ["Caf\\u00e9"]}', {"query_is_positive"}),
    ('{"query": "Split", "pos": ["three"], "neg": ["ONE ", "z"]}', {"other_positive", "repeated_query"}),
    ('{"query": "<b>volt</b>", "pos": ["10<sup>3</sup>&nbsp;mV"], "neg": ["N<sub>2</sub>"]}', {"markup"}),
    ('{"query": "nul", "pos": ["a\\u0000 char\\u0007"], "neg": ["a < b && c > d, List<T>"]}', {"control"}),
    ('{"query": "twice", "pos": ["p ", "P"], "neg": ["N", "n", "m"]}', {"doubled_positive", "doubled_negative"}),
]
EVAL_ROW = {"query": "Eval Query", "pos": ["its answer", "in ponds"]}


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    path = tmp_path / "faulty.jsonl"
    path.write_text("".join(f"{line}\n" for line, _ in LINES), encoding="utf-8")
    return path


@pytest.fixture
def evaluation(write_jsonl) -> Path:
    return write_jsonl([EVAL_ROW], "eval.jsonl")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d1", "text": "its answer"}, {"_id": "d2", "text": "in ponds"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    queries = [{"_id": "q1", "text": "eval query"}, {"_id": "q2", "text": "frogs"}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n", encoding="utf-8")
    return folder
