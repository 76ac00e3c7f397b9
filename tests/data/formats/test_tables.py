"""Tables as people have them: delimiters, encodings, titles, quotes, workbooks. Training finds what compose finds."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from embedrag.data.formats import lines, tables, workbooks
from embedrag.data.rows import load_rows
from embedrag.data.sources import layout_of, local_files, reading_lines, single_sources
from embedrag.data.text_files import read_texts
from embedrag.errors import UserError
from tests.data.conftest import write_xlsx
from tests.data.test_rows import problems, texts

GIVEN = [("q", ("p",), ("n",))]
KOREAN = "질문은 무엇입니까, 저항이란", "전류의 흐름을 막는 전자 부품이다", "물을 저장하는 그릇이다"


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffquery;positive;negative\r\nq;p;n\r\n",
        '"query";"positive";"negative"\n"q";"p";"n"\n',
        "query|positive|negative\nq|p|n\n",
        "query\tpositive\tnegative\nq\tp\tn\n",
        "sep=;\r\nquery;positive;negative\r\nq;p;n\r\n",
        "sep=:\nquery:positive:negative\nq:p:n\n",
        "query,positive,negative\rq,p,n\r",
        "Query, Positive ,NEGATIVE\nq,p,n\n",
        "query,positive,negative,,\nq,p,n,,\n",
        "My training data,,\n,,\nquery,positive,negative\nq,p,n\n",
        "My training data\nof 2026\n\nquery;positive;negative\nq;p;n\n",
        "A,B,C\nquery,positive,negative\nq,p,n\n",
        '"query,positive,negative"\n"q,p,n"\n',
        ",query,positive,negative\n0,q,p,n\n",
        "question,answer,negative_1,negative_2\nq,p,n,\n",
        "query,positive,negative,hard_negatives\nq,p,n,\n",
        "query,positive,negative\nq,p,n\nnan,p,n\n".replace("nan,p,n\n", ""),
    ],
)
def test_tables_of_spreadsheets_are_read_by_training(content: str, write) -> None:
    path = write(content, "rows.csv")
    assert texts(path) == GIVEN
    assert texts(write(gzip.compress(content.encode()), "rows.csv.gz")) == GIVEN


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", tables.DELIMITERS)
def test_encodings_that_compose_finds_are_found_by_training(encoding: str, delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("query", "positive", "negative"), *[KOREAN] * 4])
    assert texts(path) == [(KOREAN[0], (KOREAN[1],), (KOREAN[2],))] * 4
    assert layout_of(path).delimiter == delimiter


def test_start_says_how_a_table_was_read_when_its_name_does_not(write, capsys) -> None:
    usual = [
        write("query,pos\nq,p\n", "a.csv"),
        write("query\tpos\nq\tp\n", "b.tsv"),
        write('{"query": "q"}', "c.jsonl"),
    ]
    assert list(reading_lines(list(map(str, usual)))) == []
    odd = write("title;\nquery;pos\nq;p\n", "odd.csv")
    assert list(reading_lines([str(odd)])) == [
        f"data: {odd}: read as utf-8, semicolon between cells; 1 lines above the header are left out"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("frage;antwort\na;b\n", ":2: no query (query or anchor) among its keys frage, antwort"),
        ("query,pos\nq,p\nr,s,t\n", ":3: more cells than the header has columns (2)"),
        ("query,pos\nq,p\nnan,s\n", ":3: query must be a text, not null"),
        ("title\nquery,pos,neg,neg\nq,p,n,n\n", ":2: the column neg occurs twice"),
        ("query,pos\ncafé,p\n".encode("latin-1"), ": it is not certain whether this is UTF-8"),
        ("q1\tp1\tn1\n", ":2"),
        ('query,pos\n"q,p\n', ":2: not a readable table (unexpected end of data)"),
    ],
)
def test_table_that_would_be_misread_is_named(content: str | bytes, reason: str, write) -> None:
    path = write(content if content != "q1\tp1\tn1\n" else content * 2, "rows.csv")
    assert problems(path)[0].startswith(f"{path}{reason}")


def test_missing_values_of_pandas_are_empty_cells(write) -> None:
    rows = load_rows(write("query,pos,neg\nq,p,nan\nr,s,<NA>\nNaN,not a number,n\n", "rows.csv"))
    assert [row.neg for row in rows] == [(), (), ("n",)]
    assert rows[2].query == "NaN"  # a term; pandas writes nan


def test_triples_without_a_header_are_read_and_ids_are_not(write) -> None:
    long = "a passage of more than twenty letters"
    path = write(f'what is a frog\t{long} 1\t{long} "2\n' * 3, "triples.tsv")
    assert texts(path) == [("what is a frog", (f"{long} 1",), (f'{long} "2',))] * 3
    assert "no header" in next(reading_lines([str(path)]))
    assert "no query" in problems(write("1\t2\t3\n4\t5\t6\n", "ids.tsv"))[0]


def test_byte_that_is_not_utf8_far_below_is_named_by_its_line(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SAMPLE", 1000)
    path = write(b"query,pos\n" + b"q,p\n" * 9000 + b"\xff,p\n", "rows.csv")
    assert problems(path) == [f"{path}:9002: not utf-8; save the file as UTF-8"]


def test_quote_that_is_never_closed_does_not_fill_the_memory(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 5000)
    path = write('query,pos\nq,p\n"q,p\n' + "q,p\n" * 9000, "rows.csv")
    assert f"{path}:3: not a readable table (it has more than" in problems(path)[-1]


# Workbooks


def test_sheets_of_a_workbook(tmp_path: Path) -> None:
    sheets = {
        "Notes": [["A title of the sheet"], [], ["query", "pos"], ["q", "p"], [7, 2.5], ["", ""], ["r", '["s", "t"]']],
        "More rows": [["anchor", "positive"], ["x", "y"]],
    }
    path = write_xlsx(tmp_path / "book.xlsx", sheets)
    assert texts(path) == [("q", ("p",), ()), ("7", ("2.5",), ()), ("r", ("s", "t"), ())]
    assert texts(f"{path}:More rows") == [("x", ("y",), ())]
    assert problems(f"{path}:More row") == [
        f"{path}: no sheet More row; did you mean More rows?; its sheets are Notes, More rows"
    ]
    assert single_sources(f"{path}:More rows") == [f"{path}:More rows"] and local_files(f"{path}:Notes") == [path]
    renamed = path.rename(tmp_path / "book.csv")
    assert texts(renamed)[0] == ("q", ("p",), ())
    assert list(read_texts(renamed, "pos")) == ["p", "2.5", '["s", "t"]']


@pytest.mark.parametrize("name", ["a.xlsx", "a.xls", "a.ods", "a.csv"])
def test_file_that_is_no_workbook_or_damaged_is_named(name: str, tmp_path: Path) -> None:
    path = write_xlsx(tmp_path / name, {"S": [["query", "pos"], ["q", "p"]]})
    path.write_bytes(path.read_bytes()[:700])
    assert "not a readable workbook" in problems(path)[0] and str(path) in problems(path)[0]


def test_workbook_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbooks, "MOST", 100)
    assert "save it as CSV UTF-8" in problems(write_xlsx(tmp_path / "a.xlsx", {"S": [["query"]]}))[0]


# Compressed files and folders


def test_folder_with_packed_and_unpacked_files(tmp_path: Path, write) -> None:
    row = '{"query": "%s", "pos": "p"}'
    write(gzip.compress((row % 1).encode()), "a.jsonl.gz")
    write(row % 2, "b.jsonl")
    write('{"loss": 1}', "metrics.json")
    write("{}", "dataset_info.json")
    assert [query for query, _, _ in texts(tmp_path)] == ["1", "2"]
    write(row % 1, "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl and a.jsonl.gz have the same name except for the compression"):
        local_files(str(tmp_path))


@pytest.mark.parametrize("name", ["d/x.jsonl.zst", "d/x.csv.gz", "d/x.xlsx:Sheet"])
def test_missing_file_is_no_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        local_files(name)


def test_empty_name_is_not_the_folder_of_the_program() -> None:
    with pytest.raises(UserError, match="is empty"):
        local_files("")


def test_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "' + b"a" * 9000))
    assert f"{path}:1: a line of more than" in problems(path)[0]
