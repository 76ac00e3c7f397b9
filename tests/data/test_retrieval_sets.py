"""Retrieval sets in the forms in which they are published, against the same set in the BEIR layout."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from embedrag.data.retrieval_dataset import folder_and_split, load_retrieval_dataset
from embedrag.data.text_files import read_corpus
from embedrag.errors import UserError

PASSAGES = {"d1": ("Frog", "It sits near a pond."), "d2": ("", "A heron wades."), "d10": ("Owl", "It hunts at night.")}
QUERIES = {"q1": "who sits?", "q2": "who wades?"}
QRELS = [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d2", 1)]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return folder


def qrels(form: str = "{0}\t{1}\t{2}\n", header: str = "") -> str:
    return header + "".join(form.format(*row) for row in QRELS)


CORPUS = lines([{"_id": key, "title": title, "text": text} for key, (title, text) in PASSAGES.items()])
ASKED = lines([{"_id": key, "text": text} for key, text in QUERIES.items()])
BEIR: dict[str, str | bytes] = {"corpus.jsonl": CORPUS, "queries.jsonl": ASKED, "qrels/test.tsv": qrels(header=HEADER)}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def rows_of(name: str) -> list[dict[str, Any]]:
    if name == "corpus":
        return [{"_id": key, "title": title, "text": text} for key, (title, text) in PASSAGES.items()]
    if name == "queries":
        return [{"_id": key, "text": text} for key, text in QUERIES.items()]
    return [{"query-id": query, "corpus-id": passage, "score": grade} for query, passage, grade in QRELS]


@pytest.fixture
def assert_read_as_beir(tmp_path: Path) -> Callable[..., None]:
    """Writes a folder and compares it with the same set in the BEIR layout."""
    expected = load_retrieval_dataset(write(tmp_path / "beir", BEIR))

    def compare(files: dict[str, str | bytes], split: str = "") -> None:
        folder = write(tmp_path / "other", files)
        assert load_retrieval_dataset(f"{folder}{split}") == expected

    assert expected.passages == ["A heron wades.", "Owl It hunts at night.", "Frog It sits near a pond."]
    assert expected.relevant == [{2: 2.0}, {0: 1.0}] and not expected.missing and not expected.own
    return compare


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("test.tsv", qrels()),
        ("test.tsv", qrels("{0} 0 {1} {2}\n")),
        ("test.tsv", qrels("{0}\tQ0\t{1}\t{2}\n")),
        ("test.tsv", qrels("{0} {1} {2}\n")),
        ("test.tsv", qrels('"{0}"\t"{1}"\t"{2}"\n', '"query-id"\t"corpus-id"\t"score"\n')),
        ("test.tsv", qrels("{1}\t{2}.0\t{0}\tx\n", "docid\trelevance\tqid\tnote\n")),
        ("test.tsv", qrels("{0}\t{1}\t{2}\n", "Anfrage\tText\tNote\n")),
        ("test.csv", qrels("{0},{1},{2}\r\n", "query_id,doc_id,relevance\r\n")),
        ("test.csv", qrels("{0}, {1}, {2}\n")),
        ("test.csv", qrels('"{0}";"{1}";"{2}"\n', "query_id;doc_id;relevance\n")),
        ("test.txt", qrels("{0}   0  {1}   {2}\n")),
        ("test", qrels("{0} 0 {1} {2}\n")),
        ("test.qrels", qrels("{0} 0 {1} {2}\n")),
        ("test.jsonl", lines(rows_of("qrels"))),
        ("test-00000-of-00001.parquet", parquet(rows_of("qrels"))),
    ],
)
def test_judgements_of_every_form_are_read(
    assert_read_as_beir: Callable[..., None], name: str, body: str | bytes
) -> None:
    assert_read_as_beir({"corpus.jsonl": CORPUS, "queries.jsonl": ASKED, f"qrels/{name}": body})


def test_grades_may_be_true_and_false(tmp_path: Path) -> None:
    text = "q1,d1,True\nq1,d2,False\nq2,d2,true\n"
    data = load_retrieval_dataset(write(tmp_path, {**BEIR, "qrels/test.tsv": text}))
    assert data.relevant == [{2: 1.0}, {0: 1.0}]


def tsv(rows: dict[str, str]) -> str:
    return "".join(f"{key}\t{text}\n" for key, text in rows.items())


WHOLE = {key: f"{title} {text}".strip() for key, (title, text) in PASSAGES.items()}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(
            {
                "corpus/corpus-00000-of-00002.parquet": parquet(rows_of("corpus")[:2]),
                "corpus/corpus-00001-of-00002.parquet": parquet(rows_of("corpus")[2:]),
                "queries/queries-00000-of-00001.parquet": parquet(rows_of("queries")),
                "qrels/test.tsv": qrels(header=HEADER),
                "README.md": "BeIR on the hub",
            },
            id="BeIR on the hub",
        ),
        pytest.param(
            {
                "corpus/test-00000-of-00001.parquet": parquet(
                    [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in rows_of("corpus")]
                ),
                "queries/test-00000-of-00001.parquet": parquet(
                    [{"id": row["_id"], "text": row["text"]} for row in rows_of("queries")]
                ),
                "data/test-00000-of-00001.parquet": parquet(rows_of("qrels")),
            },
            id="MTEB on the hub",
        ),
        pytest.param(
            {"corpus.jsonl": CORPUS, "queries.jsonl": ASKED, "qrels/test.jsonl": lines(rows_of("qrels"))},
            id="MTEB on the hub, first form",
        ),
        pytest.param(
            {
                "collection.tsv": tsv(WHOLE),
                "queries.dev.small.tsv": tsv(QUERIES),
                "queries.train.tsv": "t1\tnot asked\n",
                "qrels.dev.small.tsv": qrels("{0}\t0\t{1}\t{2}\n"),
            },
            id="MS MARCO",
        ),
        pytest.param(
            {
                "topics/topics.miracl-v1.0-ko-dev.tsv": tsv(QUERIES),
                "qrels/qrels.miracl-v1.0-ko-dev.tsv": qrels("{0}\tQ0\t{1}\t{2}\n"),
                "miracl-corpus-v1.0-ko/docs-0.jsonl": lines(
                    [{"docid": row["_id"], "title": row["title"], "text": row["text"]} for row in rows_of("corpus")]
                ),
            },
            id="MIRACL",
        ),
        pytest.param(
            {
                "collection/docs.jsonl": lines([{"id": key, "contents": text} for key, text in WHOLE.items()]),
                "topic.test.tsv": tsv(QUERIES),
                "qrels.test.txt": qrels("{0} Q0 {1} {2}\n"),
            },
            id="Mr. TyDi",
        ),
        pytest.param(
            {
                "docs.jsonl": lines(
                    [{"doc_id": row["_id"], "title": row["title"], "text": row["text"]} for row in rows_of("corpus")]
                ),
                "queries.jsonl": lines([{"query_id": row["_id"], "text": row["text"]} for row in rows_of("queries")]),
                "qrels.trec": qrels("{0} 0 {1} {2}\n"),
            },
            id="ir_datasets export",
        ),
        pytest.param(
            {"corpus.tsv": "id\ttext\n" + tsv(WHOLE), "queries.tsv": tsv(QUERIES), "qrels.tsv": qrels()},
            id="tables",
        ),
    ],
)
def test_layouts_of_the_publishers_are_read(
    assert_read_as_beir: Callable[..., None], files: dict[str, str | bytes]
) -> None:
    assert_read_as_beir(files)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read(assert_read_as_beir: Callable[..., None], ending: str) -> None:
    import pyarrow

    def packed(text: str | bytes) -> bytes:
        body = text if isinstance(text, bytes) else text.encode()
        return gzip.compress(body) if ending == ".gz" else pyarrow.compress(body, "zstd", asbytes=True)

    assert_read_as_beir({name + ending: packed(text) for name, text in BEIR.items()})


def test_splits_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "a@b", {**BEIR, "qrels/dev.tsv": "q2\td2\t1\n"})
    assert len(load_retrieval_dataset(folder).queries) == 2 and "split" not in capsys.readouterr().out
    assert load_retrieval_dataset(f"{folder}@dev").queries == ["who wades?"]
    assert folder_and_split(f"{folder}@dev") == (str(folder), "dev") and folder_and_split(folder) == (str(folder), None)
    with pytest.raises(UserError, match=r"a@b@dav`: has no split dav; did you mean dev\?; there is dev, test"):
        load_retrieval_dataset(f"{folder}@dav")
    (folder / "qrels" / "test.tsv").unlink()
    assert load_retrieval_dataset(folder).queries == ["who wades?"]
    assert "data: split dev, the only one with judgements" in capsys.readouterr().out
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(UserError, match="judgements of dev, train, and no test; name a split: .*a@b@dev") as caught:
        load_retrieval_dataset(folder, argument="eval_dataset")
    assert caught.value.argument == "eval_dataset"


@pytest.mark.parametrize("name", ["relevance_pairs.jsonl", "questions.jsonl", "docs_train.jsonl", "data/a.jsonl"])
def test_a_folder_of_rows_is_no_set(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, {name: '{"query": "a", "pos": "b"}\n'}) / Path(name).parent
    assert load_retrieval_dataset(folder).queries == ["a"]


def test_corpus_and_queries_of_the_split_are_taken(tmp_path: Path) -> None:
    files = {f"queries/{split}.tsv": f"q1\tasked in {split}\n" for split in ("dev", "test")}
    files |= {f"qrels/{split}.tsv": "q1 d1 1\n" for split in ("dev", "test")}
    folder = write(tmp_path, {**files, "corpus.jsonl": CORPUS})
    assert load_retrieval_dataset(f"{folder}@dev").queries == ["asked in dev"]
    assert load_retrieval_dataset(folder).queries == ["asked in test"]


def test_two_sets_in_a_folder_are_not_mixed(tmp_path: Path) -> None:
    folder = write(tmp_path, {**BEIR, "corpus.jsonl.gz": b"", "de-corpus/a.jsonl": CORPUS})
    with pytest.raises(UserError, match="corpus.jsonl, de-corpus are several corpus"):
        load_retrieval_dataset(folder)
    names = [f"qrels/qrels.miracl-v1.0-{language}-dev.tsv" for language in ("ko", "sw")]
    folder = write(tmp_path / "b", {"corpus.jsonl": CORPUS, "queries.jsonl": ASKED, **dict.fromkeys(names, qrels())})
    with pytest.raises(UserError, match="-ko-dev.tsv, qrels/qrels.miracl-v1.0-sw-dev.tsv are several judgements"):
        load_retrieval_dataset(folder)


def test_what_published_sets_lack_or_double_is_counted_and_does_not_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = qrels(header=HEADER) + "q1\tgone\t1\nq2\tgone\t0\nq9\td1\t1\nq2\td2\t1\nq1\td1\t1\nq2\td10\t0.5\n"
    asked = ASKED + lines([{"_id": "q1", "text": "who sits?"}, {"_id": "q3", "text": None}])
    corpus = CORPUS + lines([{"_id": "d1", "title": "Frog", "text": "It sits near a pond."}])
    corpus += lines([{"_id": "d3", "text": "A heron wades."}, {"_id": "d4", "text": None}])
    data = load_retrieval_dataset(
        write(tmp_path, {"corpus.jsonl": corpus, "queries.jsonl": asked, "qrels/test.tsv": text})
    )
    named = [{data.passages[number]: gain for number, gain in gains.items()} for gains in data.relevant]
    assert named == [
        {"Frog It sits near a pond.": 1.0},
        {"A heron wades.": 1.0, "Owl It hunts at night.": 0.5},
    ]
    assert data.missing == {0: [1.0]} and data.queries == list(QUERIES.values()) and len(data.passages) == 5
    said = capsys.readouterr().out
    for line in (
        "1 judged queries have no text and are left out: 'q9'",
        "1 judged passages are not in the corpus: 'gone'; relevant ones count as passages that no model can find",
        "1 passages are repeated with the same id and text: 'd1'",
        "1 queries are repeated with the same id and text: 'q1'",
        "1 passages are empty: 'd4'",
        "1 queries are empty: 'q3'",
        "1 judgements are repeated with the same grade: 'q2 d2'",
        "1 judgements are repeated with another grade, and the last one counts, as in BEIR and MTEB: 'q1 d1'",
        "1 grades are no whole numbers",
        "1 passages have the text of another one, such as 'd2' and 'd3'",
    ):
        assert f"data: {line}" in said


def test_a_usual_set_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_retrieval_dataset(write(tmp_path, BEIR))
    assert not capsys.readouterr().out


def test_a_query_that_is_a_passage_is_left_out_of_its_ranking_unless_it_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = lines([{"_id": key, "text": f"about {key}"} for key in ("d1", "d2", "q1")])
    text = "d1 d10 1\nd2 d2 1\nq1 d1 1\n"
    data = load_retrieval_dataset(
        write(tmp_path, {"corpus.jsonl": CORPUS, "queries.jsonl": asked, "qrels/test.tsv": text})
    )
    assert data.own == {0: 2} and data.passages[2].startswith("Frog")
    assert "1 queries have a passage with their own id; it is left out of their ranking" in capsys.readouterr().out


def test_ids_are_numbers_or_texts(tmp_path: Path) -> None:
    corpus = lines([{"_id": 1.0, "text": "one"}, {"_id": 2, "text": "two"}, {"_id": "3", "text": 3}])
    files: dict[str, str | bytes] = {"corpus.jsonl": corpus, "queries.jsonl": lines([{"_id": 7, "text": "q"}])}
    data = load_retrieval_dataset(write(tmp_path, {**files, "qrels/test.tsv": "7.0\t1.0\t1\n7\t3\t1\n"}))
    assert {data.passages[number] for number in data.relevant[0]} == {"one", "3"}


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"corpus.jsonl": '{"_id": "d1"}\n' * 12, "queries.jsonl": "no\n"}
    with pytest.raises(UserError) as caught:
        load_retrieval_dataset(write(tmp_path, {**files, "qrels/test.tsv": "q1 d1 x\nq1 d1 y\n"}))
    told = str(caught.value)
    assert "corpus.jsonl:1:" in told and "corpus.jsonl:10:" in told and "… and 2 more problems" in told
    assert "corpus.jsonl:11:" not in told and "queries.jsonl:1:" in told and "test.tsv:2:" in told


@pytest.mark.parametrize("first", ["<DOC>", "<top>", '<?xml version="1.0"?>'])
def test_trec_files_in_sgml_are_named_with_a_remedy(tmp_path: Path, first: str) -> None:
    with pytest.raises(UserError, match="corpus.txt:1: a TREC file in SGML or XML; convert it: ir_datasets export"):
        load_retrieval_dataset(
            write(tmp_path, {"corpus.txt": f"{first}\n", "queries.jsonl": ASKED, "qrels.txt": qrels()})
        )


def test_columns_without_names_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="collection.tsv:1: 3 columns between tabs, without a header; write one"):
        load_retrieval_dataset(
            write(tmp_path, {"collection.tsv": "d1\tFrog\tIt sits.\n", "queries.jsonl": ASKED, "qrels.txt": qrels()})
        )


def test_mining_reads_the_corpus_of_a_set(tmp_path: Path) -> None:
    folder = write(tmp_path, {"collection.tsv": tsv(WHOLE), "queries.jsonl": ASKED, "qrels.txt": qrels()})
    assert list(read_corpus(str(folder), "text")) == list(WHOLE.values())
    whole, bare = (list(read_corpus(str(write(tmp_path / "b", BEIR)), "text", titles)) for titles in (True, False))
    assert whole[0] == "Frog It sits near a pond." and bare[0] == "It sits near a pond."
    alone = write(
        tmp_path / "d", {"corpus.jsonl.gz": gzip.compress(CORPUS.encode() + b'{"_id": 1, "title": "Only"}\n')}
    )
    for path in (alone, alone / "corpus.jsonl.gz"):
        rows = list(islice(read_corpus(str(path), "text"), 3))
        assert rows == [whole[0], whole[1], whole[2]]
    assert list(read_corpus(str(alone), "text"))[-1] == "Only"
    assert list(read_corpus(str(alone), "text", titles=False))[-1] == ""
    with pytest.raises(UserError, match="no corpus in this folder"):
        list(read_corpus(str(write(tmp_path / "c", {"x.md": ""})), "text"))
