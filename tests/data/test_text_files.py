"""Files of texts are read as training reads them, or refused with the place."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pytest

from embedrag.data.text_files import read_corpus, read_texts
from embedrag.errors import UserError

TABLE = 'id,text\n1,"a frog, green"\n\n2,["b"]\n3,\n'


def read(path: Path, content: str) -> list[str]:
    path.write_text(content, encoding="utf-8")
    return list(read_texts(path, "text"))


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv", "a.Tsv"])
def test_cells_of_a_table_are_the_texts_as_they_stand(name: str, tmp_path: Path) -> None:
    content = TABLE.replace(",", "\t").replace("frog\t", "frog,") if name.lower().endswith("tsv") else TABLE
    assert read(tmp_path / name, content) == ["a frog, green", '["b"]', ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.Json", "a.NDJSON"])
def test_case_of_a_suffix_does_not_matter(name: str, tmp_path: Path) -> None:
    assert read(tmp_path / name, '{"text": "a frog"}\n"a heron"\n') == ["a frog", "a heron"]


def test_long_cell_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", f"text\n{'a' * 200_000}\n") == ["a" * 200_000]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('id,text\n1,"a frog\n2,a heron\n', "a.csv:2: not a readable table (unexpected end of data); check the quotes"),
        ('"id,text\n1,a frog\n', "a.csv:1: the header can't be read"),
        ("text,id,text\na frog,1,a heron\n", "a.csv:1: the column text occurs twice"),
        ("id,text\n1,a frog\n2,a frog, green\n", "a.csv:3: more cells than the header has columns (2)"),
        ("id,text\n1\n", "a.csv:2: no text under 'text'"),
    ],
)
def test_table_that_would_be_misread_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.csv", content)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.JSONL"])
def test_title_of_a_passage_stands_before_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"title": "Frogs", "text": "are green"}) + "\n")
    assert list(read_corpus(str(tmp_path / name), "text")) == ["Frogs are green"]


def test_column_of_a_parquet_file_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["a frog", "a heron"]}), path)
    assert list(read_texts(path, "text")) == ["a frog", "a heron"]


def test_any_other_file_is_one_text_a_line(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", "a frog\r\n\n[a heron]\n") == ["a frog", "", "[a heron]"]


@pytest.mark.parametrize("argument", ["corpus", "data"])
def test_corpus_that_is_not_there_is_named_by_the_argument_of_the_caller(argument: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^`{argument}={tmp_path}/none.jsonl`: no such file"):
        list(read_corpus(str(tmp_path / "none.jsonl"), "text", argument=argument))


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "corpus.jsonl.bz2", "folder"])
def test_compressed_corpus_is_read_with_its_titles(name: str, tmp_path: Path) -> None:
    line = json.dumps({"_id": "1", "title": "Frogs", "text": "are green", "data": [{"text": "x"}]}).encode()
    path = tmp_path / ("corpus.jsonl.gz" if name == "folder" else name)
    path.write_bytes(bz2.compress(line) if name.endswith(".bz2") else gzip.compress(line))
    assert list(read_corpus(str(tmp_path if name == "folder" else path), "text")) == ["Frogs are green"]
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress(b"a frog\na heron\n"))
    assert list(read_texts(tmp_path / "texts.txt.gz", "text")) == ["a frog", "a heron"]


def test_table_of_another_delimiter_is_read_by_its_field(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "id;text\n1;a frog, green\n") == ["a frog, green"]
