"""Retrieval data sets are read from rows and from BEIR folders, and a broken one is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embedrag.data.retrieval_dataset import RetrievalDataset, fewer_passages, load_retrieval_dataset
from embedrag.errors import UserError


def write_beir(folder: Path, queries: dict[str, str], passages: dict[str, str], qrels: list[tuple[str, str, float]]):
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", passages), ("queries", queries)):
        lines = (json.dumps({"_id": key, "text": text}) for key, text in rows.items())
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    lines = [f"{query}\t{document}\t{gain}" for query, document, gain in qrels]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def test_rows_of_one_query_are_one_query(write_jsonl: Callable[..., Path]) -> None:
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["b", "c"]},
        {"anchor": "q", "positive": "b"},
        {"query": "r", "pos_doc": "c"},
    ]
    data = load_retrieval_dataset(str(write_jsonl(rows)))
    assert data.queries == ["q", "r"] and data.passages == ["a", "b", "c"]
    assert data.relevant == [{0: 1.0, 1: 1.0}, {2: 1.0}] and data.negatives == [[2], []]


def test_sample_keeps_the_passages_and_is_the_same_each_time(write_jsonl: Callable[..., Path]) -> None:
    path = str(write_jsonl([{"query": f"q{i}", "pos": [f"p{i}"]} for i in range(20)]))
    one, other = load_retrieval_dataset(path, 5), load_retrieval_dataset(path, 5)
    assert one == other and len(one.queries) == 5 and len(one.passages) == 20
    assert [one.passages[next(iter(rel))][1:] for rel in one.relevant] == [query[1:] for query in one.queries]
    assert len(load_retrieval_dataset(path, 99).queries) == 20


def test_fewer_passages_keep_what_is_labelled_and_their_order() -> None:
    data = RetrievalDataset(["q", "r"], [f"p{i}" for i in range(30)], [{7: 2.0}, {29: 1.0, 3: 1.0}], [[], [7, 12]])
    few = fewer_passages(data, 10)
    assert few == fewer_passages(data, 10) and few.queries == data.queries and len(few.passages) == 10
    assert few.passages == sorted(few.passages, key=lambda text: int(text[1:]))
    named = [{few.passages[n]: gain for n, gain in gains.items()} for gains in few.relevant]
    assert named == [{"p7": 2.0}, {"p29": 1.0, "p3": 1.0}]
    assert [few.passages[n] for n in few.negatives[1]] == ["p7", "p12"]
    assert fewer_passages(data, 1).passages == ["p3", "p7", "p12", "p29"] and fewer_passages(data, 99) == data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(
        tmp_path / "set", {"q1": "a?", "q2": "b?"}, {"d1": "a", "d2": "b\u2028c"}, [("q1", "d2", 2), ("q1", "d1", 0)]
    )


def test_retrieval_set_is_read_with_its_grades(folder: Path) -> None:
    data = load_retrieval_dataset(str(folder))
    assert data.passages == ["b\u2028c", "a"]  # trec_eval ranks equal scores by falling id
    assert data.relevant == [{0: 2.0}] and data.skipped == 0


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tx\n", "test.tsv:2: not a judgement"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1 d1 1\n", "test.tsv:2: not a judgement"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tnan\n", "test.tsv:2: not a judgement"),
        ("qrels/test.tsv", "q1\td1\tnan\nq1\td2\t1\n", "test.tsv:1: not a judgement"),
        ("qrels/test.tsv", "q1\td1\tone\nq1\td2\t1\n", "test.tsv:1: not a judgement"),
        ("qrels/test.tsv", "q1\td1\tone\n", "test.tsv:1: not a judgement"),
        ("qrels/test.tsv", "q1\td1\n", "test.tsv:1: not a judgement"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "test.tsv: is empty"),
        ("qrels/test.tsv", "q1\td1\t0\n", "no query has a relevant passage$"),
        ("qrels/test.tsv", "x\td1\t1\n", "relevant passage; the first query is 'x', and ids of the set look like 'q1'"),
        (
            "qrels/test.tsv",
            "q1\tx\t1\n",
            "relevant passage; the first passage is 'x', and ids of the set look like 'd1'",
        ),
        ("qrels/test.tsv", "", "test.tsv: is empty"),
        ("corpus.jsonl", "", "corpus.jsonl: is empty"),
        (
            "corpus.jsonl",
            '{"_id": 1, "text": "a"}\n{"_id": 1.0, "text": "b"}\n',
            "l:2: the _id '1' was there before with",
        ),
        ("queries.jsonl", '{"_id": "q1"}\n', r"queries.jsonl:1: no text: it must have a \"text\" \(there is _id\)"),
        ("queries.jsonl", '{"text": "a"}\n', r"queries.jsonl:1: no id: .*\(there is text\)"),
        ("queries.jsonl", "not json\n", "queries.jsonl:1"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x \\ud800"}\n', "corpus.jsonl:1: half of a surrogate pair"),
        ("corpus.jsonl", '{"_id": null, "text": "x"}\n', "corpus.jsonl:1: no id"),
        ("corpus.jsonl", '{"_id": "d1", "text": ["x"]}\n', "corpus.jsonl:1: no text"),
    ],
)
def test_broken_sets_are_named_by_file_and_line(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_retrieval_dataset(str(folder))


def test_marks_blank_lines_and_carriage_returns_do_no_harm(folder: Path) -> None:
    before = load_retrieval_dataset(str(folder))
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        body = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xef\xbb\xbf" + body.replace(b"\n", b"\r\n") + b"\r\n\n")
    assert load_retrieval_dataset(str(folder)) == before


def test_missing_parts_are_named(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "queries.jsonl").unlink()
    with pytest.raises(UserError, match="no queries.jsonl and no qrels/test.tsv in this folder") as caught:
        load_retrieval_dataset(folder, argument="general_data")
    assert (caught.value.argument, caught.value.value) == ("general_data", folder)


@pytest.mark.parametrize("name", ["nothing.jsonl", "x" * 3000 + ".jsonl", "empty"])
def test_data_that_is_not_there_is_named_by_the_argument_of_the_caller(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        load_retrieval_dataset(str(tmp_path / name), argument="eval_dataset")
    assert caught.value.argument == "eval_dataset"
    with pytest.raises(UserError, match="^`data=.*"):
        load_retrieval_dataset(str(tmp_path / name))


def test_grades_are_gains_and_the_best_one_of_several_rows_counts(write_jsonl: Callable[..., Path]) -> None:
    rows = [
        {"query": "a", "pos": ["b", "c", "d"], "neg": ["e"], "grades": [1, 3, 1]},
        {"query": "a", "pos": ["m", "b"], "neg": ["j"]},
    ]
    data = load_retrieval_dataset(write_jsonl(rows))
    assert {data.passages[number]: gain for number, gain in data.relevant[0].items()} == {
        "b": 1.0, "c": 3.0, "d": 1.0, "m": 1.0,
    }  # fmt: skip
